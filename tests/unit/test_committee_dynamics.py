"""A bound on deviations: whom it freezes and when, and who may have one."""

import ase.io
import numpy as np
import pytest
from ase.constraints import FixAtoms
from committee_cases import member

import mlff
from mlff.cli import main
from mlff.committee import Committee
from mlff.dynamics.limits import Limits
from mlff.errors import InputError, InputTypeError
from mlff.md import MDOptions, run_md
from mlff.testing.cases import sample_systems

INTEGRATOR = mlff.VelocityVerlet(timestep_fs=0.5, initial_temperature_K=900, seed=3)
WIDE = {"max_force_eV_per_A": 1e6, "max_temperature_K": 1e6}


@pytest.fixture(scope="module")
def members():
    return [member(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def committee(members):
    return Committee(members)


def options(bound, **more):
    limits = Limits(max_deviation_eV_per_A=bound, **WIDE)
    return MDOptions(limits=limits, progress=False, **more)


def widest(committee, systems):
    return [
        np.linalg.norm(one["forces"], axis=1).max()
        for one in mlff.deviations(committee, systems)
    ]


@pytest.fixture(scope="module")
def free(committee, tmp_path_factory):
    """Widest deviation at each step, (n_steps, n_systems), of a run without bound."""
    path = tmp_path_factory.mktemp("md") / "free.h5"
    systems = sample_systems()[:2]
    run_md(
        *(systems, committee, INTEGRATOR),
        n_steps=30,
        trajectory=path,
        every=1,
        options=options(None),
    )
    both = zip(*mlff.Trajectory(path), strict=True)
    return np.array([widest(committee, frames) for frames in both])


def test_a_system_about_which_members_disagree_is_put_back_and_frozen(committee, free):
    system = int(np.argmax(free.max(0) / free[0]))
    other = 1 - system
    bound = 0.5 * (free[0, system] + free[:, system].max())
    first = int(np.argmax(free[:, system] > bound))
    assert first > 1  # on its way, not at the start
    systems = sample_systems()[:2]
    result = run_md(systems, committee, INTEGRATOR, n_steps=30, options=options(bound))
    assert result.frozen[system].step == first - 1
    assert "the committee disagreed" in result.frozen[system].reason
    assert widest(committee, result.atoms)[system] <= bound
    assert widest(committee, result.atoms)[system] == pytest.approx(
        free[first - 1, system], abs=1e-8
    )
    beyond = bool((free[:, other] > bound).any())
    assert (other in result.frozen) == beyond


def test_a_bound_that_is_not_reached_changes_nothing(committee, free):
    systems = sample_systems()[:2]
    runs = [
        run_md(systems, committee, INTEGRATOR, n_steps=10, options=options(bound))
        for bound in (None, 2 * free.max())
    ]
    assert not runs[1].frozen
    for one, other in zip(*(run.atoms for run in runs), strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


def test_fixed_atoms_may_deviate(committee):
    atoms = sample_systems()[1]
    norms = np.linalg.norm(mlff.deviations(committee, [atoms])[0]["forces"], axis=1)
    worst, second = np.argsort(norms)[[-1, -2]]
    bound = 0.5 * (norms[worst] + norms[second])
    run = {"n_steps": 0, "options": options(bound)}
    assert run_md([atoms, atoms], committee, INTEGRATOR, **run).frozen.keys() == {0, 1}
    atoms.set_constraint(FixAtoms([int(worst)]))
    assert not run_md([atoms, atoms], committee, INTEGRATOR, **run).frozen


def test_a_run_without_such_a_bound_can_be_resumed_by_older_and_newer_versions(
    committee, tmp_path
):
    path = tmp_path / "run.h5"
    systems = sample_systems()[:2]
    run = {"trajectory": path, "every": 2, "resume": True}
    run_md(systems, committee, INTEGRATOR, n_steps=4, options=options(None), **run)
    assert "max_deviation_eV_per_A" not in mlff.Trajectory(path).header["limits"]
    with pytest.raises(InputError, match="max_deviation_eV_per_A"):
        run_md(systems, committee, INTEGRATOR, n_steps=8, options=options(1.0), **run)


def test_a_bound_on_deviations_needs_a_committee_and_dynamics(members, committee):
    systems = sample_systems()[:2]
    with pytest.raises(InputTypeError, match=r"max_deviation_eV_per_A.*committee"):
        run_md(systems, members[0], INTEGRATOR, n_steps=1, options=options(1.0))
    limits = Limits(max_deviation_eV_per_A=1.0)
    with pytest.raises(InputError, match="for dynamics"):
        mlff.relax(systems, committee, options=mlff.RelaxOptions(limits=limits))
    for value in (0, -1, float("nan"), "small", True):
        with pytest.raises(InputError, match="max_deviation_eV_per_A"):
            Limits(max_deviation_eV_per_A=value)


def test_run_files_and_commands_take_members_and_the_bound(
    members, tmp_path, monkeypatch
):
    for k in range(2):
        members[k].save(tmp_path / f"{k}.safetensors")
    systems = sample_systems()[:2]
    ase.io.write(tmp_path / "in.xyz", systems, format="extxyz")
    text = 'structures = ["in.xyz"]\nmodel = "0.safetensors,1.safetensors"\n'
    text += 'out = "run"\nensemble = "nve"\nsteps = 2\n'
    text += "[limits]\nmax_deviation_eV_per_A = 1e-6\n"
    (tmp_path / "run.toml").write_text(text)
    assert main(["md", str(tmp_path / "run.toml"), "--quiet"]) == 1
    assert "the committee disagreed" in (tmp_path / "run" / "summary.txt").read_text()
    monkeypatch.chdir(tmp_path)
    command = ["md", "run.toml", "--quiet", "--out", "wide"]
    assert main([*command, "--max-deviation-eV-per-A", "1e6"]) == 0
