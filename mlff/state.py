"""Total charge and spin multiplicity of a system: read, checked, written.

The only place that knows where a state may be written and when it is wrong; every
entrance of the package (calculator, batch, data, labels, command line) calls it.

Convention, everywhere in the public interface: ``charge`` is the total charge in
units of e, ``spin`` is the multiplicity 2S+1 (1 singlet, 2 doublet, 3 triplet).
PySCF's ``mol.spin`` and the sum of ASE's magnetic moments are 2S; the CMRET data
sets store S.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from ase import Atoms

from mlff.errors import InputTypeError, StateError, warn_once

#: Keys of ``atoms.info`` that hold the total charge, in reading order.
CHARGE_KEYS = ("charge", "total_charge", "Q")

#: Keys of ``atoms.info`` that hold the multiplicity 2S+1, in reading order.
SPIN_KEYS = ("spin_multiplicity", "spin", "mult", "multiplicity")

#: Key of ``atoms.info`` in the CMRET data sets: the spin quantum number S.
LEGACY_SPIN_KEY = "S"

# A sum of per-atom charges or moments counts as integral within this.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class State:
    """An electronic state.

    Attributes:
        charge: total charge, e.
        multiplicity: spin multiplicity 2S+1.
    """

    charge: int
    multiplicity: int

    def __str__(self) -> str:
        return f"charge {self.charge:+d}, multiplicity {self.multiplicity}"

    @property
    def short(self) -> str:
        """The pair alone: ``"(+1, 2)"``, ``"(0, 3)"``."""
        charge = f"{self.charge:+d}" if self.charge else "0"
        return f"({charge}, {self.multiplicity})"


def _number(value: Any, name: str) -> Any:
    """Return the real number in a scalar, a 0-d array or a 0-d tensor."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputTypeError(
            f"`{name}` must be one number, got {value!r} ({type(value).__name__})"
        )
    return value


def as_integer(value: Any, name: str) -> int:
    """Return an integral value as ``int``.

    Args:
        value: int, numpy integer, integral float, or a 0-d array or tensor of one.
        name: what the value is called in an error.

    Raises:
        InputTypeError: for anything else that is not a number.
        StateError: for a number that is not integral.
    """
    number = _number(value, name)
    if number % 1 != 0:  # also true of nan and the infinities
        raise StateError(f"`{name}` must be integral, got {value!r}")
    return int(number)


def _from_sum(array: np.ndarray[Any, Any], name: str, key: str) -> int:
    cure = f"set atoms.info[{key!r}] and remove the array with atoms.set_{name}(None)"
    if array.ndim != 1:
        raise StateError(
            f"atoms.get_{name}() has shape {array.shape}: non-collinear moments give "
            f"no multiplicity; {cure}"
        )
    total = float(array.sum())
    if not np.isfinite(total) or abs(total - round(total)) > _SUM_TOLERANCE:
        raise StateError(
            f"the sum of atoms.get_{name}() is {total:g}, which is not integral; {cure}"
        )
    return round(total)


def _stated(
    atoms: Atoms, explicit: Any, argument: str, keys: tuple[str, ...]
) -> dict[str, int]:
    """What the argument and ``atoms.info`` say, by where it is said."""
    found = {}
    if explicit is not None:
        found[f"argument {argument}"] = as_integer(explicit, argument)
    for key in keys:
        if atoms.info.get(key) is not None:
            name = f"atoms.info[{key!r}]"
            found[name] = as_integer(atoms.info[key], name)
    return found


def _charge_sources(atoms: Atoms, explicit: Any) -> dict[str, int]:
    found = _stated(atoms, explicit, "charge", CHARGE_KEYS)
    if atoms.has("initial_charges"):
        found["sum of initial_charges"] = _from_sum(
            atoms.get_initial_charges(), "initial_charges", "charge"
        )
    return found


def _spin_sources(atoms: Atoms, explicit: Any) -> dict[str, int]:
    found = _stated(atoms, explicit, "spin", SPIN_KEYS)
    if atoms.info.get(LEGACY_SPIN_KEY) is not None:
        name = f"2·atoms.info[{LEGACY_SPIN_KEY!r}]"
        doubled = 2 * _number(atoms.info[LEGACY_SPIN_KEY], name)
        found[name + " + 1"] = as_integer(doubled, name) + 1
    if atoms.has("initial_magmoms"):
        moment = _from_sum(
            atoms.get_initial_magnetic_moments(), "initial_magnetic_moments", "spin"
        )
        found["|sum of initial_magmoms| + 1"] = abs(moment) + 1
    return found


def _agreed(found: dict[str, int], name: str) -> int | None:
    if len(set(found.values())) > 1:
        listing = ", ".join(f"{source} = {value}" for source, value in found.items())
        raise StateError(
            f"conflicting values of the {name}: {listing}. Keep one, for example "
            "with mlff.set_state(atoms, charge=..., spin=...)"
        )
    return next(iter(found.values()), None)


def check_state(
    numbers: Any, charge: int, multiplicity: int, *, parity: bool = True
) -> None:
    """Raise if no molecule of these atoms can have this state.

    Args:
        numbers: atomic numbers, (n_atoms,).
        charge: total charge, e.
        multiplicity: 2S+1.
        parity: also refuse a multiplicity that the electron count excludes.

    Raises:
        StateError: charge beyond the nuclear charge, multiplicity outside
            1 … electrons + 1, or a parity that does not fit the electron count.
    """
    nuclear = int(np.sum(numbers))
    electrons = nuclear - charge
    if abs(charge) > nuclear:
        raise StateError(
            f"`charge` must lie within ±{nuclear}, the nuclear charge, got {charge}"
        )
    if not 1 <= multiplicity <= electrons + 1:
        raise StateError(
            f"`spin` (multiplicity 2S+1) must lie in 1 … {electrons + 1} for "
            f"{electrons} electrons, got {multiplicity}"
        )
    if parity and (electrons + multiplicity) % 2 == 0:
        kind = "odd" if electrons % 2 else "even"
        fits = "even" if electrons % 2 else "odd"
        near = [m for m in (multiplicity - 1, multiplicity + 1) if m > 0]
        raise StateError(
            f"`spin` (multiplicity 2S+1) = {multiplicity} does not fit {electrons} "
            f"electrons (nuclear charge {nuclear}, charge {charge:+d}): an {kind} "
            f"number of electrons needs an {fits} multiplicity, like "
            f"{' or '.join(map(str, near))}; or the charge is another one"
        )


def read_state(
    atoms: Atoms,
    charge: Any = None,
    spin: Any = None,
    *,
    strict: bool = False,
    check_parity: bool = True,
) -> State:
    """Return the charge and multiplicity of ``atoms``.

    Reading order. Charge: argument, ``info["charge"]``, ``info["total_charge"]``, sum
    of ``initial_charges``. Multiplicity: argument, ``info["spin_multiplicity"]``,
    ``info["spin"]``, ``info["mult"]``, ``info["multiplicity"]``, sum of
    ``initial_magmoms`` + 1. The CMRET keys ``Q`` and ``S`` (spin quantum number) are
    understood. All that are present must agree. Nothing given means a neutral system
    and, for an even number of electrons, a singlet, with one warning that says so.

    Args:
        atoms: the system.
        charge: total charge, e; must agree with what ``atoms`` carries.
        spin: multiplicity 2S+1; must agree with what ``atoms`` carries.
        strict: raise instead of assuming a default.
        check_parity: refuse a multiplicity that the electron count excludes; its
            range is checked anyway.

    Raises:
        StateError: conflict, missing value that has no safe default, not integral,
            out of range, or wrong parity.
        InputTypeError: a value that is not a number.
    """
    found_charge = _agreed(_charge_sources(atoms, charge), "charge")
    found_spin = _agreed(_spin_sources(atoms, spin), "spin")
    total = 0 if found_charge is None else found_charge
    electrons = int(np.sum(atoms.numbers)) - total
    missing = [
        name
        for name, value in (("charge", found_charge), ("spin", found_spin))
        if value is None
    ]
    cure = "set it with mlff.set_state(atoms, charge=..., spin=...)"
    if missing and strict:
        raise StateError(f"no {' and no '.join(missing)} in atoms.info: {cure}")
    if found_spin is None and electrons % 2:
        raise StateError(
            f"no spin in atoms.info and {electrons} electrons: an odd number has no "
            f"default multiplicity; {cure}"
        )
    multiplicity = 1 if found_spin is None else found_spin
    if missing:
        assumed = {"charge": f"charge {total}", "spin": "spin (multiplicity) 1"}
        what = " and ".join(assumed[name] for name in missing)
        warn_once(f"atoms.info has no {' and no '.join(missing)}: assuming {what}")
    check_state(atoms.numbers, total, multiplicity, parity=check_parity)
    return State(total, multiplicity)


def set_state(atoms: Atoms, charge: Any = None, spin: Any = None) -> Atoms:
    """Write a state where every reader finds it, and nowhere else.

    Sets ``atoms.info["charge"]`` and ``["spin"]``, removes their synonyms, and mirrors
    both to ``initial_charges`` and ``initial_magmoms`` (all on the first atom), which
    ASE compares and DFT calculators read.

    Args:
        atoms: changed in place.
        charge: total charge, e; kept as it is if ``None``.
        spin: multiplicity 2S+1; kept as it is if ``None``.

    Returns:
        ``atoms``.

    Raises:
        StateError: the state is impossible for these atoms, or one half is neither
            given nor present.
    """
    if charge is None:
        charge = _agreed(_charge_sources(atoms, None), "charge")
    if spin is None:
        spin = _agreed(_spin_sources(atoms, None), "spin")
    if charge is None or spin is None:
        name = "charge" if charge is None else "spin"
        raise StateError(f"`{name}` is neither given nor in atoms.info; give both")
    state = State(as_integer(charge, "charge"), as_integer(spin, "spin"))
    check_state(atoms.numbers, state.charge, state.multiplicity)
    for key in (*CHARGE_KEYS, *SPIN_KEYS, LEGACY_SPIN_KEY):
        atoms.info.pop(key, None)
    atoms.info["charge"] = state.charge
    atoms.info["spin"] = state.multiplicity
    first = np.zeros(len(atoms))
    if len(atoms):
        first[0] = 1.0
    # ASE refuses to replace an array by one of another shape (non-collinear moments).
    atoms.set_initial_charges(None)
    atoms.set_initial_magnetic_moments(None)
    atoms.set_initial_charges(first * state.charge)
    atoms.set_initial_magnetic_moments(first * (state.multiplicity - 1))
    return atoms
