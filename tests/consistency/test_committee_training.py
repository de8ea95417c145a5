"""Committees from training to calibration, and the contracts that they keep."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from toy_training import Stop, toy_config, write_toy_data

import mlff
from mlff.cli import main
from mlff.committee import Committee
from mlff.data import load_dataset
from mlff.demo import methylene
from mlff.errors import DataError, InputError
from mlff.report.calibration import (
    Calibration,
    calibrate,
    calibration_table,
    expected_shares,
    plot_calibration,
)
from mlff.testing import check_calculator, check_model
from mlff.train import fit, fit_committee

TOML = """
out = "run"
seed = 7
[data]
files = ["toy.xyz"]
train = 24
validation = 8
test = 12
[model]
name = "cmret"
n_features = 8
n_layers = 1
n_heads = 2
n_radial = 8
[training]
epochs = 2
batch_size = 6
"""


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    return write_toy_data(tmp_path_factory.mktemp("data") / "toy.xyz")


@pytest.fixture(scope="module")
def trained(data_file, tmp_path_factory):
    config = toy_config(data_file, tmp_path_factory.mktemp("whole") / "run")
    return config, fit_committee(config, 2, progress=False)


def member(name, seed):
    model = {"name": name, "n_features": 16, "n_layers": 2, "n_radial": 8}
    info = mlff.TrainingInfo(elements=(1, 6), states=((0, 1), (0, 3), (1, 2), (-1, 2)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = mlff.Potential.build(model, {1: -13.6, 6: -1027.0}, info, torch.float64)
        torch.nn.init.normal_(built.heads["energy"].linear.weight, std=2.0)
    return built.eval().requires_grad_(False)


# Contracts


@pytest.mark.filterwarnings("ignore::mlff.errors.MlffWarning")
@pytest.mark.parametrize("name", ["cmret", "painn"])
def test_a_committee_keeps_the_contract_of_models(name):
    assert check_model(Committee([member(name, seed) for seed in range(2)]))


@pytest.mark.filterwarnings("ignore::mlff.errors.MlffWarning")
def test_the_calculator_of_a_committee_keeps_the_contract_of_calculators():
    committee = Committee([member("cmret", seed) for seed in range(3)])
    assert check_calculator(lambda: mlff.MLFFCalculator(committee), knows_state=True)


def test_relaxed_by_a_committee_the_mean_force_vanishes():
    some = [mlff.load("ch2", dtype=torch.float64) for _ in range(2)]
    for sign, one in zip((1, -1), some, strict=True):
        for weight in one.parameters():
            weight.mul_(1 + 3e-3 * sign)
    committee = Committee(some)
    start = methylene(1.15, 125, 3)
    (relaxed,) = mlff.relax([start], committee, fmax=1e-4)
    assert relaxed.converged
    forces = [mlff.predict(one, [relaxed.atoms])[0]["forces"] for one in some]
    assert np.abs(np.mean(forces, axis=0)).max() < 1e-4
    assert np.abs(forces[0]).max() > 1e-3


# Training


def test_members_differ_in_their_seed_and_share_what_is_held_out(trained):
    config, result = trained
    runs = [json.loads((one.out / "run.json").read_text()) for one in result.members]
    assert [one["config"]["seed"] for one in runs] == [7, 8]
    assert runs[0]["split"] == runs[1]["split"]
    batch = result.held_out.batch
    edges = mlff.neighbors.neighbor_list(batch, result.committee.cutoff)
    alone = [one.potential(batch, edges)["forces"] for one in result.members]
    found = result.committee.members(batch, edges)["forces"]
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=1e-5)
    assert float(found.std(0).max()) > 1e-3
    assert len(result.held_out) == config.data.test


def test_the_first_member_is_the_run_without_a_committee(trained, tmp_path):
    config, result = trained
    plain = fit(dataclasses.replace(config, out=str(tmp_path / "run")), progress=False)
    for name in ("best.safetensors", "run.json"):
        first = (result.members[0].out / name).read_bytes()
        assert first == (plain.out / name).read_bytes()


def test_the_folder_holds_the_committee_and_its_errors(trained):
    _, result = trained
    loaded = mlff.load(result.out / "committee.safetensors")
    assert isinstance(loaded, Committee)
    assert loaded.info.metrics == result.metrics
    assert json.loads((result.out / "committee.json").read_text()) == result.metrics
    again = mlff.evaluate(loaded, result.held_out)
    assert again == result.metrics["test"]
    assert imread(result.out / "committee_parity.png").size


def test_a_stopped_committee_goes_on_to_the_same_bits(
    trained, data_file, tmp_path, monkeypatch, capsys
):
    config, whole = trained
    stopped = dataclasses.replace(config, out=str(tmp_path / "run"))
    steps = 5 * config.training.epochs
    passed = []
    original = mlff.train.fit

    def second_stops(*args, **kwargs):
        if passed:
            Stop(monkeypatch, steps // 2, KeyboardInterrupt())
        passed.append(args)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(mlff.train, "fit", second_stops)
        with pytest.raises(KeyboardInterrupt):
            fit_committee(stopped, 2, progress=False)
    assert not (tmp_path / "run" / "committee.safetensors").exists()
    assert "run the same command" in capsys.readouterr().err
    result = fit_committee(stopped, 2, progress=False)
    name = "committee.safetensors"
    assert (result.out / name).read_bytes() == (whole.out / name).read_bytes()
    with pytest.raises(InputError, match="holds a run"):
        fit_committee(stopped, 2, resume=False, progress=False)


def test_runs_of_before_split_seeds_are_the_same_runs(data_file, tmp_path):
    config = toy_config(data_file, tmp_path / "run")
    assert "split_seed" not in config.identity()["data"]
    of = dataclasses.replace

    def with_seed(seed):
        return of(config, data=of(config.data, split_seed=seed))

    assert with_seed(7).identity() == config.identity()
    assert with_seed(8).identity()["data"]["split_seed"] == 8
    with pytest.raises(InputError, match=r"data\.split_seed"):
        with_seed(-1)


@pytest.mark.parametrize("members", [1, 65, 2.0, True, "4"])
def test_impossible_numbers_of_members_are_refused(data_file, tmp_path, members):
    with pytest.raises(InputError, match="`members` must be an integer in 2 … 64"):
        fit_committee(toy_config(data_file, tmp_path / "run"), members)


def test_a_committee_is_not_replaced_by_a_smaller_one(trained):
    config, whole = trained
    (whole.out / "member_2").mkdir()
    try:
        with pytest.raises(InputError, match=r"`members`=2.*holds more of them"):
            fit_committee(config, 2, progress=False)
    finally:
        (whole.out / "member_2").rmdir()


# Calibration


def drawn(n_members, bias=0.0, n=40_000):
    """Truth and members drawn from the same distributions, of many widths."""
    rng = np.random.default_rng(0)
    width = np.exp(rng.normal(0.0, 1.0, n))
    members = width * rng.normal(size=(n_members, n))
    truth = width * rng.normal(size=n) * (1 + bias)
    return Calibration(
        name="energy",
        unit="meV",
        errors=members.mean(0) - truth,
        deviations=members.std(0, ddof=1),
        n_members=n_members,
    )


@pytest.mark.parametrize("n_members", [3, 4, 64])
def test_a_committee_from_one_distribution_with_the_truth_is_calibrated(n_members):
    found = drawn(n_members)
    assert found.scale == pytest.approx(np.sqrt(1 + 1 / n_members), rel=0.06)
    shares = found.within(found.scale), found.within(2 * found.scale)
    assert shares == pytest.approx(expected_shares(n_members), abs=0.02)
    deviation, error, uncertain = found.bins()
    if n_members == 64:  # with few members σ itself is too uncertain for its bins
        assert np.abs(error / deviation / found.scale - 1).max() < 0.15
    assert (np.diff(deviation) > 0).all()
    assert (uncertain < 0.05 * error).all()


def test_errors_larger_than_the_deviations_are_noticed():
    found = drawn(8, bias=2.0)
    assert found.scale > 2.5
    assert found.within(1) < 0.35
    assert found.correlation > 0.4


def test_many_members_know_the_normal_shares():
    assert expected_shares(10_000) == pytest.approx((0.6827, 0.9545), abs=1e-3)
    assert expected_shares(4) == pytest.approx((0.609, 0.861), abs=1e-3)


def test_calibration_is_about_predictions_and_labels(trained, data_file):
    _, result = trained
    data = load_dataset([str(data_file)])
    energy, forces = calibrate(result.committee, data)
    out = mlff.evaluate(result.committee, data)["all"]
    assert energy.rmse == pytest.approx(out["energy_rmse_meV"], rel=1e-6)
    assert forces.rmse == pytest.approx(out["forces_rmse_meV_per_A"], rel=1e-6)
    assert (len(energy.errors), energy.unit, forces.unit) == (44, "meV", "meV/Å")
    table = calibration_table([energy, forces])
    assert "58% and 82%" not in table  # which two members do not reach
    assert f"{energy.rmse:.3g}" in table
    without = dataclasses.replace(data, labels={"dipole": data.labels["energy"]})
    with pytest.raises(DataError, match="neither energies nor forces"):
        calibrate(result.committee, without)


def test_forces_that_are_zero_by_symmetry_do_not_count(trained):
    frames = [methylene(1.1, angle, 1) for angle in (100, 110, 120, 130)]
    for atoms in frames:
        assert not atoms.positions[:, 2].any()
        atoms.info.update(REF_energy=-1060.0, level_of_theory="test")
        atoms.arrays["REF_forces"] = np.zeros((3, 3))
    data = mlff.data.label_dataset(
        frames, ["a", "b", "c", "d"], None, trust_labels=True
    )
    _, forces = calibrate(trained[1].committee, data)
    assert len(forces.errors) == 4 * 6


def test_members_that_are_the_same_have_a_picture_too(tmp_path):
    alike = Calibration(
        name="forces",
        unit="meV/Å",
        errors=np.linspace(-1, 1, 50),
        deviations=np.zeros(50),
        n_members=2,
    )
    plot_calibration(tmp_path / "alike.png", [alike, drawn(4, n=30)])
    assert (
        imread(tmp_path / "alike.png").shape[1]
        > imread(tmp_path / "alike.png").shape[0]
    )
    assert alike.to_json()["scale"] is None
    assert "inf" in calibration_table([alike])


# Commands


def test_commands_train_a_committee_and_compare_errors_with_deviations(
    data_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.xyz").write_bytes(data_file.read_bytes())
    (tmp_path / "run.toml").write_text(TOML)
    assert main(["train", "run.toml", "--members", "2"]) == 0
    said = capsys.readouterr()
    assert "member 2 of 2" in said.err
    assert "committee, test" in said.out
    assert "within 2σ" in said.out
    assert imread("run/committee_calibration.png").size
    command = ["evaluate", "run/committee.safetensors", "toy.xyz"]
    assert main([*command, "--calibration", "c.png", "--out", "c.json"]) == 0
    assert "errors against deviations" in capsys.readouterr().out
    measured = json.loads((tmp_path / "c.json").read_text())
    assert measured["calibration"]["forces"]["unit"] == "meV/Å"
    assert measured["calibration"]["energy"]["n"] == 44
    assert imread("c.png").size
    assert main([*command, "--calibration", "c.png"]) == 2
    assert "c.png exists" in capsys.readouterr().err
    alone = ["evaluate", "run/member_0/best.safetensors", "toy.xyz"]
    assert main([*alone, "--calibration", "d.png"]) == 2
    assert "`calibration` needs a committee" in capsys.readouterr().err
    both = "run/member_0/best.safetensors,run/member_1/best.safetensors"
    assert main(["info", both]) == 0
    shown = capsys.readouterr().out
    assert "2 members of" in shown
    assert shown.count("sha256") == 2
