"""The names of everything a potential can return: the only place that names outputs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Property:
    """One output of a potential.

    Attributes:
        name: key in every results dict.
        unit: unit of the value.
        per: axis that its rows belong to, ``"system"`` or ``"atom"``.
        shape: shape of one row.
        ase: name in ``ase.calculators.calculator.all_properties``, or ``None``.
        label: key of the reference value in extended XYZ files (ECOSYSTEM: ``REF_*``).
    """

    name: str
    unit: str
    per: str
    shape: tuple[int, ...]
    ase: str | None
    label: str | None


#: Every property, by name.
PROPERTIES: dict[str, Property] = {
    p.name: p
    for p in (
        Property(
            name="energy",
            unit="eV",
            per="system",
            shape=(),
            ase="energy",
            label="REF_energy",
        ),
        Property(
            name="energies", unit="eV", per="atom", shape=(), ase="energies", label=None
        ),
        Property(
            name="forces",
            unit="eV/Å",
            per="atom",
            shape=(3,),
            ase="forces",
            label="REF_forces",
        ),
        Property(
            name="stress",
            unit="eV/Å³",
            per="system",
            shape=(3, 3),
            ase="stress",
            label="REF_stress",
        ),
        Property(
            name="dipole",
            unit="e·Å",
            per="system",
            shape=(3,),
            ase="dipole",
            label="REF_dipole",
        ),
    )
}
