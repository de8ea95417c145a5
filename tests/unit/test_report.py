"""Reports: numbers that were put into synthetic runs come out; pictures show them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from matplotlib.image import imread
from scipy import stats

from mlff.errors import InputError
from mlff.relaxation.relaxed import Relaxed
from mlff.report import Kind, Run, figures, relaxation, report_md, report_relaxation
from mlff.report.figures import plot_conserved, plot_gaps, plot_temperature
from mlff.report.tables import md_table
from mlff.trajectory import TrajectoryWriter
from mlff.trajectory.layout import Frame, Layout

SINGLET, TRIPLET = Kind("CH2", 0, 1), Kind("CH2", 0, 3)


def synthetic(
    n_systems: int,
    n_frames: int = 200,
    *,
    kinds: tuple[Kind, ...] = (SINGLET, TRIPLET),
    drift: float = 0.0,
    dof: float | np.ndarray = 9.0,
    temperature: float | np.ndarray = 300.0,
    frozen: dict[int, tuple[float, str]] | None = None,
) -> Run:
    """Canonical kinetic energies, and a total that drifts, meV per atom and ps."""
    rng = np.random.default_rng(n_systems)
    dof = np.broadcast_to(dof, n_systems).astype(float)
    times = 5.0 * np.arange(n_frames)
    target = np.broadcast_to(temperature, (n_frames, 1))
    kinetic = rng.gamma(dof / 2, size=(n_frames, n_systems)) * units.kB * target
    rates = drift * (1 + 0.1 * np.arange(n_systems))
    conserved = -1000.0 + 3e-6 * rates * times[:, None]
    energy = rng.normal(-1000.0, 0.1, kinetic.shape)
    gap = rng.normal(0.5, 0.1, kinetic.shape)
    return Run(
        kinds=tuple(kinds[k % len(kinds)] for k in range(n_systems)),
        n_atoms=np.full(n_systems, 3),
        dof=dof,
        times_fs=times,
        energy=energy,
        kinetic=kinetic,
        heat=energy + kinetic - conserved,
        target_K=target,
        frozen=frozen or {},
        state_energies={(0, 3): energy, (0, 1): energy + gap},
    )


@pytest.fixture
def figure(monkeypatch):
    """Draw a picture and return the figure, without writing it."""
    drawn = []
    for module in (figures, relaxation):
        monkeypatch.setattr(module, "finish", lambda figure, _: drawn.append(figure))

    def draw(plot, run):
        plot(run, Path("unused.png"))
        return drawn.pop()

    return draw


# Numbers


def test_the_drift_that_was_put_in_comes_out():
    run = synthetic(4, drift=0.5)
    assert run.drift == pytest.approx([0.5, 0.55, 0.6, 0.65], rel=1e-6)
    assert run.fluctuation == pytest.approx(np.zeros(4), abs=1e-8)


def test_scatter_about_the_drift_is_told_apart_from_it():
    run = synthetic(5, 4000, drift=0.5)
    wave = 1e-3 * np.sin(run.times_fs)[:, None]
    moved = Run(**{**vars_of(run), "heat": run.heat - 3 * wave})
    assert moved.drift == pytest.approx(run.drift, abs=1e-3)
    assert moved.fluctuation == pytest.approx(np.full(5, 1 / np.sqrt(2)), rel=1e-2)


def vars_of(run: Run) -> dict:
    names = Run.__dataclass_fields__
    return {name: getattr(run, name) for name in names}


def test_the_error_of_the_mean_temperature_is_that_of_independent_systems():
    run = synthetic(400)
    mean, error = run.temperature_of(np.arange(400))
    samples = 400 * 100  # the second half
    expected = 300 * np.sqrt(2 / 9) / np.sqrt(samples)
    assert error == pytest.approx(expected, rel=0.15)
    assert abs(mean - 300) < 4 * expected


@pytest.mark.parametrize("n_systems", [2, 7])
def test_of_few_systems_pieces_of_the_run_give_the_error(n_systems):
    run = synthetic(n_systems, 2000)
    mean, error = run.temperature_of(np.arange(n_systems))
    expected = 300 * np.sqrt(2 / 9) / np.sqrt(n_systems * 1000)
    assert 0.4 * expected < error < 2 * expected
    assert abs(mean - 300) < 5 * expected


def test_frames_after_freezing_do_not_count():
    run = synthetic(4, drift=0.5, frozen={2: (250.0, "too hot")})
    wild = run.kinetic.copy()
    wild[51:, 2] = 1e6
    after = Run(**{**vars_of(run), "kinetic": wild})
    assert after.drift[2] == pytest.approx(0.6, rel=1e-6)
    assert after.alive[:, 2].sum() == 51
    assert np.isnan(after.mean_temperature[2])  # stopped before the second half
    assert np.isfinite(after.mean_temperature[[0, 1, 3]]).all()


def test_a_run_of_one_frame_has_no_drift_and_no_error():
    run = synthetic(4, 1)
    assert np.isnan(run.drift).all()
    table = md_table(run)
    assert "nan" not in table
    assert "-" in table.splitlines()[2].split()


# Table and CSV


def test_the_table_has_a_line_for_each_kind_and_one_for_all():
    run = synthetic(11, drift=0.5, frozen={1: (250.0, "too hot"), 4: (0.0, "torn")})
    lines = md_table(run).splitlines()
    assert [line.split("  ")[0] for line in lines[2:5]] == [
        "CH2, charge +0, multiplicity 1",
        "CH2, charge +0, multiplicity 3",
        "all",
    ]
    singlets = lines[2].removeprefix(str(SINGLET)).split()
    assert singlets[0] == "6"
    assert singlets[-1] == "1"
    assert lines[4].split()[-1] == "2"
    assert f"{run.drift[:11:2][[0, 1, 3, 4, 5]].mean():+.3g}" in lines[2]
    assert lines[5:7] == [
        "frozen: too hot: system 1",
        "frozen: torn: system 4",
    ]


def test_a_thousand_kinds_do_not_fill_the_screen():
    kinds = tuple(Kind(f"C{n}H{n}", 0, 1) for n in range(1, 1001))
    lines = md_table(synthetic(2000, 3, kinds=kinds)).splitlines()
    assert len(lines) == 2 + 20 + 2 + 6 + 1
    assert "994 more kinds: summary.csv" in lines[-1]
    assert "980 more kinds" in lines[22]
    assert lines[23].split()[:2] == ["all", "2000"]


def test_the_csv_has_every_system_with_all_digits(tmp_path):
    run = synthetic(5, drift=0.5, frozen={3: (700.0, "too hot")})
    report_md(run, tmp_path)
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["system"] for row in rows] == list("01234")
    assert [row["multiplicity"] for row in rows] == list("13131")
    second_half = slice(100, None)
    for k, row in enumerate(rows):
        kept = second_half if k != 3 else slice(100, 141)
        mean = run.temperature[kept, k].mean()
        assert float(row["mean_temperature_K"]) == pytest.approx(mean, rel=1e-12)
        assert float(row["drift_meV_per_atom_per_ps"]) == run.drift[k]
        assert float(row["last_energy_eV"]) == run.energy[-1, k]
        gap = run.state_energies[0, 3] - run.state_energies[0, 1]
        found = float(row["mean_gap_0_3_minus_0_1_eV"])
        assert found == pytest.approx(gap[kept, k].mean(), rel=1e-9)
    assert (rows[3]["frozen_at_fs"], rows[3]["reason"]) == ("700.0", "too hot")
    assert rows[0]["reason"] == ""


def test_a_report_replaces_an_earlier_one_whole(tmp_path):
    run = synthetic(4, 20)
    report_md(run, tmp_path)
    assert (tmp_path / "gaps.png").exists()
    table = report_md(Run(**{**vars_of(run), "state_energies": {}}), tmp_path)
    assert (tmp_path / "summary.txt").read_text() == table + "\n"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "summary.txt",
        "summary.csv",
        "conserved_energy.png",
        "temperature.png",
    }
    for name in ("conserved_energy.png", "temperature.png"):
        assert imread(tmp_path / name)[..., :3].std() > 0.05


# Pictures


def test_of_many_systems_the_median_and_the_band_are_drawn(figure):
    run = synthetic(100, drift=0.5, kinds=(TRIPLET,))
    (axes,) = figure(plot_conserved, run).axes
    median, *singles, zero = axes.lines
    assert median.get_ydata() == pytest.approx(np.median(run.change, axis=1))
    assert median.get_xdata() == pytest.approx(run.times_fs / 1000)
    (band,) = axes.collections
    low, high = band.get_datalim(axes.transData).intervaly
    assert high == pytest.approx(np.percentile(run.change[-1], 95))
    assert low == pytest.approx(0, abs=1e-6)
    worst = np.abs(run.drift).argmax()
    drawn = [line.get_ydata() for line in singles]
    assert len(drawn) == 3
    assert drawn[0] == pytest.approx(run.change[:, worst])
    assert set(zero.get_ydata()) == {0.0}


def test_few_systems_are_drawn_one_by_one(figure):
    run = synthetic(4, drift=0.5)
    (axes,) = figure(plot_conserved, run).axes
    drawn = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 200]
    assert len(drawn) == 4
    assert drawn[2] == pytest.approx(run.change[:, 1])


def test_a_line_ends_where_its_system_was_frozen(figure):
    run = synthetic(4, frozen={0: (250.0, "too hot")})
    (axes,) = figure(plot_conserved, run).axes
    assert np.isfinite(axes.lines[0].get_ydata()).sum() == 51


def test_ten_thousand_systems_of_many_kinds_make_no_more_lines_than_ten(figure):
    kinds = tuple(Kind(f"C{n}H{n}", 0, 1) for n in range(1, 501))
    run = synthetic(10_000, 20, kinds=kinds, dof=np.repeat([9.0, 12, 15, 18, 24], 2000))
    for plot in (plot_conserved, plot_temperature, plot_gaps):
        for axes in figure(plot, run).axes:
            assert 1 <= len(axes.lines) + len(axes.patches) <= 6
            assert axes.get_legend_handles_labels()[1][0].count("\n") == 0


def test_long_runs_are_drawn_with_as_many_points_as_a_picture_has(figure):
    (axes,) = figure(plot_conserved, synthetic(4, 50_000)).axes
    assert max(len(line.get_xdata()) for line in axes.lines) < 1300


def canonical_of(axes):
    (curve,) = axes.lines
    edges = axes.patches[0].get_data().edges
    return curve, axes.patches[0].get_data().values, edges


def test_the_temperature_distribution_is_shown_with_the_canonical_one(figure):
    run = synthetic(50, 400)
    curve, density, edges = canonical_of(figure(plot_temperature, run).axes[1])
    canonical = stats.gamma(4.5, scale=300 / 4.5)
    x, y = curve.get_data()
    assert y == pytest.approx(canonical.pdf(x), rel=1e-9)
    middle = 0.5 * (edges[1:] + edges[:-1])
    assert np.abs(density - canonical.pdf(middle)).max() < 0.1 * y.max()
    assert (density * np.diff(edges)).sum() == pytest.approx(0.996, abs=1e-3)


def test_a_system_that_exploded_does_not_hide_the_others(figure):
    run = synthetic(100, 400)
    run.kinetic[300, 7] *= 1e4
    left, right = figure(plot_temperature, run).axes
    assert right.patches[0].get_data().edges[-1] < 1500
    assert left.get_ylim()[1] < 2000


def test_under_a_ramp_temperatures_are_relative_to_the_set_one(figure):
    ramp = np.linspace(100, 500, 400)[:, None]
    run = synthetic(50, 400, temperature=ramp)
    left, right = figure(plot_temperature, run).axes
    curve, _, _ = canonical_of(right)
    x, y = curve.get_data()
    assert y == pytest.approx(stats.gamma(4.5, scale=1 / 4.5).pdf(x), rel=1e-9)
    assert "set temperature" in right.get_xlabel()
    (line,) = (s for s in left.lines if s.get_label() == "set temperature")
    assert line.get_ydata() == pytest.approx(ramp[:, 0])


def test_many_sizes_are_shown_by_their_ranks(figure):
    sizes = np.array([6.0, 9, 12, 15, 18, 21, 0] * 10)
    axes = figure(plot_temperature, synthetic(70, 400, dof=sizes)).axes[1]
    density = axes.patches[0].get_data().values
    assert density == pytest.approx(np.ones(len(density)), abs=0.2)
    assert "run, $N_f$ = 6 to 21" in axes.get_legend_handles_labels()[1]


@pytest.mark.parametrize("temperature", [None, 0.0])
def test_without_a_set_temperature_there_is_no_canonical_curve(figure, temperature):
    run = synthetic(50)
    target = None if temperature is None else np.zeros((200, 1))
    axes = figure(plot_temperature, Run(**{**vars_of(run), "target_K": target})).axes[1]
    assert not axes.lines
    assert len(axes.patches) == 4  # two kinds, filled and outlined


def test_the_table_has_the_mean_gap_of_each_kind_with_its_error():
    run = synthetic(50, 400)
    (line,) = [line for line in md_table(run).splitlines() if f"in {SINGLET}:" in line]
    assert line.startswith("mean of E(0, 3) − E(0, 1)")
    gap = (run.state_energies[0, 3] - run.state_energies[0, 1])[200:, ::2]
    error = gap.mean(0).std(ddof=1) / 5
    assert line.endswith(f": {gap.mean():+.4f} ± {error:.1g} eV")


def test_a_system_weighs_as_much_as_it_has_frames():
    """One that was torn after two frames of the second half must not rule a mean."""
    run = synthetic(8, 400, frozen={0: (1005.0, "torn")})
    values = np.zeros((400, 8))
    values[:, 0] = -5.0
    n_frames = run.counted[:, 0].sum()
    assert 0 < n_frames < 5
    mean, error = run.average(values, np.arange(8))
    assert mean == pytest.approx(-5.0 * n_frames / run.counted.sum())
    assert error < 0.05
    values[250, 3] = np.nan  # no result there
    assert run.average(values, np.arange(8))[0] == pytest.approx(mean, rel=1e-2)


def test_gaps_are_told_with_mean_and_deviation(figure):
    run = synthetic(50, 400)
    left, right = figure(plot_gaps, run).axes
    assert left.get_ylabel() == "E(+0, 3) − E(+0, 1), eV"
    gap = run.state_energies[0, 3] - run.state_energies[0, 1]
    singlets = gap[200:, ::2]
    _, labels = right.get_legend_handles_labels()
    assert labels[0] == f"{singlets.mean():.3f} ± {singlets.std():.3f} eV"


# Trajectories


def test_a_trajectory_tells_the_same_as_the_run(tmp_path):
    layout = Layout(
        numbers=np.array([6, 1, 1, 8, 1]),
        ptr=np.array([0, 3, 5]),
        masses=np.ones(5),
        mobile=np.ones(5, bool),
        cell=np.zeros((2, 3, 3)),
        pbc=np.zeros((2, 3), bool),
        charge=np.array([0, -1]),
        multiplicity=np.array([3, 1]),
        dof=np.array([9.0, 6.0]),
        seed=np.array([0, 1]),
        names=("a", "b"),
        states=((0, 1),),
    )
    thermostat = {"temperature_K": {"times_fs": [0, 10], "values": [100, 200]}}
    header = {"timestep_fs": 0.5, "thermostat": thermostat}
    path = tmp_path / "t.h5"
    with TrajectoryWriter.create(path, layout, header, n_frames=9) as writer:
        with pytest.raises(InputError, match="no whole frame"):
            Run.read(path)
        for step in (0, 10, 20):
            writer.append(
                Frame(
                    step=step,
                    positions=np.zeros((5, 3)),
                    momenta=np.zeros((5, 3)),
                    cell=layout.cell,
                    energy=np.array([-1.0, -2.0]) - step,
                    kinetic=np.array([0.1, 0.2]),
                    heat=np.zeros(2),
                    status=np.array([0, 2 if step > 10 else 0], np.int8),
                    status_step=np.array([-1, 14 if step > 10 else -1]),
                    state_energies=np.array([[1.0], [2.0]]),
                )
            )
    run = Run.read(path)
    assert run.kinds == (Kind("CH2", 0, 3), Kind("HO", -1, 1))
    assert run.n_atoms.tolist() == [3, 2]
    assert run.times_fs.tolist() == [0.0, 5.0, 10.0]
    assert run.target_K.tolist() == [[100.0], [150.0], [200.0]]
    assert run.frozen == {1: (7.0, "a force passed max_force_eV_per_A")}
    assert run.alive.tolist() == [[True, True], [True, True], [True, False]]
    assert run.energy[-1].tolist() == [-21.0, -22.0]
    assert run.state_energies[0, 1][0].tolist() == [1.0, 2.0]


# Relaxations


def relaxed(spin: int, energy: float, n_steps: int, reason: str = "") -> Relaxed:
    atoms = Atoms("CHH", positions=np.eye(3))
    atoms.info.update(charge=0, spin=spin)
    return Relaxed(
        atoms=atoms,
        energy=energy,
        fmax=np.nan if np.isnan(energy) else 0.004,
        n_steps=n_steps,
        converged=not reason,
        reason=reason,
    )


RELAXED = [
    relaxed(1, -10.0, 4),
    relaxed(3, -11.0, 7),
    relaxed(1, -9.5, 5),
    relaxed(3, -12.0, 30, "not converged in 30 steps"),
    relaxed(1, np.nan, 0, "no finite energy"),
]


def test_relaxations_are_compared_within_their_kind(tmp_path, figure):
    assert relaxation.relative_energies(RELAXED)[:4] == pytest.approx([0, 1, 0.5, 0])
    lines = relaxation.relaxation_table(RELAXED).splitlines()
    assert lines[2].removeprefix(str(SINGLET)).split() == [
        *("3", "2", "-10.0000", "0.5000", "0.004", "4", "5")
    ]
    assert lines[3].removeprefix(str(TRIPLET)).split()[:2] == ["2", "1"]
    assert "not converged: no finite energy: system 4" in lines
    left, right = figure(relaxation.plot_relaxation, RELAXED).axes
    assert left.lines[0].get_xdata() == pytest.approx([0, 500])
    heights = [patch.get_height() for patch in right.patches]
    assert sum(heights) == 5


def test_the_csv_of_relaxations_has_every_system(tmp_path):
    table = report_relaxation(RELAXED, tmp_path)
    assert (tmp_path / "summary.txt").read_text() == table + "\n"
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["energy_eV"] for row in rows] == ["-10.0", "-11.0", "-9.5", "-12.0", ""]
    assert [row["above_lowest_eV"] for row in rows] == ["0.0", "1.0", "0.5", "0.0", ""]
    assert [row["steps"] for row in rows] == ["4", "7", "5", "30", "0"]
    assert rows[3]["reason"] == "not converged in 30 steps"
    assert imread(tmp_path / "relaxation.png")[..., :3].std() > 0.05
