"""A calculator that keeps every rule, and ones that each break a single rule."""

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa

from mlff.state import State, read_state


class Toy(Calculator):
    """A smooth pair energy that depends on charge and multiplicity; keeps the rules."""

    implemented_properties = ("energy", "free_energy", "forces", "stress")
    default_parameters = {"charge": None, "spin": None}  # noqa: RUF012
    discard_results_on_any_change = True
    cutoff = 3.0

    def state(self, atoms):
        return read_state(atoms, self.parameters["charge"], self.parameters["spin"])

    def seen(self, atoms):
        arrays = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        return *(array.tobytes() for array in arrays), self.state(atoms)

    def check_state(self, atoms, tol=1e-15):
        try:
            known = self.atoms is not None and self.seen(atoms) == self.key
        except ValueError:
            known = False
        return [] if known else list(all_changes)

    def strength(self, atoms, i, j, state):
        factor = 1.0 + 0.1 * state.charge + 0.07 * state.multiplicity
        return factor * atoms.numbers[i] * atoms.numbers[j] / 36

    def physics(self, atoms, state):
        """Energy, forces and dE/dε of Σ c_ij (1 − r²/r_c²)³ over pairs."""
        i, j, vectors = neighbor_list("ijD", atoms, self.cutoff)
        inner = 1.0 - (vectors**2).sum(1) / self.cutoff**2
        strength = 0.5 * self.strength(atoms, i, j, state)
        pull = (-6.0 * strength * inner**2 / self.cutoff**2)[:, None] * vectors
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        return float((strength * inner**3).sum()), forces, vectors.T @ pull

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        self.reset()
        state = self.state(atoms)
        if not np.isfinite(atoms.positions).all():
            raise ValueError("positions are not finite")
        energy, forces, strain = self.physics(atoms, state)
        results = {"energy": energy, "free_energy": energy, "forces": forces}
        if atoms.pbc.all():
            stress = strain / atoms.get_volume()
            results["stress"] = full_3x3_to_voigt_6_stress(stress)
        super().calculate(atoms, properties, system_changes)
        self.key = self.seen(atoms)
        self.results = self.pack(results)

    def pack(self, results):
        return results


class Float32Energy(Toy):
    def pack(self, results):
        return {**results, "energy": np.float32(results["energy"])}


class NoFreeEnergy(Toy):
    implemented_properties = ("energy", "forces", "stress")

    def pack(self, results):
        results.pop("free_energy")
        return results


class OtherFreeEnergy(Toy):
    def pack(self, results):
        return {**results, "free_energy": results["energy"] + 0.1}


class TransposedForces(Toy):
    def pack(self, results):
        return {**results, "forces": np.asfortranarray(results["forces"])}


class Float32Forces(Toy):
    def pack(self, results):
        return {**results, "forces": results["forces"].astype(np.float32)}


class ExtraName(Toy):
    def pack(self, results):
        return {**results, "uncertainty": 0.0}


class EmptyPromise(Toy):
    implemented_properties = (*Toy.implemented_properties, "dipole")


class NeverSaysNo(Toy):
    def get_property(self, name, atoms=None, allow_calculation=True):
        if name in self.implemented_properties:
            return super().get_property(name, atoms, allow_calculation)
        return 0.0


class WeakForces(Toy):
    def pack(self, results):
        return {**results, "forces": 0.999 * results["forces"]}


class StressInGPa(Toy):
    def pack(self, results):
        if "stress" in results:
            results["stress"] = results["stress"] / GPa
        return results


class FullStress(Toy):
    def pack(self, results):
        if "stress" in results:
            results["stress"] = np.zeros((3, 3))
        return results


class Trap(Toy):
    def physics(self, atoms, state):
        energy, forces, strain = super().physics(atoms, state)
        return energy + 1e-3 * float(atoms.positions[:, 0].mean()), forces, strain


class OnlyThisCell(Toy):
    def physics(self, atoms, state):
        inside = atoms.copy()
        inside.pbc = False
        return super().physics(inside, state)


class Anisotropic(Toy):
    def physics(self, atoms, state):
        stretched = atoms.copy()
        stretched.positions[:, 0] *= 1.001
        return super().physics(stretched, state)


class Ordered(Toy):
    def strength(self, atoms, i, j, state):
        return super().strength(atoms, i, j, state) * (1 + 1e-3 * (i + j))


class Forgetful(Toy):
    def check_state(self, atoms, tol=1e-15):
        return list(all_changes)


class AliasedCell(Toy):
    def seen(self, atoms):
        cell = getattr(self, "cell", atoms.cell)
        self.cell = cell
        same = (atoms.numbers.tobytes(), atoms.positions.tobytes(), atoms.pbc.tobytes())
        return (*same, cell is atoms.cell, self.state(atoms))


class BlindToElements(Toy):
    def seen(self, atoms):
        return super().seen(atoms)[1:]


class BlindToPeriodicity(Toy):
    def seen(self, atoms):
        return *super().seen(atoms)[:3], self.state(atoms)


class SharedResults(Toy):
    def get_property(self, name, atoms=None, allow_calculation=True):
        super().get_property(name, atoms, allow_calculation)
        return self.results[name]


class ReusedBuffer(Toy):
    buffer = None

    def pack(self, results):
        if self.buffer is None or self.buffer.shape != results["forces"].shape:
            self.buffer = results["forces"]
        self.buffer[:] = results["forces"]
        return {**results, "forces": self.buffer}


class WritesIntoInfo(Toy):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        atoms.info.setdefault("spin_multiplicity", atoms.info["spin"])
        super().calculate(atoms, properties, system_changes)


class Centers(Toy):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        atoms.positions -= atoms.positions.mean(0)
        super().calculate(atoms, properties, system_changes)


class NotPicklable(Toy):
    def __init__(self):
        super().__init__()
        self.hook = lambda: None


class CopiedEmpty(Toy):
    def __getstate__(self):
        return {**vars(self), "cutoff": 2.0}


class SwallowsNaN(Toy):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        finite = atoms.copy()
        finite.positions = np.nan_to_num(atoms.positions, posinf=0.0)
        super().calculate(finite, properties, system_changes)


class StaleAfterError(Toy):
    last = None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if self.last is not None:
            self.results = self.last
            self.last = None
            return
        try:
            super().calculate(atoms, properties, system_changes)
        except ValueError:
            self.last = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}
            raise


class KeepsFirstElements(Toy):
    numbers = None

    def strength(self, atoms, i, j, state):
        if self.numbers is None:
            self.numbers = np.resize(atoms.numbers, 100)
        first = Atoms(self.numbers[: len(atoms)])
        return super().strength(first, i, j, state)


class ComparesArraysOnly(Toy):
    def check_state(self, atoms, tol=1e-15):
        return Calculator.check_state(self, atoms, tol)


class BlindToSpin(Toy):
    def state(self, atoms):
        return State(super().state(atoms).charge, 1)


class PythonIntegersOnly(Toy):
    def state(self, atoms):
        if not all(isinstance(atoms.info[key], int) for key in ("charge", "spin")):
            raise TypeError("not an int")
        return super().state(atoms)


class Sticky(Toy):
    charge = 0

    def state(self, atoms):
        self.charge = atoms.info.get("charge", self.charge)
        return State(self.charge, atoms.info.get("spin", 1))


class NoParity(Toy):
    def state(self, atoms):
        return read_state(atoms, check_parity=False)


class RoundsCharge(Toy):
    def state(self, atoms):
        copy = atoms.copy()
        copy.info["charge"] = int(copy.info.get("charge", 0))
        return read_state(copy)


class FirstKeyWins(Toy):
    def state(self, atoms):
        return State(int(atoms.info["charge"]), int(atoms.info["spin"]))


class AnyDefault(Toy):
    def state(self, atoms):
        return State(int(atoms.info["charge"]), int(atoms.info.get("spin", 1)))


class DeafToParameters(Toy):
    discard_results_on_any_change = False

    def seen(self, atoms):
        return super().seen(atoms)[:4]


#: Each check, and calculators that it has to catch.
BROKEN = {
    "energy_is_a_float": [Float32Energy],
    "free_energy_is_the_energy": [NoFreeEnergy, OtherFreeEnergy],
    "forces_are_a_float64_array": [TransposedForces, Float32Forces],
    "results_have_the_names_of_ase": [ExtraName],
    "advertised_properties_are_delivered": [EmptyPromise, NeverSaysNo],
    "forces_are_minus_the_gradient": [WeakForces],
    "stress_is_the_strain_derivative": [StressInGPa, FullStress],
    "translation_changes_nothing": [Trap, OnlyThisCell],
    "rotation_turns_forces": [Anisotropic],
    "permutation_permutes_forces": [Ordered],
    "unchanged_atoms_are_evaluated_once": [Forgetful],
    "every_change_is_seen": [AliasedCell, BlindToElements, BlindToPeriodicity],
    "results_belong_to_the_caller": [SharedResults, ReusedBuffer],
    "atoms_are_not_modified": [WritesIntoInfo, Centers],
    "copies_give_the_same": [NotPicklable, CopiedEmpty],
    "errors_leave_nothing_behind": [SwallowsNaN, StaleAfterError],
    "systems_do_not_mix": [KeepsFirstElements],
    "changes_of_state_are_seen": [ComparesArraysOnly, BlindToSpin],
    "every_kind_of_integer_is_read": [PythonIntegersOnly],
    "no_state_is_inherited": [Sticky],
    "impossible_states_are_refused": [NoParity, RoundsCharge],
    "contradictions_are_refused": [FirstKeyWins],
    "radicals_need_a_multiplicity": [AnyDefault],
    "parameters_are_part_of_the_state": [DeafToParameters],
}
