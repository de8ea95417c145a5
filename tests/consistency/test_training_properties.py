"""Training on dipoles, polarizabilities and spatial extents, alone or with energies."""

import json

import ase.io
import numpy as np
import pytest
from toy_training import changed, toy_config

import mlff
from mlff.errors import DataError, InputError, InputTypeError
from mlff.testing.labelled import labelled_frames
from mlff.train import TrainConfig, TrainingConfig, evaluate, fit


def with_properties(frames):
    """Point charges, and one polarizability for each element: what heads can learn."""
    for atoms in frames:
        center = atoms.numbers @ atoms.positions / atoms.numbers.sum()
        place = atoms.positions - center
        charges = np.where(atoms.numbers == 1, 0.1, -0.2)
        alpha = np.where(atoms.numbers == 1, 0.6, 1.4)
        atoms.info["REF_dipole"] = charges @ place
        atoms.info["REF_polarizability"] = alpha.sum() * np.eye(3)
        atoms.info["REF_spatial_extent"] = float(1.5 * (place**2).sum() + len(atoms))
    return frames


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "toy.xyz"
    ase.io.write(path, with_properties(labelled_frames(44)), format="extxyz")
    return path


PROPERTIES = ("dipole", "polarizability", "spatial_extent")


def test_properties_are_learned_together_and_alone(data_file, tmp_path):
    config = changed(
        toy_config(data_file, tmp_path / "run"),
        epochs=40,
        energy_weight=0.0,
        forces_weight=0.0,
        property_weights=dict.fromkeys(PROPERTIES, 1.0),
    )
    result = fit(config, progress=False)
    assert set(result.potential.heads) == set(PROPERTIES)
    metrics = result.metrics["test"]["all"]
    labels = mlff.data.load_dataset([str(data_file)], properties=PROPERTIES).labels
    for name, unit, factor in (
        ("dipole", "mD", 1e3 / mlff.units.DEBYE),
        ("polarizability", "A3", 1.0),
        ("spatial_extent", "A2", 1.0),
    ):
        spread = factor * float((labels[name] - labels[name].mean(0)).abs().mean())
        assert metrics[f"{name}_mae_{unit}"] < 0.5 * spread, name
    assert "energy_mae_meV" not in metrics
    assert (tmp_path / "run" / "parity.png").stat().st_size > 5000
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    assert header.endswith("dipole_mae_mD,polarizability_mae_A3,spatial_extent_mae_A2")


def test_energies_forces_and_a_derived_property_share_one_model(data_file, tmp_path):
    config = changed(
        toy_config(data_file, tmp_path / "run"),
        epochs=2,
        property_weights={"dipole": 1.0},
    )
    result = fit(config, progress=False)
    assert set(result.potential.heads) == {"energy", "dipole"}
    found = evaluate(result.potential, data_file)["all"]
    assert {n.partition("_mae_")[0] for n in found if "_mae_" in n} == {
        "energy",
        "forces",
        "dipole",
    }
    atoms = ase.io.read(data_file)
    atoms.calc = mlff.MLFFCalculator(result.potential)
    assert atoms.get_dipole_moment().shape == (3,)
    assert np.isfinite(atoms.get_potential_energy())


def test_a_norm_is_enough_to_learn_a_vector_from(data_file, tmp_path):
    frames = ase.io.read(data_file, ":")
    for atoms in frames:
        atoms.info["mu"] = float(np.linalg.norm(atoms.info.pop("REF_dipole")))
    path = tmp_path / "norms.xyz"
    ase.io.write(path, frames, format="extxyz")
    config = toy_config(path, tmp_path / "run")
    keys = mlff.data.LabelKeys(others={"dipole_norm": "mu"})
    data = mlff.train.DataConfig(
        files=(str(path),), train=24, validation=8, test=12, keys=keys
    )
    config = TrainConfig(
        **{
            **vars(config),
            "data": data,
            "training": TrainingConfig(
                epochs=2,
                energy_weight=0,
                forces_weight=0,
                property_weights={"dipole_norm": 1.0},
            ),
        }
    )
    result = fit(config, progress=False)
    assert set(result.potential.heads) == {"dipole"}
    assert "dipole_norm_mae_mD" in result.metrics["test"]["all"]


def test_a_tensor_may_be_nine_numbers_in_a_row(data_file):
    frames = ase.io.read(data_file, ":")
    first = mlff.data.label_dataset(frames, properties=("polarizability",))
    for atoms in frames:
        atoms.info["REF_polarizability"] = atoms.info["REF_polarizability"].ravel()
    second = mlff.data.label_dataset(frames, properties=("polarizability",))
    assert second.labels["polarizability"].shape == (44, 3, 3)
    assert first.labels["polarizability"].equal(second.labels["polarizability"])


def test_frames_without_the_label_are_named(data_file, tmp_path):
    frames = ase.io.read(data_file, ":")
    del frames[3].info["REF_dipole"]
    path = tmp_path / "partial.xyz"
    ase.io.write(path, frames, format="extxyz")
    config = changed(
        toy_config(path, tmp_path / "run"), property_weights={"dipole": 1.0}
    )
    with pytest.raises(DataError, match=r"1 of 44 frames have no `REF_dipole`.*3"):
        fit(config, progress=False)


def test_a_run_continues_with_its_properties(data_file, tmp_path):
    config = changed(
        toy_config(data_file, tmp_path / "run"),
        epochs=2,
        property_weights={"dipole": 0.5},
    )
    fit(config, progress=False)
    with pytest.raises(InputError, match=r"property_weights.dipole: 0.5 → 1.0"):
        fit(changed(config, property_weights={"dipole": 1.0}), progress=False)


def test_a_run_of_an_older_version_is_recognised(data_file, tmp_path):
    """Settings that did not exist then are not written where they say nothing."""
    config = toy_config(data_file, tmp_path / "run")
    assert "property_weights" not in config.identity()["training"]
    fit(changed(config, epochs=1), progress=False)
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "property_weights" not in saved["config"]["training"]


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        ({"magnetization": 1.0}, InputError, "got 'magnetization'"),
        ({"energy": 1.0}, InputError, "got 'energy'"),
        ({"dipole": "high"}, InputTypeError, "property_weights.dipole"),
        ({"dipole": -1.0}, InputError, "property_weights.dipole"),
    ],
)
def test_weights_that_mean_nothing_are_named(weights, error, text):
    with pytest.raises(error, match=text):
        TrainingConfig(epochs=1, property_weights=weights)


def test_something_must_be_learned():
    with pytest.raises(InputError, match="no other weight"):
        TrainingConfig(epochs=1, energy_weight=0, forces_weight=0)
