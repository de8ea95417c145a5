"""Potentials with dipoles, molecules at rest, and runs whose spectrum is known."""

from functools import cache

import numpy as np
import torch
from ase import units

import mlff
from mlff.batch import AtomsBatch
from mlff.demo import methylene
from mlff.heads import DipoleHead
from mlff.potential import Potential, TrainingInfo
from mlff.trajectory import Frame, Layout, TrajectoryWriter

INFO = TrainingInfo(
    elements=(1, 6),
    states=tuple((q, m) for q in range(-2, 3) for m in range(1, 6)),
)
MODEL = {"name": "cmret", "n_features": 16, "n_layers": 2, "n_radial": 8}

#: ω of one wavenumber, radians per ASE time.
PER_CM = 2 * np.pi * units._c * 1e-13 / units.fs


@cache
def built(scope="global", heads=("energy", "dipole")) -> Potential:
    """Random weights, but forces as stiff as those of molecules; float64."""
    torch.manual_seed(0)
    options = {**MODEL, "scope": scope, "cutoff": 4.0}
    made = Potential.build(options, {}, INFO, torch.float64, heads=heads)
    if "energy" in heads:
        with torch.no_grad():
            made.heads["energy"].linear.weight *= 1000.0
    return made.eval().requires_grad_(False)


@cache
def shining() -> Potential:
    """The shipped model with a dipole head of random weights, float64."""
    shipped = mlff.load("ch2", dtype=torch.float64)
    torch.manual_seed(0)
    head = DipoleHead(shipped.model.n_features).double().requires_grad_(False)
    heads = {"energy": shipped.heads["energy"], "dipole": head}
    references = {1: float(shipped.references[1]), 6: float(shipped.references[6])}
    return Potential(shipped.model, heads, references, shipped.info).eval()


@cache
def relaxed():
    """Methylene at rest: singlet, triplet."""
    frames = [methylene(1.10, 103, 1), methylene(1.08, 133, 3)]
    options = mlff.RelaxOptions(progress=False)
    found = mlff.relax(frames, shining(), 1e-5, options=options)
    assert all(one.converged for one in found)
    return [one.atoms for one in found]


def ringing(path, systems, *, wavenumbers, temperature, n_frames, every=4):
    """Write a run in which every mode of each system swings with the energy kT.

    Wavenumbers are given, as areas do not depend on them. Phases are random.
    """
    rng = np.random.default_rng(0)
    batch = AtomsBatch.from_atoms([one.data.get_atoms() for one in systems])
    masses = torch.cat(
        [torch.from_numpy(one.data.get_atoms().get_masses()) for one in systems]
    )
    n, m = batch.n_atoms, batch.n_systems
    layout = Layout.from_batch(
        batch,
        masses=masses,
        mobile=torch.ones(n, dtype=torch.bool),
        dof=3 * batch.counts(),
        seed=torch.arange(m),
    )
    steps = every * np.arange(n_frames)
    omega = PER_CM * np.asarray(wavenumbers)
    places = []
    for one in systems:
        atoms = one.data.get_atoms()
        shapes = one.modes / np.sqrt(atoms.get_masses())[:, None]
        phases = rng.uniform(0, 2 * np.pi, len(omega))
        angles = steps[:, None] * 0.5 * units.fs * omega + phases
        swings = np.sqrt(2 * units.kB * temperature) / omega * np.cos(angles)
        places.append(atoms.positions + np.einsum("fk,kax->fax", swings, shapes))
    whole = np.concatenate(places, axis=1)
    kinetic = 0.5 * units.kB * temperature * layout.dof
    header = {"timestep_fs": 0.5, "every": every}
    with TrajectoryWriter.create(path, layout, header, n_frames=n_frames) as writer:
        for step, positions in zip(steps, whole, strict=True):
            frame = Frame(
                step=int(step),
                positions=positions,
                momenta=np.zeros((n, 3)),
                cell=layout.cell,
                energy=np.zeros(m),
                kinetic=kinetic,
                heat=np.zeros(m),
                status=np.zeros(m, np.int8),
                status_step=np.full(m, -1),
                state_energies=np.zeros((m, 0)),
            )
            writer.append(frame)
    return path
