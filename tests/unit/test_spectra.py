"""Infrared spectra: places and areas of lines, of dynamics and harmonic ones."""

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from harmonic_cases import PER_CM, built, ringing

import mlff
from mlff.errors import DataError, InputError, InputTypeError
from mlff.harmonic import vibrations
from mlff.spectra import HIGHEST, KM_PER_MOL, broadened, infrared, plot_infrared
from mlff.trajectory import Trajectory
from mlff.units import DEBYE

LINES = {500.0: 0.3, 1600.0: 0.1, 3900.0: 0.2}  # cm⁻¹ → ∂μ/∂Q, e/√amu
TEMPERATURE = 250.0


def swinging(n_frames=20_000, spacing_fs=1.0, n_replicas=2, temperature=TEMPERATURE):
    """Dipoles of a harmonic molecule whose modes have the energy kT."""
    rng = np.random.default_rng(3)
    times = np.arange(n_frames) * spacing_fs * units.fs
    out = np.zeros((n_frames, n_replicas, 3))
    for axis, (wavenumber, slope) in enumerate(LINES.items()):
        omega = wavenumber * PER_CM
        swing = slope * np.sqrt(2 * units.kB * temperature) / omega
        for replica in range(n_replicas):
            phase = rng.uniform(0, 2 * np.pi)
            out[:, replica, axis] = swing * np.cos(omega * times + phase)
    return out + np.array([0.4, -0.2, 1.0])


def test_the_unit_of_intensities_is_that_of_the_literature():
    # 1 D²/(Å² amu) is 42.2561 km/mol.
    one_debye = KM_PER_MOL * DEBYE**2
    assert one_debye == pytest.approx(42.2561, abs=1e-4)


@pytest.mark.parametrize("spacing_fs", [1.0, 3.0])
@pytest.mark.parametrize("window", ["hann", "blackman"])
def test_lines_are_where_they_belong_with_harmonic_areas(spacing_fs, window):
    dipoles = swinging(spacing_fs=spacing_fs)
    found = infrared((dipoles, spacing_fs), temperature_K=TEMPERATURE, window=window)
    assert found.wavenumbers.max() <= HIGHEST
    total = 0.0
    for wavenumber, slope in LINES.items():
        near = np.abs(found.wavenumbers - wavenumber) < 100
        top = found.wavenumbers[near][found.absorption[near].argmax()]
        assert top == pytest.approx(wavenumber, abs=6)
        area = found.area(wavenumber - 100, wavenumber + 100)
        assert area == pytest.approx(KM_PER_MOL * slope**2, rel=1e-3)
        total += area
    assert found.area(0, HIGHEST) == pytest.approx(total, rel=1e-3)


def test_areas_do_not_depend_on_temperature():
    warm = infrared((swinging(temperature=900.0), 1.0), temperature_K=900.0)
    cold = infrared((swinging(temperature=9.0), 1.0), temperature_K=9.0)
    assert warm.absorption == pytest.approx(cold.absorption, abs=1e-6)


def test_one_replica_needs_no_axis_and_a_start_may_be_skipped():
    dipoles = swinging()
    whole = infrared((dipoles[:, :1], 1.0), temperature_K=TEMPERATURE)
    flat = infrared((dipoles[:, 0], 1.0), temperature_K=TEMPERATURE)
    assert (flat.absorption == whole.absorption).all()
    noise = np.random.default_rng(0).normal(size=(500, 2, 3))
    late = np.concatenate([noise, dipoles])
    found = infrared((late, 1.0), temperature_K=TEMPERATURE, skip_fs=500.0)
    expected = infrared((dipoles, 1.0), temperature_K=TEMPERATURE)
    assert (found.absorption == expected.absorption).all()


@pytest.fixture(scope="module")
def ions():
    """Two molecules that are alike, an anion, and a third one."""
    anion, other = molecule("C2H2"), molecule("CH4")
    anion.rattle(0.1, seed=1)
    anion.info = {"charge": -1, "spin": 2}
    other.info = {"charge": 0, "spin": 1}
    systems = [anion, anion, other]
    return vibrations(systems, built(), fmax=np.inf)


@pytest.fixture(scope="module")
def run(ions, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "trajectory.h5"
    wavenumbers = 500.0 * np.arange(1, 7)
    return Trajectory(
        ringing(
            path,
            ions[:2],
            wavenumbers=wavenumbers,
            temperature=0.01,
            n_frames=1300,
        )
    )


def test_a_run_of_an_ion_has_the_areas_of_its_harmonic_intensities(ions, run):
    # Also because both are in the frame of the center of mass.
    found = infrared(run, built(), resolution_per_cm=30.0)
    assert ions[0].intensities.max() > 1e-3
    for wavenumber, intensity in zip(
        500.0 * np.arange(1, 7), ions[0].intensities, strict=True
    ):
        area = found.area(wavenumber - 200, wavenumber + 200)
        assert area == pytest.approx(intensity, rel=0.01, abs=1e-6)


def test_replicas_may_be_chosen_and_the_temperature_given(run):
    both = infrared(run, built(), resolution_per_cm=30.0)
    one = infrared(run, built(), systems=[1], resolution_per_cm=30.0)
    assert not np.allclose(one.absorption, both.absorption, rtol=1e-3, atol=0)
    twice = infrared(run, built(), temperature_K=0.02, resolution_per_cm=30.0)
    assert 2 * twice.absorption == pytest.approx(both.absorption)


def test_frames_too_far_apart_are_told_how_often_to_record(ions, tmp_path):
    with pytest.raises(InputError, match=r"4 fs apart.*at most 3\.71 fs: keep more"):
        infrared((swinging(100), 4.0), temperature_K=300)
    options = {"wavenumbers": np.arange(6) + 500.0, "temperature": 1.0}
    path = ringing(tmp_path / "a.h5", ions[:2], n_frames=20, every=10, **options)
    with pytest.raises(InputError, match=r"run with every=7 or less \(now 10\)"):
        infrared(Trajectory(path), built())


def test_errors_name_what_is_wrong(ions, run, tmp_path):
    with pytest.raises(InputError, match=r"more than 3336 fs.*got 2600 fs"):
        infrared(run, built())
    with pytest.raises(InputError, match="`temperature_K` must be positive, got None"):
        infrared((swinging(100), 1.0))
    with pytest.raises(InputError, match=r"must have shape .*got \(4, 2\)"):
        infrared((np.zeros((4, 2)), 1.0), temperature_K=300)
    with pytest.raises(InputError, match="`window`='none'"):
        infrared(run, built(), resolution_per_cm=30, window="none")
    with pytest.raises(InputError, match="`skip_fs` must be zero or positive"):
        infrared((swinging(100), 1.0), temperature_K=300, skip_fs=-1.0)
    with pytest.raises(InputError, match="got 50 fs: run longer"):
        infrared((swinging(100), 1.0), temperature_K=300, skip_fs=50.0)
    with pytest.raises(InputError, match="`skip_fs`=200 leaves nothing of 100 fs"):
        infrared((swinging(100), 1.0), temperature_K=300, skip_fs=200.0)
    with pytest.raises(InputError, match=r"`skip_fs`=1e\+06 leaves nothing"):
        infrared(run, built(), skip_fs=1e6)
    with pytest.raises(InputError, match="dipoles must be finite"):
        infrared((np.full((9, 3), np.nan), 1.0), temperature_K=300)
    with pytest.raises(InputTypeError, match="`potential` with a dipole head"):
        infrared(run)
    with pytest.raises(InputError, match=r"`properties` must be among"):
        infrared(run, built(heads=("energy",)), resolution_per_cm=30)
    with pytest.raises(InputError, match="no system 2"):
        infrared(run, built(), systems=[0, 2])
    with pytest.raises(InputError, match="`resolution_per_cm` must be positive"):
        infrared(run, built(), resolution_per_cm=0)


def test_different_molecules_are_not_averaged(ions, tmp_path):
    path = tmp_path / "mixed.h5"
    options = {"wavenumbers": [900.0] * 6, "temperature": 1.0, "n_frames": 9}
    # As many modes of the larger one as the smaller one has.
    larger = mlff.Vibrations(**{**vars(ions[2]), "modes": ions[2].modes[:6]})
    trajectory = Trajectory(ringing(path, [ions[0], larger], **options))
    with pytest.raises(InputError, match=r"0 and 1 have different atoms.*\[\."):
        infrared(trajectory, built())


def test_isotopologues_are_not_averaged(ions, tmp_path):
    heavy = ions[0].data.get_atoms()
    heavy.set_masses([12.011, 12.011, 2.014, 2.014])
    (heavier,) = vibrations([heavy], built(), fmax=np.inf)
    options = {"wavenumbers": [900.0] * 6, "temperature": 1.0, "n_frames": 200}
    path = ringing(tmp_path / "iso.h5", [*ions[:2], heavier, heavier], **options)
    chosen = {"resolution_per_cm": 200.0, "systems": [1, 2]}
    with pytest.raises(
        InputError, match=r"1 and 2 have different masses: choose.*systems="
    ):
        infrared(path, built(), **chosen)
    with pytest.raises(InputError, match="0 and 2 have different masses"):
        infrared(path, built(), resolution_per_cm=200.0)
    light, slow = (
        infrared(path, built(), resolution_per_cm=200.0, systems=which)
        for which in ([0, 1], np.array([2, 3]))
    )
    assert not np.allclose(light.absorption, slow.absorption, rtol=0.05, atol=0)


def test_states_are_not_averaged(tmp_path):
    systems = []
    for spin in (1, 3):
        systems.append(molecule("C2H4"))
        systems[-1].set_initial_magnetic_moments(None)
        systems[-1].info = {"charge": 0, "spin": spin}
    found = vibrations(systems, built(), fmax=np.inf)
    options = {"wavenumbers": [900.0] * 12, "temperature": 1.0, "n_frames": 9}
    path = ringing(tmp_path / "states.h5", found, **options)
    with pytest.raises(InputError, match="0 and 1 have different states"):
        infrared(path, built())


def test_a_trajectory_may_be_named(run):
    options = {"resolution_per_cm": 30.0}
    expected = infrared(run, built(), **options)
    for path in (run.path, str(run.path)):
        found = infrared(path, built(), **options)
        assert (found.absorption == expected.absorption).all()
    with pytest.raises(DataError, match=r"cannot read nothing\.h5"):
        infrared("nothing.h5", built())


@pytest.mark.parametrize("systems", [0, [0.5], [True, False], "01", [[0]], [[0], []]])
def test_systems_are_a_list_of_indices(run, systems):
    with pytest.raises(InputTypeError, match=r"`systems` must be a list of indices"):
        infrared(run, built(), systems=systems)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("skip_fs", "a"),
        ("skip_fs", None),
        ("skip_fs", True),
        ("temperature_K", "300"),
        ("temperature_K", 300j),
        ("resolution_per_cm", [10.0]),
        ("window", None),
        ("window", 3),
    ],
)
def test_options_of_a_wrong_type_are_named(name, value):
    options = {"temperature_K": 300.0, name: value}
    with pytest.raises(InputTypeError, match=f"`{name}` must be a n.*, got"):
        infrared((swinging(2000), 1.0), **options)


def test_dipoles_are_real_numbers():
    wrong = [swinging(9) + 1j, [["a", "b", "c"]], [[1.0], [1.0, 2.0]], None]
    for dipoles in wrong:
        with pytest.raises(InputTypeError, match="array of real numbers, got"):
            infrared((dipoles, 1.0), temperature_K=300)
    with pytest.raises(
        InputTypeError, match=r"`source\[1\]` must be a number, got 'x'"
    ):
        infrared((swinging(9), "x"), temperature_K=300)
    for source in (None, swinging(9), (swinging(9),)):
        with pytest.raises(InputTypeError, match="`source` must be a trajectory, its "):
            infrared(source, temperature_K=300)


def test_a_line_spectrum_keeps_its_areas():
    found = broadened([800.0, 2000.0, -300.0], [30.0, 5.0, 1000.0], width=8.0)
    assert found.area(700, 900) == pytest.approx(30, rel=0.04)  # the rest in its wings
    assert found.area(0, HIGHEST) == pytest.approx(35, rel=0.01)
    half = found.absorption[found.wavenumbers == 804.0]
    assert half == pytest.approx(found.absorption.max() / 2, rel=1e-3)
    assert broadened([], []).absorption.max() == 0


def test_errors_of_a_line_spectrum():
    with pytest.raises(InputError, match=r"one per frequency \(2,\), got \(1,\)"):
        broadened([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="`width` and `spacing` must be positive"):
        broadened([1.0], [1.0], width=0.0)
    with pytest.raises(InputTypeError, match="`width` must be a number, got 'a'"):
        broadened([1.0], [1.0], width="a")


def test_both_curves_are_drawn(tmp_path):
    curves = {
        "dynamics": infrared((swinging(), 1.0), temperature_K=TEMPERATURE),
        "harmonic": broadened([500.0, 1600.0], [90.0, 10.0]),
    }
    path = tmp_path / "ir.png"
    plot_infrared(path, curves, sticks=([500.0, 1600.0], [90.0, 10.0]))
    assert path.read_bytes().startswith(b"\x89PNG")
    plot_infrared(tmp_path / "empty.png", {})
    plot_infrared(tmp_path / "ir.svg", curves, title="CH2, charge +0")
    assert "<!-- CH2, charge +0 -->" in (tmp_path / "ir.svg").read_text()
