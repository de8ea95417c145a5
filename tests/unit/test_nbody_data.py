"""The charged-particle generator: physics, purity, and what trivial answers score."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlff.errors import DataError, InputError
from mlff.nbody.data import load_nbody

RECIPE = Path(__file__).parents[2] / "data_gen" / "nbody.py"


def load_recipe():
    spec = importlib.util.spec_from_file_location("nbody_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


nbody = load_recipe()


# Physics


def test_trajectories_start_as_they_should():
    positions, velocities, charges = nbody.starts("C", 0, "train", range(600))
    assert positions.shape == velocities.shape == (600, 5, 3)
    assert abs(positions.mean()) < 0.05
    assert positions.std() == pytest.approx(1.0, abs=0.03)
    np.testing.assert_allclose(np.linalg.norm(velocities, axis=2), 0.5, rtol=1e-14)
    assert abs(velocities.mean()) < 0.02
    assert set(np.unique(charges)) == {-1.0, 1.0}
    assert abs(charges.mean()) < 0.1


def two_particles(signs, apart, speed=0.0):
    positions = np.array([[[apart / 2, 0, 0], [-apart / 2, 0, 0]]])
    velocities = np.array([[[-speed, 0, 0], [speed, 0, 0]]])
    return positions, velocities, np.array([signs], float)


@pytest.mark.parametrize(("signs", "direction"), [((1, 1), 1), ((1, -1), -1)])
def test_like_charges_part_and_unlike_ones_meet(signs, direction):
    made = nbody.simulate(two_particles(signs, 2.0), [0])
    # 100 steps at a force of 1/4: the first frame is at t = 0.1.
    moved = made.positions[0, 0, 0, 0] - 1.0
    assert moved == pytest.approx(direction * 0.25 * 0.1**2 / 2, rel=0.02)
    assert made.velocities[0, 0, 0, 0] == pytest.approx(direction * 0.025, rel=0.01)


def energies(made):
    x, v, q = made.positions, made.velocities, made.charges
    kinetic = 0.5 * np.square(v).sum((2, 3))
    i, j = np.triu_indices(x.shape[2], 1)
    apart = np.linalg.norm(x[:, :, i] - x[:, :, j], axis=3)
    return kinetic + (q[:, None, i] * q[:, None, j] / apart).sum(2), apart.min((1, 2))


@pytest.fixture(scope="module")
def flight():
    return nbody.simulate(nbody.starts("C", 4, "test", range(200)), range(0, 30))


def test_energy_and_momentum_are_kept_without_close_encounters(flight):
    energy, closest = energies(flight)
    calm = closest > 0.4
    assert 40 < calm.sum() < 200
    drift = np.abs(energy - energy[:, :1]).max(1)[calm]
    assert np.median(drift) < 3e-3
    momentum = flight.velocities.sum(2)
    np.testing.assert_allclose(momentum[calm], momentum[calm][:, :1].repeat(30, 1))


def test_forces_are_cut_at_each_component_or_at_their_length():
    x = np.zeros((3, 2, 1))
    x[:, 0, 0] = 0.03, 0.02, 0.01
    charges = np.array([[1.0], [1.0]])
    whole = x[:, 0, 0] / np.linalg.norm(x[:, 0, 0]) ** 3
    assert abs(whole).max() > 100
    by_component = nbody._Coulomb(charges, "component")(x)[:, 0, 0]
    np.testing.assert_allclose(by_component, np.clip(whole, -100, 100))
    by_norm = nbody._Coulomb(charges, "norm")(x)[:, 0, 0]
    np.testing.assert_allclose(by_norm, 100 * whole / np.linalg.norm(whole))
    far = nbody._Coulomb(charges, "norm")(x * 10)[:, 0, 0]
    np.testing.assert_allclose(far, whole / 100)


def test_walls_reflect_and_their_absence_does_not():
    fast = two_particles((1, 1), 9.8, speed=-3.0)
    kept = nbody.simulate(fast, [0, 1], walls=True)
    free = nbody.simulate(fast, [0, 1])
    assert np.abs(kept.positions).max() <= 5.0
    assert kept.velocities[0, 1, 0, 0] < -2.9 < 2.9 < free.velocities[0, 1, 0, 0]
    # Where it would be, mirrored at the wall, but for the weak force at a distance.
    mirrored = 10 - free.positions[0, 1, 0, 0]
    assert kept.positions[0, 1, 0, 0] == pytest.approx(mirrored, abs=1e-3)


# Purity


@pytest.mark.parametrize("name", ["B", "C"])
def test_a_trajectory_depends_on_its_index_alone(name, monkeypatch):
    many = nbody.joined(list(nbody.make_part(name, "train", 9, seed=2)))
    monkeypatch.setattr(nbody, "_CHUNK", 2)
    few = nbody.joined(list(nbody.make_part(name, "train", 5, seed=2)))
    for key in ("positions", "velocities", "charges"):
        assert np.array_equal(getattr(few, key), getattr(many, key)[:5])
    assert not np.array_equal(many.positions[0], many.positions[1])


def test_seeds_parts_and_variants_have_trajectories_of_their_own():
    first = [
        nbody.starts(name, seed, part, [7])[0].tobytes()
        for name in ("B", "C")
        for seed in (0, 1)
        for part in ("train", "test")
    ]
    assert len(set(first)) == len(first)


def test_the_published_starts_are_drawn_in_the_published_order():
    positions, velocities, charges = nbody.starts("C", None, "train", range(2))
    random = np.random.RandomState(43)
    expected = random.choice([-1.0, 0.0, 1.0], size=(5, 1), p=[0.5, 0, 0.5])
    assert charges[0].tolist() == expected[:, 0].tolist()
    assert np.array_equal(positions[0], random.randn(3, 5).T)
    along = random.randn(3, 5).T
    np.testing.assert_allclose(velocities[0] / 0.5, along / norm(along))
    assert nbody.starts("C", None, "test", range(2000))[0].shape == (2000, 5, 3)


def norm(vectors):
    return np.linalg.norm(vectors, axis=-1, keepdims=True)


# What trivial answers score


def test_the_published_test_set_scores_as_published():
    """The best x + a·v of EGNN's paper has 0.0819 on the whole set."""
    starts = nbody.starts("C", None, "test", range(2000))
    assert starts[0].std() == pytest.approx(1.0, abs=0.02)
    made = nbody.simulate(tuple(a[:400] for a in starts), [30, 40])
    errors = nbody.trivial_errors(made, 1.0)["best x + a v"]
    assert abs(errors.mean() - 0.0819) < 3 * standard_error(errors)


def standard_error(values):
    return values.std() / np.sqrt(len(values))


@pytest.mark.parametrize(
    ("name", "walls"), [("B", False), ("B", True), ("C", False), ("D", False)]
)
def test_trivial_answers_score_what_is_known(name, walls):
    part = "test"
    made = nbody.joined(list(nbody.make_part(name, part, 400, seed=0, walls=walls)))
    found = nbody.trivial_errors(made, nbody.VARIANTS[name].time)
    known = nbody.KNOWN["B with walls" if walls else name]
    for (answer, errors), value in zip(found.items(), known, strict=True):
        allowed = 3 * standard_error(errors) + 0.05 * value  # as sure as it is known
        assert abs(errors.mean() - value) < allowed, answer
        assert allowed < 0.6 * value, answer
    assert found["best x + a v"].mean() < found["no motion"].mean()


# Files


@pytest.fixture(scope="module")
def b_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("nbody") / "b.npz"
    nbody.write(path, *nbody.make("B", (6, 0, 4), seed=3))
    return path


def test_a_file_holds_what_was_made_and_no_pickles(b_file):
    data = load_nbody(b_file, "B")
    assert data.validation is None
    assert (len(data.train), len(data.test)) == (6, 4)
    assert (data.train.n_starts, data.train.horizon) == (43, 5)
    assert (data.test.n_starts, data.test.horizon) == (1, 1)
    assert data.meta["seed"] == 3
    assert data.meta["time"] == 0.5
    whole = nbody.joined(list(nbody.make_part("B", "train", 6, seed=3)))
    torch.testing.assert_close(
        data.train.positions, torch.from_numpy(whole.positions).float()
    )
    again = b_file.with_name("again.npz")
    nbody.write(again, *nbody.make("B", (6, 0, 4), seed=3))
    assert again.read_bytes() == b_file.read_bytes()


def test_test_starts_of_b_are_spread_over_the_trajectory():
    (made,) = nbody.make_part("B", "test", 4, seed=3)
    start = nbody.starts("B", 3, "test", range(4))
    whole = nbody.simulate(start, range(48))
    for row, frame in enumerate((0, 10, 21, 32)):
        pair = whole.positions[row, [frame, frame + 5]]
        assert np.array_equal(made.positions[row], pair)


def test_a_window_is_a_start_and_what_comes_a_horizon_later(b_file):
    train = load_nbody(b_file, "B").train
    windows = train.windows(torch.tensor([4, 1]), torch.tensor([42, 7]))
    x, v = train.positions, train.velocities
    assert torch.equal(windows.positions, torch.cat((x[4, 42], x[1, 7])))
    assert torch.equal(windows.displacements[5:], x[1, 12] - x[1, 7])
    assert torch.equal(windows.accelerations[:5], v[4, 47] - v[4, 42])
    assert torch.equal(windows.charges[5:], train.charges[1])
    first, second = windows.split(5)
    assert torch.equal(second.displacements, windows.displacements[5:])
    assert len(first.charges) == 5


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, InputError, r"python data_gen/nbody\.py C"),
        (b"no archive", DataError, "not an N-body data file"),
        ("B", DataError, "holds variant 'B', but `variant` is 'C'"),
        ("other", DataError, "not an N-body data file"),
        ("damaged", DataError, "test velocities are not all finite"),
    ],
)
def test_another_file_is_an_error(tmp_path, b_file, content, error, message):
    path = tmp_path / "data.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "B":
        path = b_file
    elif content == "other":
        np.savez(path, x=np.zeros(3))
    elif content == "damaged":
        arrays, meta = nbody.make("D", (2, 0, 2))
        arrays["test_velocities"][0, 0, 0] = np.nan
        nbody.write(path, arrays, {**meta, "variant": "C"})
    with pytest.raises(error, match=message):
        load_nbody(path, "C")


def as_if_whole(**changes):
    """A file of variant D, of entries that are changed, or left out if ``None``."""
    arrays, meta = nbody.make("D", (4, 2, 2))
    for key, value in changes.items():
        table = arrays if key in arrays else meta
        table[key] = value
        if value is None:
            del table[key]
    return arrays, meta


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_velocities": None}, "array train_velocities is missing"),
        ({"validation_charges": None}, "array validation_charges is missing"),
        (
            {f"test_{key}": None for key in ("positions", "velocities", "charges")},
            "array test_positions is missing",
        ),
        ({"variant": None}, "`variant` is missing in its meta"),
        ({"horizon": None}, "`horizon` is missing in its meta"),
        ({"baselines": None}, "`baselines` is missing in its meta"),
        ({"baselines": 0.1}, "`baselines` in its meta must be a table, got 0.1"),
        ({"baselines": {}}, "needs a number for 'best x \\+ a v', got None"),
        (
            {"baselines": {"best x + a v": 1.0, "other": float("nan")}},
            "needs a number for 'other', got nan",
        ),
        ({"horizon": {"train": 1, "validation": 1}}, "`horizon` of test .*, got None"),
        ({"horizon": {"train": 1, "test": 1}}, "`horizon` of validation .*, got None"),
        (
            {"horizon": {"train": 2, "validation": 1, "test": 1}},
            "`horizon` of train .* less than the 2 frames, got 2",
        ),
        ({"horizon": {"train": 0}}, "`horizon` of train .*, got 0"),
        ({"horizon": {"train": True}}, "`horizon` of train .*, got True"),
        (
            {"train_charges": np.ones((3, 5), np.float32)},
            r"train_charges must have the shape \(4, 5\).*, got \(3, 5\)",
        ),
        (
            {"train_velocities": np.ones((4, 2, 5, 2), np.float32)},
            r"train_velocities must have the shape \(4, 2, 5, 3\)",
        ),
        (
            {"train_positions": np.ones((0, 2, 5, 3), np.float32)},
            r"train_positions must have the shape .*, got \(0, 2, 5, 3\)",
        ),
        ({"train_positions": np.float32(1)}, r"train_positions .*, got \(\)"),
        ({"test_charges": np.ones((2, 5), int)}, "float32 or float64, got int64"),
        ({"test_charges": np.array(["a"])}, "float32 or float64, got <U1"),
    ],
)
def test_an_incomplete_file_is_an_error_that_says_what_is_missing(
    tmp_path, changes, message
):
    path = tmp_path / "d.npz"
    nbody.write(path, *as_if_whole())
    assert len(load_nbody(path, "D").validation) == 2
    nbody.write(path, *as_if_whole(**changes))
    with pytest.raises(DataError, match=message) as told:
        load_nbody(path, "D")
    assert str(path) in str(told.value)
    assert "python data_gen/nbody.py D" in str(told.value)


def test_an_array_or_a_folder_is_no_data_file(tmp_path):
    np.save(tmp_path / "arr.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"arr\.npy is not an N-body data file"):
        load_nbody(tmp_path / "arr.npy", "C")
    with pytest.raises(InputError, match="cannot read"):
        load_nbody(tmp_path, "C")


def test_a_damaged_byte_is_an_error_or_harmless(tmp_path):
    path = tmp_path / "d.npz"
    nbody.write(path, *as_if_whole())
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        try:
            load_nbody(path, "D")
        except DataError:
            refused += 1
    assert refused > len(content) / 97 / 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["C", "--out", "nope/x.npz"], "--out must be a file in a folder .*nope/x.npz"),
        (["C", "--out", "."], "--out must be a file in a folder to write to, got ."),
        (["C", "--seed", "-1"], "--seed must be ≥ 0, got -1"),
        (["C", "--published", "--seed", "5"], "--seed: not allowed with .*--published"),
        (["C", "--seed", "0", "--published"], "--published: not allowed with .*--seed"),
    ],
)
def test_the_script_refuses_arguments_before_it_computes(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nbody.py", *arguments])
    monkeypatch.delattr(nbody, "make")
    with pytest.raises(SystemExit, match="2"):
        nbody.main()
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "seed"), [([], 0), (["--seed", "5"], 5), (["--published"], None)]
)
def test_the_script_takes_its_seed_from_its_arguments(
    tmp_path, monkeypatch, arguments, seed
):
    out = tmp_path / "c.npz"
    monkeypatch.setattr(sys, "argv", ["nbody.py", "C", "--out", str(out), *arguments])
    make, asked = nbody.make, []

    def few(name, sizes, seed, **options):
        asked.append((sizes, seed))
        return make(name, (2, 0, 2), 1, **{**options, "progress": False})

    monkeypatch.setattr(nbody, "make", few)
    nbody.main()
    assert asked == [((3000, 2000, 2000), seed)]
    assert len(load_nbody(out, "C").train) == 2


def test_the_script_refuses_what_a_variant_has_not():
    for arguments in (["C", "--walls"], ["B", "--published"]):
        command = [sys.executable, str(RECIPE), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"variant {arguments[0]}" in done.stderr or "not of B" in done.stderr


def test_meta_says_what_trivial_answers_score():
    arrays, meta = nbody.make("D", (0, 0, 8), cap="norm")
    made = nbody.joined(list(nbody.make_part("D", "test", 8, cap="norm")))
    expected = nbody.trivial_errors(made, 0.2)
    assert meta["baselines"]["no motion"] == pytest.approx(expected["no motion"].mean())
    assert sorted(arrays) == ["test_charges", "test_positions", "test_velocities"]
    assert json.loads(json.dumps(meta)) == meta
