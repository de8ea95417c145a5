"""Noise: a function of what it is for, and normal."""

import pytest
import torch
from scipy import stats

from mlff.dynamics.noise import normal


def drawn(n_rows=5000, step=7, n=4, stream=0):
    rows = torch.arange(n_rows)
    return normal(rows // 5, step, rows % 5, n, stream)


def test_numbers_are_standard_normal():
    values = drawn()
    assert values.dtype == torch.float64
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    fourth = values.pow(4).mean()
    assert abs(float(fourth) - 3.0) < 0.15


def test_tails_reach_beyond_four_deviations_and_stay_finite():
    values = drawn(n_rows=200_000)
    assert torch.isfinite(values).all()
    assert 4.3 < float(values.abs().max()) < 7.0


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_consecutive_steps_are_independent(lag):
    seed = torch.zeros(1, dtype=torch.int64)
    row = torch.zeros(1, dtype=torch.int64)
    series = torch.stack([normal(seed, k, row, 2)[0] for k in range(4000)])
    products = series[:-lag] * series[lag:]
    # The mean of 4000 products of independent numbers has a deviation of 0.016.
    assert products.mean(0).abs().max() < 4 * 4000**-0.5


def test_seeds_rows_columns_and_streams_are_independent():
    values = drawn(n_rows=20_000)
    other = drawn(n_rows=20_000, stream=1)
    bound = 4 * 20_000**-0.5
    assert abs(float((values[:-1, 0] * values[1:, 0]).mean())) < bound
    assert abs(float((values[:-5, 0] * values[5:, 0]).mean())) < bound
    assert abs(float((values[:, 0] * values[:, 1]).mean())) < bound
    assert abs(float((values * other).mean())) < bound


def test_the_two_numbers_of_a_pair_have_independent_squares():
    values = drawn(n_rows=50_000, n=2)
    squares = values.square() - 1.0
    assert abs(float((squares[:, 0] * squares[:, 1]).mean())) < 4 * 2 * 50_000**-0.5


def test_a_row_has_the_same_numbers_alone_and_among_others():
    rows = torch.arange(40)
    seeds = rows // 4 + 1000
    together = normal(seeds, 3, rows % 4, 3)
    for k in (0, 17, 39):
        alone = normal(seeds[k : k + 1], 3, rows[k : k + 1] % 4, 3)
        assert torch.equal(together[k], alone[0])


def test_negative_seeds_and_rows_are_as_good_as_others():
    values = normal(torch.arange(-3000, 3000), 0, -torch.ones(6000).long(), 1)
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3


def test_numbers_do_not_change_between_versions():
    # A resumed run relies on it.
    values = normal(torch.tensor([12345]), 678, torch.tensor([2]), 3, 1)
    expected = torch.tensor(
        [0.9106460670342325, 1.9300201392142997, -0.7736628019128191],
        dtype=torch.float64,
    )
    assert torch.allclose(values, expected, rtol=0, atol=1e-12)
