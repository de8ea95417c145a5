"""``mlff md``, ``export`` and ``report``: what they write, and what they refuse."""

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from matplotlib.image import imread

from mlff.cli import main
from mlff.cli.runs import MDConfig, read_config
from mlff.demo import methylene
from mlff.dynamics import barostats, integrators
from mlff.dynamics.schedules import Ramp
from mlff.errors import InputError
from mlff.state import read_state
from mlff.trajectory import Trajectory

#: 20 steps of two molecules in two states each with noise of its own.
RUN = [
    *("--model", "ch2", "--temperature-K", "300", "--timestep-fs", "0.5"),
    *("--steps", "20", "--every", "5", "--replicas", "2", "--seed", "7", "--quiet"),
]

TOML = """
structures = ["ch2.xyz"]
out = "run"
model = "ch2"
ensemble = "langevin"
temperature_K = 300
timestep_fs = 0.5
steps = 20
every = 5
replicas = 2
seed = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where a singlet and a triplet lie, as the working directory."""
    frames = [methylene(1.11, 103, 1), methylene(1.08, 133, 3)]
    ase.io.write(tmp_path / "ch2.xyz", frames, format="extxyz")
    ase.io.write(tmp_path / "stateless.xyz", Atoms("CHH", positions=np.eye(3)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def same_frames(one: Path, other: Path) -> bool:
    """Whether two trajectories hold the same bits."""
    first, second = Trajectory(one), Trajectory(other)
    return first.n_frames == second.n_frames and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in ((first.frame(k), second.frame(k)) for k in range(first.n_frames))
        for name in ("step", "positions", "momenta", "energy", "heat", "status")
    )


def test_help_is_answered_without_torch_or_ase():
    code = (
        "import sys\nfrom mlff.cli import main\n"
        "for verb in ('md', 'relax', 'export', 'report'):\n"
        "    try: main([verb, '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'ase', 'numpy', 'h5py'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# A run


@pytest.mark.filterwarnings("ignore::mlff.errors.MlffWarning")
def test_what_was_not_in_training_is_in_the_summary_too(folder):
    assert main(["md", "ch2.xyz", *RUN, "--states", "0,1 1,2", "--out", "run"]) == 0
    told = "CH2, charge +1, multiplicity 2, was not in the training data"
    assert told in Path("run/summary.txt").read_text()


def test_a_run_leaves_trajectory_table_pictures_and_last_frames(folder, capsys):
    states = ("--states", "0,1 0,3", "--export", "extxyz")
    assert main(["md", "ch2.xyz", *RUN, *states, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "4 systems, 12 atoms; 20 steps of 0.5 fs, a frame every 5 steps" in out
    trajectory = Trajectory("run/trajectory.h5")
    assert trajectory.steps.tolist() == [0, 5, 10, 15, 20]
    assert trajectory.header["integrator"] == "Langevin"
    assert trajectory.header["seed"] == 7
    rows = table(Path("run/summary.csv"))
    assert [row["multiplicity"] for row in rows] == ["1", "1", "3", "3"]
    means = [float(row["mean_temperature_K"]) for row in rows]
    assert means == pytest.approx(trajectory.temperature[2:].mean(0), rel=1e-12)
    gaps = [float(row["mean_gap_0_1_minus_0_3_eV"]) for row in rows]
    wanted = trajectory.gaps((0, 1), (0, 3))[2:].mean(0)
    assert gaps == pytest.approx(wanted, rel=1e-9)
    for name in ("conserved_energy", "temperature", "gaps"):
        assert imread(f"run/{name}.png")[..., :3].std() > 0.05
    assert Path("run/summary.txt").read_text() in out
    last = ase.io.read("run/final.xyz", ":")
    assert [read_state(atoms).multiplicity for atoms in last] == [1, 1, 3, 3]
    final = trajectory.atoms(3)
    assert last[3].positions == pytest.approx(final.positions, abs=1e-7)
    assert last[3].get_momenta() == pytest.approx(final.get_momenta(), abs=1e-7)
    assert last[3].get_potential_energy() == final.get_potential_energy()
    assert len(list(Path("run/systems").glob("*_CH2.xyz"))) == 4


def test_copies_of_a_frame_start_alike_and_move_apart(folder):
    assert main(["md", "ch2.xyz", *RUN, "--out", "run"]) == 0
    trajectory = Trajectory("run/trajectory.h5")
    first, second = trajectory.positions(0), trajectory.positions(1)
    assert np.array_equal(first[0], second[0])
    assert np.abs(first[-1] - second[-1]).max() > 1e-3


def test_a_run_file_says_what_options_say(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy("ch2.xyz", elsewhere)
    (elsewhere / "run.toml").write_text(TOML)
    assert main(["md", "elsewhere/run.toml", "--quiet"]) == 0
    assert main(["md", "ch2.xyz", *RUN, "--out", "run"]) == 0
    assert same_frames(elsewhere / "run/trajectory.h5", Path("run/trajectory.h5"))
    csvs = [f / "run/summary.csv" for f in (elsewhere, tmp_path)]
    assert csvs[0].read_bytes() == csvs[1].read_bytes()


def test_an_option_wins_over_the_run_file(folder, tmp_path):
    (tmp_path / "run.toml").write_text(TOML + "[limits]\nmax_temperature_K = 5000\n")
    config = config_of("run.toml", "--picoseconds", "0.1", "--max-force-eV-per-A", "50")
    assert config.n_steps == 200
    assert config.limits.max_force_eV_per_A == 50
    assert config.limits.max_temperature_K == 5000
    assert config.seed == 7
    assert config.out == "run"


def config_of(*words: str) -> MDConfig:
    from mlff import cli

    return read_config(MDConfig, cli._parser().parse_args(["md", *words]))


def test_one_file_and_states_may_be_strings_in_a_run_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "model='m'\nout='o'\nsteps=1\ntemperature_K=1\nstructures='a.xyz'\n"
    Path("run.toml").write_text(text + "states='0,1 -1,2'\n")
    config = config_of("run.toml")
    assert config.structures == ("a.xyz",)
    assert config.states == ((0, 1), (-1, 2))
    Path("run.toml").write_text(text + "states='triplet'\n")
    with pytest.raises(InputError, match="`states` must be charge,multiplicity pairs"):
        config_of("run.toml")


def test_a_ramp_in_a_run_file_becomes_a_ramp(folder, tmp_path):
    points = "temperature_K = [[0, 100], [10, 500]]"
    (tmp_path / "run.toml").write_text(TOML.replace("temperature_K = 300", points))
    ramp = config_of("run.toml").integrator().temperature_K
    assert ramp == Ramp(times_fs=(0, 10), values=(100, 500))
    assert main(["md", "run.toml", "--quiet"]) == 0
    header = Trajectory("run/trajectory.h5").header
    assert header["temperature_K"] == {"times_fs": [0, 10], "values": [100, 500]}


def test_every_ensemble_gets_its_settings():
    def made(*words):
        return config_of(
            *("a.xyz", "--model", "m", "--out", "o", "--steps", "1", *words)
        ).integrator()

    nve = made("--ensemble", "nve", "--temperature-K", "50", "--seed", "3")
    assert nve == integrators.VelocityVerlet(
        timestep_fs=0.5, seed=3, initial_temperature_K=50
    )
    assert made("--temperature-K", "9", "--friction-per-fs", "0.1") == (
        integrators.Langevin(timestep_fs=0.5, temperature_K=9, friction_per_fs=0.1)
    )
    bussi = integrators.VelocityRescaling(
        timestep_fs=0.5, temperature_K=9, time_constant_fs=50, remove_motion=False
    )
    shared = ("--temperature-K", "9", "--time-constant-fs", "50", "--no-remove-motion")
    assert made("--ensemble", "rescaling", *shared) == bussi
    pressure = ("--pressure-GPa", "2", "--compressibility-per-GPa", "0.1")
    for name, kind in (
        ("npt-isotropic", barostats.IsotropicCellRescaling),
        ("npt-flexible", barostats.FlexibleCellRescaling),
    ):
        assert made("--ensemble", name, *shared, *pressure) == kind(
            thermostat=bussi, pressure_GPa=2, compressibility_per_GPa=0.1
        )


def test_velocities_in_a_file_are_kept_or_forgotten_as_asked(folder):
    frames = ase.io.read("ch2.xyz", ":")
    for frame in frames:
        frame.set_momenta(np.full((3, 3), 0.1))
    ase.io.write("moving.xyz", frames, format="extxyz")
    assert main(["md", "moving.xyz", *RUN, "--out", "kept"]) == 0
    assert Trajectory("kept/trajectory.h5").momenta(0)[0] == pytest.approx(0.1)
    command = ["md", "moving.xyz", *RUN, "--draw-velocities"]
    assert main([*command, "--out", "drawn"]) == 0
    drawn = Trajectory("drawn/trajectory.h5")
    assert not np.allclose(drawn.momenta(0)[0], drawn.momenta(1)[0])


def test_systems_that_pass_a_bound_are_told_and_exit_with_1(folder, capsys):
    bound = ("--max-temperature-K", "320", "--out", "run")
    assert main(["md", "ch2.xyz", *RUN, *bound]) == 1
    trajectory = Trajectory("run/trajectory.h5")
    stopped = np.flatnonzero(trajectory.status[-1])
    assert len(stopped) > 0
    rows = table(Path("run/summary.csv"))
    for k, row in enumerate(rows):
        assert bool(row["reason"]) == (k in stopped)
    reason = "the temperature passed max_temperature_K"
    last = ase.io.read("run/final.xyz", ":")
    assert {k for k, a in enumerate(last) if a.info.get("frozen") == reason} == set(
        stopped
    )
    assert f"frozen: {reason}: system" in capsys.readouterr().out


# Going on


def test_a_run_made_longer_is_the_run_made_at_once(folder):
    command = ["md", "ch2.xyz", *RUN, "--states", "0,1 0,3"]
    assert main([*command, "--out", "whole"]) == 0
    assert main([*command, "--out", "parts", "--steps", "10"]) == 0
    assert main([*command, "--out", "parts", "--resume"]) == 0
    assert same_frames(Path("whole/trajectory.h5"), Path("parts/trajectory.h5"))
    for name in ("summary.csv", "final.xyz"):
        assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes()


def test_ctrl_c_says_how_to_go_on_and_that_goes_on(folder, capsys, monkeypatch):
    from mlff.dynamics.record import Recorder

    command = ["md", "ch2.xyz", *RUN]
    assert main([*command, "--out", "whole"]) == 0
    append, seen = Recorder.append, []

    def stop(self, frame):
        append(self, frame)
        seen.append(frame.step)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "append", stop)
        assert main([*command, "--out", "parts"]) == 130
    assert "run the same command with --resume" in capsys.readouterr().err
    assert Trajectory("parts/trajectory.h5").steps.tolist() == [0, 5, 10]
    assert main([*command, "--out", "parts", "--resume"]) == 0
    assert same_frames(Path("whole/trajectory.h5"), Path("parts/trajectory.h5"))


@pytest.mark.slow
def test_a_killed_run_goes_on_exports_and_reports(folder, capsys):
    long = ["md", "ch2.xyz", *RUN, "--steps", "200000", "--out", "run"]
    code = "import sys; from mlff.cli import main; sys.exit(main(sys.argv[1:]))"
    path = folder / "run/trajectory.h5"
    with subprocess.Popen([sys.executable, "-c", code, *long]) as process:
        deadline = time.monotonic() + 120
        while not path.exists() or Trajectory(path).n_frames < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    n_frames = Trajectory(path).n_frames
    assert n_frames >= 5
    assert not (folder / "run/summary.csv").exists()
    assert main(["report", "run/trajectory.h5"]) == 0
    assert len(table(folder / "run/summary.csv")) == 4
    assert main(["export", "run/trajectory.h5", "--out", "frames", "--quiet"]) == 0
    assert len(ase.io.read("frames/2_CH2.xyz", ":")) == n_frames
    steps = str(5 * (n_frames + 3))
    command = ["md", "ch2.xyz", *RUN, "--steps", steps]
    assert main([*command, "--out", "run", "--resume"]) == 0
    assert main([*command, "--out", "whole"]) == 0
    assert same_frames(path, folder / "whole/trajectory.h5")
    capsys.readouterr()


def test_what_is_there_is_replaced_only_by_force(folder, capsys):
    command = ["md", "ch2.xyz", *RUN, "--export", "extxyz", "--out", "run"]
    assert main([*command, "--states", "0,1 0,3"]) == 0
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--replicas", "1", "--force"]) == 0
    assert Trajectory("run/trajectory.h5").n_systems == 2
    assert sorted(p.name for p in Path("run/systems").iterdir()) == [
        "0_CH2.xyz",
        "1_CH2.xyz",
    ]
    assert not Path("run/gaps.png").exists()


def test_resuming_what_is_not_there_starts_and_says_so(folder, capsys):
    assert main(["md", "ch2.xyz", *RUN, "--out", "run", "--resume"]) == 0
    assert "holds nothing to go on with: starting" in capsys.readouterr().err


# Refusals

WHOLE = (*RUN, "--out", "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ch2.xyz", *WHOLE[2:]), "give --model"),
        (("ch2.xyz", *RUN), "give --out"),
        (("ch2.xyz", *WHOLE, "--model", "ch3"), "shipped are ['ch2', 'states']"),
        (("ch2.xyz", *RUN, "--out", "none/run"), "there is no folder none"),
        (("ch2.xyz", *RUN, "--out", "ch2.xyz"), "is not a folder"),
        (("absent.xyz", *WHOLE), "there is no such file"),
        (("stateless.xyz", *WHOLE), "stateless.xyz, frame 0: no charge and no spin"),
        (("stateless.xyz", *WHOLE), "or pass --charge and --spin"),
        (("ch2.xyz", *WHOLE, "--spin", "3"), "frame 0: conflicting values of the"),
        (("empty.xyz", *WHOLE), "no structure in empty.xyz"),
        (("ch2.xyz", *WHOLE, "--picoseconds", "1"), "either `steps` or `picoseconds`"),
        (("ch2.xyz", *WHOLE, "--steps", "0"), "must be positive"),
        (("ch2.xyz", *WHOLE, "--replicas", "0"), "`replicas` must be at least 1"),
        (("ch2.xyz", *WHOLE, "--every", "0"), "`every` must be an integer"),
        (("ch2.xyz", *WHOLE, "--timestep-fs", "-1"), "`timestep_fs` must lie in"),
        (("ch2.xyz", *WHOLE, "--ensemble", "nvt"), "one of nve, langevin"),
        (("ch2.xyz", *WHOLE, "--pressure-GPa", "1"), "`pressure_GPa` does nothing"),
        (("ch2.xyz", *WHOLE, "--ensemble", "npt-flexible"), "needs `pressure_GPa`"),
        (("ch2.xyz", "--model", "ch2", "--steps", "9", "--out", "run"), "temperature"),
        (("ch2.xyz", *WHOLE, "--device", "gpu"), "`device`"),
        (("ch2.xyz", *WHOLE, "--dtype", "float16"), "`dtype` must be"),
        (("ch2.xyz", *WHOLE, "--states", "0,1 0,2"), "`states`, system 0"),
        (("ch2.xyz", *WHOLE, "--region", "leave"), "`region` must be"),
        (("run.toml", "ch2.xyz", *WHOLE), "one run file or structure files, not both"),
        (("bad.toml", *WHOLE), "unknown key `timestep`; did you mean `timestep_fs`"),
        (("worse.toml", *WHOLE), "`structures` must be a list of strings"),
        (("moving.xyz", *WHOLE, "--ensemble", "nve"), "move alike"),
    ],
)
def test_mistakes_are_told_in_one_line_before_any_step(folder, capsys, words, message):
    (folder / "empty.xyz").touch()
    (folder / "run.toml").write_text(TOML)
    (folder / "bad.toml").write_text(TOML + "timestep = 1\n")
    (folder / "worse.toml").write_text(TOML.replace('["ch2.xyz"]', "3"))
    frame = methylene(1.1, 110, 3)
    frame.set_momenta(np.full((3, 3), 0.1))
    ase.io.write("moving.xyz", frame, format="extxyz")
    assert main(["md", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlff: error: ")
    assert message in line
    assert not (folder / "run/trajectory.h5").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--states", "0;1"), "pairs like '0,1 0,3'"),
        (("--states", "0,1,2"), "pairs like '0,1 0,3'"),
        (("--resume", "--force"), "not allowed with"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(folder, capsys, option, message):
    with pytest.raises(SystemExit, match="2"):
        main(["md", "ch2.xyz", *WHOLE, *option])
    assert message in capsys.readouterr().err


def test_only_the_same_run_goes_on(folder, capsys):
    command = ["md", "ch2.xyz", *WHOLE]
    assert main(command) == 0
    before = Path("run/trajectory.h5").read_bytes()
    assert main([*command, "--resume", "--seed", "8"]) == 2
    assert "seed=7" in capsys.readouterr().err
    assert Path("run/trajectory.h5").read_bytes() == before


def test_states_may_have_a_negative_charge():
    words = ("a.xyz", "--model", "m", "--out", "o", "--temperature-K", "1")
    config = config_of(*words, "--steps", "1", "--states=-1,2 0,1")
    assert config.states == ((-1, 2), (0, 1))


def test_a_length_in_time_needs_no_even_division(folder):
    words = ("ch2.xyz", "--model", "ch2", "--out", "o", "--temperature-K", "1")
    assert config_of(*words, "--picoseconds", "1", "--timestep-fs", "0.3").n_steps == (
        3333
    )
    with pytest.raises(InputError, match="positive"):
        config_of(*words, "--picoseconds", "nan")


# export and report


def test_export_writes_the_systems_asked_for(folder, capsys):
    assert main(["md", "ch2.xyz", *WHOLE]) == 0
    command = ["export", "run/trajectory.h5", "--out", "third.traj", "--quiet"]
    assert main([*command, "--systems", "2"]) == 0
    frames = ase.io.read("third.traj", ":")
    trajectory = Trajectory("run/trajectory.h5")
    positions = [frame.positions for frame in frames]
    assert np.array_equal(positions, trajectory.positions(2))
    assert main([*command, "--systems", "2"]) == 2
    assert "third.traj exists" in capsys.readouterr().err
    assert main([*command, "--systems", "2", "--force"]) == 0
    assert main([*command, "--systems", "9", "--force"]) == 2


def test_report_tells_what_the_run_told(folder, capsys):
    assert main(["md", "ch2.xyz", *WHOLE]) == 0
    assert main(["report", "run/trajectory.h5", "--out", "again/today"]) == 0
    for name in ("summary.csv", "summary.txt"):
        again = Path("again/today", name)
        assert again.read_bytes() == Path("run", name).read_bytes()
    assert main(["report", "ch2.xyz"]) == 2
    assert "not a trajectory of mlff" in capsys.readouterr().err
