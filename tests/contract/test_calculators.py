"""The calculator contract: kept by ours and by a toy, and toys that break each rule."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from toy_calculators import BROKEN, Toy, Trap

from mlff.calculator import MLFFCalculator, SumCalculator
from mlff.errors import InputError
from mlff.models import MODELS
from mlff.potential import Potential, TrainingInfo
from mlff.testing.calculator import CHECKS, STATE_CHECKS, Subject, check_calculator

ALL_CHECKS = (*CHECKS, *STATE_CHECKS)


def crystals():
    """Two cells, of two and five atoms, oblique, with atoms outside."""
    oblique = [[3.4, 0.0, 0.0], [0.9, 3.6, 0.0], [-0.5, 0.7, 3.9]]
    first = Atoms("CH", [[0.1, 0.2, -0.3], [1.0, 4.1, 1.2]], cell=oblique, pbc=True)
    first.info.update(charge=0, spin=2)
    places = np.random.default_rng(5).random((5, 3)) @ np.array(oblique) * 1.2
    second = Atoms("C2H3", places, cell=np.array(oblique) * 1.2, pbc=True)
    second.info.update(charge=1, spin=1)
    return [first, second]


def _name(item):
    return item.__name__


def test_the_toy_keeps_every_rule_for_molecules_and_crystals():
    names = [check.__name__ for check in ALL_CHECKS]
    assert check_calculator(Toy, knows_state=True) == names
    assert check_calculator(Toy, crystals(), knows_state=True) == names


def test_every_check_has_a_calculator_that_it_must_catch():
    assert set(BROKEN) == {check.__name__ for check in ALL_CHECKS}


@pytest.mark.parametrize(
    ("name", "broken"),
    [(name, broken) for name in BROKEN for broken in BROKEN[name]],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_broken_calculator_is_caught(name, broken):
    skip = {check.__name__ for check in ALL_CHECKS} - {name}
    systems = [*Subject.of(Toy).systems, *crystals()]
    with pytest.raises(AssertionError, match=name):
        check_calculator(broken, systems, knows_state=True, skip=skip)


def test_the_report_names_every_failed_check_at_once():
    with pytest.raises(AssertionError) as caught:
        check_calculator(Trap)
    report = str(caught.value)
    assert "translation_changes_nothing" in report
    assert "forces_are_minus_the_gradient" in report
    assert "permutation" not in report


def test_wrong_requests_are_refused():
    with pytest.raises(InputError, match="names no check"):
        check_calculator(Toy, skip=["forces"])
    with pytest.raises(InputError, match="`precision`"):
        check_calculator(Toy, precision="float16")
    with pytest.raises(InputError, match="at least two"):
        check_calculator(Toy, crystals()[:1])


def _potential(dtype, **options):
    states = tuple(itertools.product(range(-3, 6), range(1, 13)))
    info = TrainingInfo(elements=(1, 6), states=states)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        potential = Potential.build(
            {"name": "cmret", "n_features": 8, "n_layers": 2, "n_radial": 8, **options},
            {1: -13.6, 6: -1027.0},
            info,
            dtype,
        )
        # Fresh weights give forces of 1e-3 eV/Å: no tolerance would mean anything.
        torch.nn.init.normal_(potential.heads["energy"].linear.weight, std=20.0)
    return potential


CASES = {
    "molecules-float64": (torch.float64, {"cutoff": 5.0}, None),
    "molecules-float32": (torch.float32, {"cutoff": 5.0}, None),
    "crystals-float64": (torch.float64, {"cutoff": 3.0, "scope": "local"}, crystals),
}


@pytest.fixture(scope="module", params=CASES)
def subject(request):
    dtype, options, systems = CASES[request.param]
    potential = _potential(dtype, **options)
    return Subject.of(
        lambda: MLFFCalculator(potential),
        None if systems is None else systems(),
        request.param.split("-")[1],
    )


@pytest.mark.parametrize("check", ALL_CHECKS, ids=_name)
def test_mlff_calculator_keeps(check, subject):
    check(subject)


def test_a_sum_of_calculators_keeps_every_rule_but_parameters_of_its_own():
    potential = _potential(torch.float64)
    passed = check_calculator(
        lambda: SumCalculator([MLFFCalculator(potential), Toy()]),
        knows_state=True,
        skip=["parameters_are_part_of_the_state", "results_have_the_names_of_ase"],
    )
    assert "changes_of_state_are_seen" in passed


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"cmret"}))
def test_calculators_of_other_models_keep_all(name):
    width = {"n_features": 16, "n_heads": 2}
    takes_heads = "n_heads" in MODELS[name].Config.__dataclass_fields__
    options = width if takes_heads else {}
    potential = _potential(torch.float64, name=name, **options)
    passed = check_calculator(lambda: MLFFCalculator(potential), knows_state=True)
    assert len(passed) == len(check_calculator(Toy, knows_state=True))
