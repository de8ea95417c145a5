"""The names of everything a potential can return: the only place that names outputs."""

from dataclasses import dataclass

from mlff.units import DEBYE


@dataclass(frozen=True, kw_only=True)
class Property:
    """One output of a potential.

    Attributes:
        name: key in every results dict.
        unit: unit of the value.
        per: axis that its rows belong to, ``"system"`` or ``"atom"``.
        shape: shape of one row.
        ase: name in ``ase.calculators.calculator.all_properties``, or ``None``.
        label: key of the reference value in extended XYZ files (``REF_*``), or ``None``
            if it cannot be learned from.
        head: what computes it, a key of :data:`mlff.heads.HEADS`; ``"committee"`` for
            what only the members of a :class:`mlff.Committee` together tell.
        error_unit: unit in which errors are told, as part of a key.
        error_factor: from ``unit`` to that.
    """

    name: str
    unit: str
    per: str = "system"
    shape: tuple[int, ...] = ()
    ase: str | None = None
    label: str | None = None
    head: str = "energy"
    error_unit: str = ""
    error_factor: float = 1.0


_MILLI, _MILLI_DEBYE = 1e3, 1e3 / DEBYE

#: Every property, by name. Dipoles and the spatial extent are about the center of
#: nuclear charge; the dipole of an ion depends on that. Polarizabilities are volumes,
#: α/(4πε₀). ``polarizability_norm`` is the Frobenius norm, which the CMRET paper
#: learns: √3 times the isotropic mean where the tensor is isotropic.
PROPERTIES: dict[str, Property] = {
    p.name: p
    for p in (
        Property(
            name="energy",
            unit="eV",
            ase="energy",
            label="REF_energy",
            error_unit="meV",
            error_factor=_MILLI,
        ),
        Property(name="energies", unit="eV", per="atom", ase="energies"),
        Property(
            name="forces",
            unit="eV/Å",
            per="atom",
            shape=(3,),
            ase="forces",
            label="REF_forces",
            error_unit="meV_per_A",
            error_factor=_MILLI,
        ),
        Property(name="stress", unit="eV/Å³", shape=(3, 3), ase="stress"),
        Property(
            name="dipole",
            unit="e·Å",
            shape=(3,),
            ase="dipole",
            label="REF_dipole",
            head="dipole",
            error_unit="mD",
            error_factor=_MILLI_DEBYE,
        ),
        Property(
            name="dipole_norm",
            unit="e·Å",
            label="REF_dipole_norm",
            head="dipole",
            error_unit="mD",
            error_factor=_MILLI_DEBYE,
        ),
        Property(
            name="polarizability",
            unit="Å³",
            shape=(3, 3),
            label="REF_polarizability",
            head="polarizability",
            error_unit="A3",
        ),
        Property(
            name="isotropic_polarizability",
            unit="Å³",
            label="REF_isotropic_polarizability",
            head="polarizability",
            error_unit="A3",
        ),
        Property(
            name="polarizability_norm",
            unit="Å³",
            label="REF_polarizability_norm",
            head="polarizability",
            error_unit="A3",
        ),
        Property(
            name="spatial_extent",
            unit="Å²",
            label="REF_spatial_extent",
            head="spatial_extent",
            error_unit="A2",
        ),
        Property(name="energy_deviation", unit="eV", head="committee"),
        Property(
            name="forces_deviation",
            unit="eV/Å",
            per="atom",
            shape=(3,),
            head="committee",
        ),
    )
}

#: What a potential can be trained on.
TARGETS = tuple(name for name, known in PROPERTIES.items() if known.label)
