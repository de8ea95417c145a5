"""Small trajectories for the tests: five systems of different sizes and states."""

import numpy as np

from mlff.trajectory import Frame, Layout, TrajectoryWriter

HEADER = {"integrator": "VelocityVerlet", "timestep_fs": 0.5, "every": 4}

SYSTEMS = [[6, 1, 1], [8, 1], [6, 1, 1], [26], [6, 1, 1, 1, 1]]
N_ATOMS = sum(map(len, SYSTEMS))
STATES = ((0, 1), (0, 3))


def layout(**changes):
    n = len(SYSTEMS)
    numbers = np.concatenate(SYSTEMS)
    mobile = np.ones(N_ATOMS, bool)
    mobile[[3, 9, 12]] = False
    content = {
        "numbers": numbers,
        "ptr": np.cumsum([0, *map(len, SYSTEMS)]),
        "masses": 2.0 * numbers,
        "mobile": mobile,
        "cell": np.array([np.diag([9.0, 9, 9]) * (k % 2) for k in range(n)]),
        "pbc": np.array([[k % 2 == 1, False, k == 3] for k in range(n)]),
        "charge": np.array([0, -1, 0, 2, 1]),
        "multiplicity": np.array([1, 1, 3, 5, 2]),
        "dof": np.array([9.0, 3, 9, 0, 9]),
        "seed": np.arange(n) << 40,
        "names": [f"structure/Å {k}.xyz" for k in range(n)],
        "states": STATES,
        "variable_cell": True,
    }
    return Layout(**{**content, **changes})


def frame(k, layout=None, **changes):
    """Frame number ``k``: noise that depends on it alone."""
    n, m = (N_ATOMS, len(SYSTEMS)) if layout is None else _sizes(layout)
    rng = np.random.default_rng(k)
    content = {
        "step": 4 * k,
        "positions": rng.normal(size=(n, 3)) * 3,
        "momenta": rng.normal(size=(n, 3)),
        "cell": np.eye(3) * rng.uniform(8, 9, size=(m, 1, 1)),
        "energy": -1000 + rng.normal(size=m),
        "kinetic": rng.uniform(size=m),
        "heat": rng.normal(size=m),
        "status": np.zeros(m, np.int8),
        "status_step": np.full(m, -1),
        "state_energies": rng.normal(size=(m, 2)),
    }
    return Frame(**{**content, **changes})


def _sizes(layout):
    return layout.n_atoms, layout.n_systems


def write(path, n=7, capacity=10, frame=frame, **changes):
    with TrajectoryWriter.create(
        path, layout(**changes), HEADER, n_frames=capacity
    ) as writer:
        for k in range(n):
            writer.append(frame(k))
    return path


def same(one, other):
    """Whether two frames are equal to the last bit."""
    return all(
        np.array_equal(value, getattr(other, name)) for name, value in vars(one).items()
    )
