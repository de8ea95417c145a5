"""The unit system: eV, Å, amu, e, and fs for a person's time; conversions into it.

ASE's internal time unit is Å·sqrt(amu/eV); use ``ase.units.fs`` to convert. Values
are CODATA 2018, computed from the same constants that PySCF 2.14 uses, so that a
label converted back gives PySCF's own number.
"""

#: 1 Hartree in eV (CODATA 2018).
HARTREE = 27.211386245988

#: 1 Bohr in Å (CODATA 2018).
BOHR = 0.529177210903

#: 1 Hartree/Bohr in eV/Å.
HARTREE_PER_BOHR = HARTREE / BOHR

#: 1 Debye in e·Å.
DEBYE = 0.20819433442462576

#: 1 kcal/mol in eV.
KCAL_PER_MOL = 0.04336410390059322

#: 1 kJ/mol in eV.
KJ_PER_MOL = KCAL_PER_MOL / 4.184

#: Factors from the unit a file may declare to ours.
ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": HARTREE,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
}

#: Factors from the unit a file may declare to ours.
LENGTH_UNITS = {"Ang": 1.0, "Bohr": BOHR, "nm": 10.0}
