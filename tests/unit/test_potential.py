"""The potential: precision, file format, what may be asked, and batched prediction."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

import mlff
from mlff.errors import InputError, InputTypeError, MlffWarning, ModelFileError
from mlff.inference import check_batch, predict
from mlff.models import build_model
from mlff.neighbors import neighbor_list
from mlff.potential import Potential, TrainingInfo, load
from mlff.tensorfile import load_tensors, save_tensors
from mlff.testing.cases import sample_systems

INFO = TrainingInfo(
    elements=(1, 6),
    states=((-1, 2), (0, 1), (0, 2), (0, 3), (1, 2), (2, 1)),
    level_of_theory="test",
    provenance={"seed": 0},
    metrics={"energy_mae_meV": 1.5},
)


@pytest.fixture
def potential():
    torch.manual_seed(0)
    options = {"name": "cmret", "n_features": 16, "n_layers": 2, "n_radial": 8}
    built = Potential.build(options, {1: -13.6, 6: -1027.0}, INFO)
    return built.eval().requires_grad_(False)


def rewritten(path, change):
    """Write the file again with an altered header or tensors and a digest that fits."""
    tensors, header = load_tensors(path)
    change(tensors, header)
    save_tensors(path, tensors, header)


def test_references_stay_float64_in_every_precision(potential):
    for converted in (potential.double(), potential.float(), potential.to("cpu")):
        assert converted.references.dtype == torch.float64
        assert float(converted.references[6]) == -1027.0


def test_float32_resolves_a_tenth_of_a_millivolt_at_a_thousand_volts(potential):
    """Why sums are float64: both precisions agree far below 0.1 meV."""
    systems = sample_systems()
    single = [r["energy"] for r in predict(potential, systems)]
    double = [r["energy"] for r in predict(potential.double(), systems)]
    assert np.abs(np.subtract(single, double)).max() < 1e-5
    assert min(single) < -6000


def test_file_keeps_what_the_weights_have_seen(potential, tmp_path):
    path = tmp_path / "p.safetensors"
    digest = potential.save(path)
    loaded = Potential.load(path, expected_sha256=digest)
    assert loaded.info == INFO
    assert loaded.config == potential.config
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training


def test_float64_is_there_on_request(potential, tmp_path):
    path = tmp_path / "p.safetensors"
    potential.save(path)
    assert Potential.load(path).dtype == torch.float32
    assert Potential.load(path, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(InputError, match="float32 or float64"):
        Potential.load(path, dtype=torch.float16)


def _set(**values):
    return lambda tensors, header: header.update(values)


def _config(**values):
    return lambda tensors, header: header["config"]["model"].update(values)


def _info(**values):
    return lambda tensors, header: header["info"].update(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set(format="other"), "not an mlff potential"),
        (_set(format_version=99), "upgrade"),
        (_set(units={"energy": "Hartree", "length": "Bohr"}), "units"),
        (_set(dtype="float8"), "header"),
        (_set(config={}), "header"),
        (_config(name="os.system"), "header"),
        (_config(cutoff=float("inf")), "header"),
        (_config(cutoff="5"), "header"),
        (_config(n_layers=10**6), "header"),
        (_config(n_features=10**9), "header"),
        (_config(n_layers=1), "tensors"),
        (_config(n_features=32), "tensor"),
        (_config(unheard_of=1), "header"),
        (_info(elements=[]), "header"),
        (_info(elements=[0]), "header"),
        (_info(states=[]), "header"),
        (_info(surplus=1), "header"),
        (lambda tensors, header: tensors.pop("references"), "missing"),
        (lambda t, h: t.update(extra=torch.ones(2)), "not expected"),
        (lambda t, h: t.update(references=t["references"][:100]), "references"),
        (lambda t, h: t.update(references=t["references"].float()), "references"),
    ],
)
def test_unusable_files_are_refused_with_the_reason(potential, tmp_path, change, says):
    path = tmp_path / "p.safetensors"
    potential.save(path)
    rewritten(path, change)
    with pytest.raises(ModelFileError, match=says):
        Potential.load(path)


def test_a_training_state_is_not_a_potential(tmp_path):
    path = tmp_path / "last.safetensors"
    save_tensors(path, {"w": torch.ones(2)}, {"format": "mlff-training"})
    with pytest.raises(ModelFileError, match="not an mlff potential"):
        load(path)


def test_unknown_names_list_what_is_shipped():
    with pytest.raises(ModelFileError, match="shipped"):
        load("no-such-model")
    with pytest.raises(ModelFileError, match="shipped"):
        load("a" * 5000)


@pytest.mark.parametrize("name", [None, 3, b"ch2", ["ch2"]])
def test_what_cannot_name_a_model_is_refused(name):
    with pytest.raises(InputTypeError, match="must be a name or a path"):
        load(name)


def test_unknown_model_and_option_name_the_known_ones():
    with pytest.raises(InputError, match="cmret"):
        build_model("cmrett")
    with pytest.raises(InputError, match="did you mean 'n_features'"):
        build_model("cmret", n_feature=8)


@pytest.mark.parametrize(
    "options",
    [
        {"n_features": 0},
        {"n_features": 7},
        {"n_features": True},
        {"n_heads": 3, "n_features": 16},
        {"cutoff": 0.0},
        {"cutoff": 51},
        {"cutoff": float("nan")},
        {"basis": "fourier"},
        {"envelope": "none"},
        {"attention": "relu"},
        {"attention": "softmax2d", "scope": "local"},
        {"temperature": -1},
        {"scope": "universal"},
        {"charge_spin": "total"},
        {"skip": 1},
    ],
    ids=str,
)
def test_impossible_options_name_the_argument(options):
    with pytest.raises(InputError, match="`"):
        build_model("cmret", **options)


def test_unknown_property_names_the_known_ones(potential):
    with pytest.raises(InputError, match="energies"):
        predict(potential, sample_systems(), ("energy", "dipole"))


def test_untrained_elements_are_refused(potential):
    with pytest.raises(InputError, match=r"\['O'\].*\['H', 'C'\]"):
        predict(potential, [molecule("H2O")], charge=0, spin=1)


def test_unseen_states_are_warned_about_once_and_refused_if_strict(potential):
    atoms = molecule("CH4")
    batch = mlff.AtomsBatch.from_atoms([atoms], charge=-2, spin=3)
    with pytest.warns(MlffWarning, match=r"charge -2, multiplicity 3.*seen"):
        check_batch(potential, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_batch(potential, batch)
    with pytest.raises(InputError, match="extrapolation"):
        check_batch(potential, batch, strict=True)


def test_periodic_systems_are_refused_where_attention_has_no_periodic_meaning():
    options = {"name": "cmret", "n_features": 16, "n_layers": 1, "attention": "gelu"}
    potential = Potential.build(options, {}, INFO)
    atoms = Atoms("C", cell=[3, 3, 3], pbc=True)
    with pytest.raises(InputError, match="scope='local'"):
        predict(potential, [atoms], charge=0, spin=1)
    assert "stress" not in potential.properties


def test_prediction_does_not_depend_on_how_it_is_split(potential):
    systems = sample_systems() * 3
    whole = predict(potential.double(), systems, ("energy", "energies", "forces"))
    split = predict(
        potential, systems, ("energy", "energies", "forces"), max_atoms_per_call=9
    )
    for atoms, one, other in zip(systems, whole, split, strict=True):
        assert isinstance(one["energy"], float)
        assert one["forces"].shape == (len(atoms), 3)
        assert one["forces"].dtype == np.float64
        assert abs(one["energy"] - other["energy"]) < 1e-9
        np.testing.assert_allclose(one["forces"], other["forces"], atol=1e-9)
        np.testing.assert_allclose(one["energies"].sum(), one["energy"], atol=1e-9)


def test_an_empty_list_gives_an_empty_result(potential):
    assert predict(potential, []) == []


def test_coincident_atoms_are_refused(potential):
    atoms = Atoms("CH", positions=[[0, 0, 0], [0, 0, 1e-4]])
    with pytest.raises(InputError, match="Å"):
        predict(potential, [atoms], charge=0, spin=2)


def test_atoms_close_together_stay_finite(potential):
    atoms = Atoms("CH", positions=[[0, 0, 0], [0, 0, 0.1]])
    out = predict(potential, [atoms], charge=0, spin=2)[0]
    assert np.isfinite(out["energy"])
    assert np.isfinite(out["forces"]).all()


def test_a_call_that_keeps_the_graph_gives_a_hessian(potential):
    """Symmetric to rounding, and its rows sum to zero: translations cost nothing."""
    atoms = sample_systems()[0]
    double = potential.double()
    batch = mlff.AtomsBatch.from_atoms([atoms])
    batch = batch.replace(positions=batch.positions.requires_grad_(True))
    edges = neighbor_list(batch, double.cutoff)
    forces = double(batch, edges, create_graph=True)["forces"].flatten()
    rows = [
        torch.autograd.grad(-f, batch.positions, retain_graph=True)[0].flatten()
        for f in forces
    ]
    hessian = torch.stack(rows)
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-10)
    rows_sum = hessian.view(-1, len(atoms), 3).sum(1)
    torch.testing.assert_close(rows_sum, torch.zeros_like(rows_sum), rtol=0, atol=1e-10)


def test_training_info_is_json(potential):
    json.dumps(dataclasses.asdict(INFO))


def test_global_state_of_torch_is_left_alone(potential):
    before = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.random.get_rng_state(),
        torch.backends.cuda.matmul.allow_tf32,
    )
    with torch.no_grad():
        predict(potential, sample_systems())
        assert not torch.is_grad_enabled()
    after = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.random.get_rng_state(),
        torch.backends.cuda.matmul.allow_tf32,
    )
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])
    assert before[4] == after[4]


def test_a_name_in_place_of_a_potential_is_refused_with_the_cure():
    with pytest.raises(InputTypeError, match=r"mlff\.load"):
        predict("ch2", sample_systems())


def test_compositions_outside_training_are_warned_about_once():
    """Elements and states alone do not make a prediction: references come from sums."""
    info = dataclasses.replace(INFO, formulas=("CH2",))
    options = {"name": "cmret", "n_features": 8, "n_layers": 1}
    potential = Potential.build(options, {}, info)
    systems = [molecule("CH4"), molecule("C2H4"), molecule("CH4"), molecule("C2H2")]
    with pytest.warns(MlffWarning, match=r"C2H2, C2H4, CH4: not in .*seen: CH2"):
        predict(potential, systems, charge=0, spin=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(potential, systems, charge=0, spin=1)
        predict(potential, [molecule("CH2_s1A1d")], charge=0, spin=1)


def test_a_state_that_another_molecule_was_seen_in_is_warned_about():
    """CH2⁻ in training says nothing about H2O⁻."""
    info = dataclasses.replace(
        INFO,
        elements=(1, 6, 8),
        states=((-1, 2), (0, 1)),
        formulas=("CH2", "H2O"),
        formula_states={"CH2": ((-1, 2), (0, 1)), "H2O": ((0, 1),)},
    )
    options = {"name": "cmret", "n_features": 8, "n_layers": 1}
    potential = Potential.build(options, {}, info)
    water, carbene = molecule("H2O"), molecule("CH2_s1A1d")
    carbene.arrays.pop("initial_magmoms", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(potential, [carbene, water], charge=[-1, 0], spin=[2, 1])
    with pytest.warns(MlffWarning, match=r"H2O, charge -1, multiplicity 2, was not in"):
        predict(potential, [carbene, water], charge=-1, spin=2)
    potential.info = dataclasses.replace(info, formula_states={"CH2": ()})
    with pytest.warns(MlffWarning, match=r"CH2, charge -1.*\(seen: none\)"):
        predict(potential, [carbene], charge=-1, spin=2)
    again = TrainingInfo.from_json(json.loads(json.dumps(dataclasses.asdict(info))))
    assert again == info


def test_modes_that_the_caller_switched_on_change_nothing(potential):
    expected = predict(potential, sample_systems())
    for mode in (
        torch.inference_mode(),
        torch.no_grad(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        with mode:
            found = predict(potential, sample_systems())
        for one, other in zip(found, expected, strict=True):
            assert one["energy"] == other["energy"]
            np.testing.assert_array_equal(one["forces"], other["forces"])
