"""What every model must hold to, as checks that anyone can run on their own.

:func:`check_model` takes a :class:`mlff.Potential` (random or trained weights) and runs
:data:`MODEL_CHECKS` on it at charged and open-shell states as well as at the neutral
singlet. Tolerances are goals P1–P9, P12 and P15 of the project's reliability page; a
check reads what the model declares (symmetry, additivity, periodicity, states resolved)
and fails if the declaration is wrong in either direction.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.data import atomic_masses
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.heads import EnergyHead
from mlff.models import Representation
from mlff.neighbors import neighbor_list
from mlff.potential import Potential, TrainingInfo
from mlff.testing.cases import TOLERANCES, evaluate, sample_systems

# Velocity Verlet steps of 0.5 fs in the angular momentum check.
_RELEASED_STEPS = 100


def _close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    error = float((found - expected).abs().max()) if found.numel() else 0.0
    assert error <= tolerance, f"{what}: off by {error:.3g}, allowed {tolerance:.3g}"


def _orthogonal(rng: np.random.Generator, reflect: bool) -> np.ndarray[Any, Any]:
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    if (np.linalg.det(matrix) < 0) != reflect:
        matrix[:, 0] *= -1
    return np.asarray(matrix)


def _spread(potential: Potential, reflect: Sequence[bool]) -> tuple[float, float]:
    """Largest change of energy and of back-rotated forces over orthogonal maps."""
    systems = sample_systems()
    reference = evaluate(potential, systems)
    rng = np.random.default_rng(0)
    energy = force = 0.0
    for mirrored in reflect:
        matrix = _orthogonal(rng, mirrored)
        turned = [atoms.copy() for atoms in systems]
        for atoms in turned:
            atoms.positions = atoms.positions @ matrix.T
        out = evaluate(potential, turned)
        back = out["forces"] @ out["forces"].new_tensor(matrix)
        energy = max(energy, float((out["energy"] - reference["energy"]).abs().max()))
        force = max(force, float((back - reference["forces"]).abs().max()))
    return energy, force


def rotation_and_reflection(potential: Potential) -> None:
    """Energy is invariant, forces are equivariant, as declared (P2)."""
    limit = TOLERANCES[potential.dtype]
    symmetry = potential.model.symmetry
    energy, force = _spread(potential, [False] * 10)
    if symmetry == "broken":
        assert energy > limit.energy, "declared broken, yet rotations change nothing"
        return
    assert energy <= limit.energy, f"rotation changes the energy by {energy:.3g} eV"
    assert force <= limit.force, f"rotation changes forces by {force:.3g} eV/Å"
    if symmetry == "O3":
        energy, force = _spread(potential, [True] * 5)
        assert energy <= limit.energy, f"reflection: energy by {energy:.3g} eV"
        assert force <= limit.force, f"reflection: forces by {force:.3g} eV/Å"


def translation(potential: Potential) -> None:
    """A shift by 1,000 Å changes nothing (P4)."""
    limit = TOLERANCES[potential.dtype]
    systems = sample_systems()
    moved = [atoms.copy() for atoms in systems]
    for atoms in moved:
        atoms.positions += (1000.0, -500.0, 300.0)
    first, second = evaluate(potential, systems), evaluate(potential, moved)
    _close(second["energy"], first["energy"], limit.energy, "energy")
    _close(second["forces"], first["forces"], limit.force, "forces")


def permutation(potential: Potential) -> None:
    """The order of the atoms does not matter (P3)."""
    limit = TOLERANCES[potential.dtype]
    rng = np.random.default_rng(1)
    for atoms in sample_systems():
        order = rng.permutation(len(atoms))
        first = evaluate(potential, [atoms])
        second = evaluate(potential, [atoms[order]])
        _close(second["energy"], first["energy"], limit.energy, "energy")
        _close(second["forces"], first["forces"][order], limit.force, "forces")


def batch_equals_singles(potential: Potential) -> None:
    """A batch gives what each system gives alone (P5)."""
    limit = TOLERANCES[potential.dtype]
    systems = sample_systems()
    together = evaluate(potential, systems)
    alone = [evaluate(potential, [atoms]) for atoms in systems]
    for name, allowed in (("energy", limit.energy), ("forces", limit.force)):
        _close(together[name], torch.cat([out[name] for out in alone]), allowed, name)


def no_gradient_between_systems(potential: Potential) -> None:
    """The energy of one system does not depend on another's atoms, exactly (P5)."""
    batch = AtomsBatch.from_atoms(sample_systems()).to(potential.device)
    edges = neighbor_list(batch, potential.cutoff)
    positions = batch.positions.clone().requires_grad_(True)
    batch = batch.replace(positions=positions)
    energy = potential(batch, edges, ("energy",), create_graph=True)["energy"]
    for system in range(batch.n_systems):
        gradient = torch.autograd.grad(energy[system], positions, retain_graph=True)[0]
        others = gradient[batch.system != system]
        assert not others.any(), f"energy of system {system} pulls on other systems"


def edges_beyond_cutoff_count_nothing(potential: Potential) -> None:
    """A list with longer edges gives the same numbers, exactly."""
    systems = sample_systems()
    for atoms in systems:
        atoms.positions *= 0.6 * potential.cutoff
    short = evaluate(potential, systems, backend="matscipy")
    full = evaluate(potential, systems, backend="all_pairs")
    limit = 1e-12 if potential.dtype == torch.float64 else 1e-5
    _close(full["energy"], short["energy"], limit, "energy")
    _close(full["forces"], short["forces"], limit, "forces")


def smooth_at_cutoff(potential: Potential) -> None:
    """Nothing jumps as an atom crosses the cutoff of one other (P6)."""
    limit = TOLERANCES[potential.dtype]
    half = 0.5e-5 if potential.dtype == torch.float64 else 0.5e-3
    pairs = []
    for side in (-half, half):
        atoms = molecule("CH4")
        axis = atoms.positions[1] / np.linalg.norm(atoms.positions[1])
        far = atoms.positions[1] + axis * (potential.cutoff + side)
        atoms += Atoms("H", positions=[far])
        atoms.info.update(charge=0, spin=2)
        pairs.append(evaluate(potential, [atoms], backend="matscipy"))
    inside, outside = pairs
    _close(inside["energy"], outside["energy"], limit.jump_energy, "energy jumps")
    _close(inside["forces"], outside["forces"], limit.jump_force, "forces jump")


def forces_are_derivatives(potential: Potential) -> None:
    """Forces equal central differences of the energy (P1)."""
    limit = TOLERANCES[potential.dtype]
    for atoms in sample_systems()[:3]:
        forces = evaluate(potential, [atoms])["forces"].cpu()
        moved = []
        for index in range(3 * len(atoms)):
            for sign in (1, -1):
                displaced = atoms.copy()
                displaced.positions[index // 3, index % 3] += sign * limit.step
                moved.append(displaced)
        energy = evaluate(potential, moved, ("energy",))["energy"].cpu()
        numeric = -(energy[0::2] - energy[1::2]) / (2 * limit.step)
        _close(forces.flatten(), numeric, limit.difference, "forces")


def angular_momentum_is_conserved(potential: Potential) -> None:
    """Molecules released at rest do not start to turn (P12)."""
    if potential.model.symmetry == "broken":
        return
    batch = AtomsBatch.from_atoms(sample_systems()).to(potential.device)
    masses = torch.as_tensor(atomic_masses, device=potential.device)[batch.numbers]
    edges = neighbor_list(batch, potential.cutoff, "all_pairs")
    positions, timestep = batch.positions, 0.5 * units.fs
    momenta = torch.zeros_like(positions)
    forces = potential(batch, edges, ("forces",))["forces"]
    for _ in range(_RELEASED_STEPS):
        momenta = momenta + 0.5 * timestep * forces
        positions = positions + timestep * momenta / masses[:, None]
        moved = batch.replace(positions=positions)
        forces = potential(moved, edges, ("forces",))["forces"]
        momenta = momenta + 0.5 * timestep * forces
    assert momenta.any(), "nothing moves: forces are zero"
    turning = torch.zeros(
        batch.n_systems, 3, dtype=momenta.dtype, device=momenta.device
    )
    turning.index_add_(0, batch.system, torch.linalg.cross(positions, momenta))
    limit = 1e-5 if potential.dtype == torch.float64 else 1e-4
    _close(turning, torch.zeros_like(turning), limit, "angular momentum, amu Å²/time")


def second_derivatives_are_finite(potential: Potential) -> None:
    """Training on forces stays finite for every shape of molecule (P15)."""
    linear, planar = molecule("C2H2"), molecule("C2H4")
    apart = Atoms("CH", positions=[[0, 0, 0], [3 * potential.cutoff, 0, 0]])
    systems = [linear, planar, molecule("CH4"), Atoms("C"), apart]
    for atoms, spin in zip(systems, (1, 1, 1, 3, 2), strict=True):
        atoms.info.update(charge=0, spin=spin)
    trained = [p for p in potential.parameters() if p.is_floating_point()]
    frozen = [p.requires_grad for p in trained]
    potential.requires_grad_(True)
    try:
        for group in ([a] for a in systems):
            _check_double_backward(potential, group)
        _check_double_backward(potential, systems)
    finally:
        for parameter, state in zip(trained, frozen, strict=True):
            parameter.requires_grad_(state)


def _check_double_backward(potential: Potential, systems: list[Atoms]) -> None:
    batch = AtomsBatch.from_atoms(systems).to(potential.device)
    edges = neighbor_list(batch, potential.cutoff)
    out = potential(batch, edges, create_graph=True)
    loss = out["energy"].square().sum() + (out["forces"] - 0.1).square().sum()
    parameters = list(potential.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    names = [str(atoms.symbols) for atoms in systems]
    for value in (*out.values(), *(g for g in gradients if g is not None)):
        assert torch.isfinite(value).all(), f"not finite for {names}"


def separated_parts_add_up(potential: Potential) -> None:
    """Neutral closed-shell molecules 50 Å apart add up if the model says so (P7)."""
    first, second = molecule("C2H4"), molecule("CH4")
    second.positions += (50.0, 0.0, 0.0)
    both = first + second
    for atoms in (first, second, both):
        atoms.info.update(charge=0, spin=1)
    out = [evaluate(potential, [atoms]) for atoms in (first, second, both)]
    error = float((out[2]["energy"] - out[0]["energy"] - out[1]["energy"]).abs())
    if potential.model.additive:
        limit = 1e-9 if potential.dtype == torch.float64 else 1e-4
        assert error <= limit, f"declared additive, but off by {error:.3g} eV"
    else:
        assert error > 0, "declared not additive, yet separated parts add up"


def states_have_energies_of_their_own(potential: Potential) -> None:
    """Charge and multiplicity are told apart, as declared (P9)."""
    atoms = molecule("CH2_s3B1d")
    del atoms.arrays["initial_magmoms"]
    systems = []
    for charge in (-2, -1, 0, 1, 2):
        for spin in range(1, 6):
            if (8 - charge + spin) % 2 == 1:
                system = atoms.copy()
                system.info.update(charge=charge, spin=spin)
                systems.append(system)
    assert len(systems) == 13
    energy = evaluate(potential, systems, ("energy",))["energy"]
    closest = float(torch.pdist(energy[:, None]).min())
    if potential.model.resolves_states:
        assert closest > 1e-6, f"two states of CH2 differ by only {closest:.3g} eV"
    else:
        assert closest <= 1e-6, "declared not to resolve states, yet all differ"


def inputs_are_not_modified(potential: Potential) -> None:
    """A call leaves its batch, the global dtype and the grad mode as they were."""
    batch = AtomsBatch.from_atoms(sample_systems()).to(potential.device)
    edges = neighbor_list(batch, potential.cutoff)
    before = {
        name: value.clone()
        for name, value in vars(batch).items()
        if isinstance(value, Tensor)
    }
    setting = torch.get_default_dtype(), torch.is_grad_enabled()
    potential(batch, edges)
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == setting
    for name, value in before.items():
        assert torch.equal(value, getattr(batch, name)), f"batch.{name} was modified"


def file_gives_the_same_numbers(potential: Potential) -> None:
    """Save and load are bit-identical."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "potential.safetensors"
        potential.save(path)
        loaded = type(potential).load(path, potential.device)
    # Frozen like the loaded one: autograd orders its sums by what needs a gradient.
    frozen = copy.deepcopy(potential).eval().requires_grad_(False)
    first, second = (evaluate(p, sample_systems()) for p in (frozen, loaded))
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name} differs after loading"


def _crystal() -> Atoms:
    """A rattled triclinic acetylene crystal; the cutoff exceeds half the cell."""
    cell = [[3.9, 0.0, 0.0], [0.7, 3.7, 0.0], [-0.4, 0.6, 4.6]]
    atoms = molecule("C2H2", cell=cell, pbc=True)
    atoms.rattle(0.1, seed=3)
    atoms.info.update(charge=0, spin=1)
    return atoms


def periodic_systems(potential: Potential) -> None:
    """Supercell, lattice translations and stress of a crystal (P4, P8)."""
    if not potential.model.supports_periodic:
        return
    double = potential.dtype == torch.float64
    limit = TOLERANCES[potential.dtype]
    atoms = _crystal()
    out = evaluate(potential, [atoms], ("energy", "forces", "stress"))
    larger = atoms.repeat((2, 2, 2))
    ratio = evaluate(potential, [larger], ("energy",))["energy"] / (8 * out["energy"])
    one = torch.ones_like(ratio)
    _close(ratio, one, 1e-10 if double else 1e-4, "energy of a supercell")
    moved = atoms.copy()
    moved.positions += np.array([[5, -3, 2], [0, 0, 1], [-4, 0, 0], [1, 1, 1]]) @ (
        atoms.cell.array
    )
    again = evaluate(potential, [moved])
    _close(again["energy"], out["energy"], 1e-9 if double else 1e-4, "wrapping")
    _close(again["forces"], out["forces"], limit.force * 10, "wrapping, forces")
    _check_stress(potential, atoms, out["stress"][0].cpu())


def _check_stress(potential: Potential, atoms: Atoms, stress: Tensor) -> None:
    double = potential.dtype == torch.float64
    step, allowed = (1e-5, 1e-6) if double else (2e-3, 5e-4)
    for row, column in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strained = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[row, column] += 0.5 * sign * step
            strain[column, row] += 0.5 * sign * step
            system = atoms.copy()
            system.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            strained.append(system)
        energy = evaluate(potential, strained, ("energy",))["energy"].cpu()
        numeric = (energy[0] - energy[1]) / (2 * step * atoms.get_volume())
        scale = max(1.0, float(stress.abs().max()))
        _close(stress[row, column], numeric, allowed * scale, f"stress {row}{column}")


def _with_head(model: Representation) -> Potential:
    info = TrainingInfo(elements=(1, 6), states=((0, 1),))
    dtype = next(model.parameters()).dtype
    potential = Potential(model, {"energy": EnergyHead(model.n_features)}, {}, info)
    return potential.to(dtype)


#: The contract, in the order in which it is run.
MODEL_CHECKS: tuple[Callable[[Potential], None], ...] = (
    translation,
    rotation_and_reflection,
    permutation,
    batch_equals_singles,
    no_gradient_between_systems,
    edges_beyond_cutoff_count_nothing,
    smooth_at_cutoff,
    forces_are_derivatives,
    angular_momentum_is_conserved,
    second_derivatives_are_finite,
    separated_parts_add_up,
    states_have_energies_of_their_own,
    inputs_are_not_modified,
    file_gives_the_same_numbers,
    periodic_systems,
)


def check_model(model: Potential | Representation) -> list[str]:
    """Hold a model or a potential to the contract.

    Args:
        model: a potential for carbon and hydrogen at least, random or trained weights;
            or a model, which gets an energy head with random weights.

    Returns:
        The names of the checks that passed, all of them.

    Raises:
        AssertionError: naming the check, what was found and what is allowed.
    """
    potential = model if isinstance(model, Potential) else _with_head(model)
    for check in MODEL_CHECKS:
        try:
            check(potential)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error
    return [check.__name__ for check in MODEL_CHECKS]
