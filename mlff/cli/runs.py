"""What ``mlff md`` and ``mlff relax`` are told, by options or by a run file.

Options and the keys of a run file have the same names and mean the same; an option wins
over the file. Paths in a run file are relative to it.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlff.config import from_table, read_toml
from mlff.dynamics.limits import Limits
from mlff.errors import InputError

if TYPE_CHECKING:
    from mlff.dynamics.integrators import Integrator
    from mlff.dynamics.schedules import Target
    from mlff.potential import Potential

Config = TypeVar("Config")

#: Settings of each ensemble, beside temperature_K, timestep_fs, seed, remove_motion.
ENSEMBLES = {
    "nve": (),
    "langevin": ("friction_per_fs",),
    "rescaling": ("time_constant_fs",),
    "npt-isotropic": (
        "time_constant_fs",
        "pressure_GPa",
        "compressibility_per_GPa",
        "pressure_time_constant_fs",
    ),
}
ENSEMBLES["npt-flexible"] = ENSEMBLES["npt-isotropic"]

#: A number, or points [time_fs, value] of straight lines.
Course = float | tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class MDConfig:
    """A run of molecular dynamics.

    Attributes:
        structures: files whose frames are the systems.
        model: name of a shipped model, or a file; several, separated by commas, are the
            members of a committee.
        out: folder to write into.
        charge: of every frame; from the files if not given.
        spin: multiplicity 2S+1, likewise.
        replicas: copies of each frame, each with noise and velocities of its own; those
            of a frame stand next to each other.
        draw_velocities: forget velocities in the files.
        ensemble: a key of :data:`ENSEMBLES`.
        temperature_K: of the thermostat or, at constant energy, of the velocities of
            what comes at rest; K.
        timestep_fs: fs.
        friction_per_fs: of Langevin dynamics, 1/fs.
        time_constant_fs: of velocity rescaling, fs.
        pressure_GPa: GPa.
        compressibility_per_GPa: 1/GPa.
        pressure_time_constant_fs: of the barostat, fs.
        seed: of velocities and noise.
        remove_motion: of whole systems.
        steps: length of the run; or
        picoseconds: its length in time.
        every: steps between frames.
        states: (charge, multiplicity) whose energies are recorded at every frame.
        limits: bounds that freeze a system.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: of the network; that of the model file if not given.
        export: ``"extxyz"`` or ``"traj"``, to write files of that kind at the end too.
    """

    structures: tuple[str, ...]
    model: str
    out: str
    charge: int | None = None
    spin: int | None = None
    replicas: int = 1
    draw_velocities: bool = False
    ensemble: str = "langevin"
    temperature_K: Course | None = None
    timestep_fs: float = 0.5
    friction_per_fs: float | None = None
    time_constant_fs: float | None = None
    pressure_GPa: Course | None = None
    compressibility_per_GPa: float | None = None
    pressure_time_constant_fs: float | None = None
    seed: int = 0
    remove_motion: bool | None = None
    steps: int | None = None
    picoseconds: float | None = None
    every: int = 10
    states: tuple[tuple[int, int], ...] = ()
    limits: Limits = field(default_factory=Limits)
    device: str = "cpu"
    dtype: str | None = None
    export: str | None = None

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise InputError(f"`replicas` must be at least 1, got {self.replicas}")
        if (self.steps is None) == (self.picoseconds is None):
            raise InputError("give the length as either `steps` or `picoseconds`")
        length = self.steps if self.steps is not None else self.picoseconds
        if length is None or not 0 < length < math.inf:
            raise InputError(f"`steps` or `picoseconds` must be positive, got {length}")
        if self.timestep_fs > 0 and self.n_steps < 1:
            raise InputError(f"`picoseconds`={length:g} is shorter than a step")
        if self.export not in (None, "extxyz", "traj"):
            raise InputError(
                f"`export` must be 'extxyz' or 'traj', got {self.export!r}"
            )
        self._check_ensemble()

    def _check_ensemble(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise InputError(
                f"`ensemble` must be one of {', '.join(ENSEMBLES)}, got "
                f"{self.ensemble!r}"
            )
        known = ENSEMBLES[self.ensemble]
        for name in sorted({name for names in ENSEMBLES.values() for name in names}):
            if getattr(self, name) is not None and name not in known:
                users = [e for e, names in ENSEMBLES.items() if name in names]
                raise InputError(
                    f"`{name}` does nothing in the ensemble {self.ensemble}; it is for "
                    f"{', '.join(users)}"
                )
        needed = [] if self.ensemble == "nve" else ["temperature_K"]
        if "pressure_GPa" in known:
            needed += ["pressure_GPa", "compressibility_per_GPa"]
        for name in needed:
            if getattr(self, name) is None:
                raise InputError(f"the ensemble {self.ensemble} needs `{name}`")

    @property
    def n_steps(self) -> int:
        """Length of the run."""
        if self.steps is not None:
            return self.steps
        assert self.picoseconds is not None  # one of the two is there
        return round(1000 * self.picoseconds / self.timestep_fs)

    def integrator(self) -> "Integrator":
        """Return what moves the systems."""
        from mlff.dynamics import barostats, integrators

        shared = _given(
            timestep_fs=self.timestep_fs,
            seed=self.seed,
            remove_motion=self.remove_motion,
        )
        temperature: Any = _target(self.temperature_K)
        if self.ensemble == "nve":
            return integrators.VelocityVerlet(
                initial_temperature_K=temperature, **shared
            )
        if self.ensemble == "langevin":
            friction = _given(friction_per_fs=self.friction_per_fs)
            return integrators.Langevin(temperature_K=temperature, **friction, **shared)
        constant = _given(time_constant_fs=self.time_constant_fs)
        thermostat = integrators.VelocityRescaling(
            temperature_K=temperature, **constant, **shared
        )
        if self.ensemble == "rescaling":
            return thermostat
        kinds = {
            "npt-isotropic": barostats.IsotropicCellRescaling,
            "npt-flexible": barostats.FlexibleCellRescaling,
        }
        pressure: Any = _target(self.pressure_GPa)
        compressibility: Any = self.compressibility_per_GPa
        return kinds[self.ensemble](
            thermostat=thermostat,
            pressure_GPa=pressure,
            compressibility_per_GPa=compressibility,
            **_given(time_constant_fs=self.pressure_time_constant_fs),
        )

    def potential(self) -> "Potential":
        """Return what the forces come from."""
        return _potential(self.model, self.device, self.dtype)


@dataclass(frozen=True, kw_only=True)
class RelaxConfig:
    """A relaxation.

    Attributes:
        structures: files whose frames are the systems.
        model: name of a shipped model, or a file; several, separated by commas, are the
            members of a committee.
        out: folder to write into.
        charge: of every frame; from the files if not given.
        spin: multiplicity 2S+1, likewise.
        fmax: largest force that may be left, eV/Å.
        optimizer: ``"lbfgs"`` or ``"fire"``.
        max_steps: of each system.
        hold: coordinates of every system that keep their values: ``"angle 1 0 2"``.
        limits: bounds on the way.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: of the network; that of the model file if not given.
    """

    structures: tuple[str, ...]
    model: str
    out: str
    charge: int | None = None
    spin: int | None = None
    fmax: float = 0.01
    optimizer: str = "lbfgs"
    max_steps: int = 500
    hold: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    device: str = "cpu"
    dtype: str | None = None

    def potential(self) -> "Potential":
        """Return what the forces come from."""
        return _potential(self.model, self.device, self.dtype)


def _potential(model: str, device: str, dtype: str | None) -> "Potential":
    from mlff.device import check_device, check_dtype
    from mlff.potential import load

    potential = load(model, check_device(device), check_dtype(dtype))
    potential.check_properties(("energy", "forces"), False)
    return potential


def state_pairs(text: str) -> list[list[int]]:
    """Read states as a command has them, ``"0,1 0,3"``: charge and multiplicity.

    Raises:
        InputError: anything else.
    """
    try:
        states = [[int(number) for number in pair.split(",")] for pair in text.split()]
    except ValueError:
        states = []
    if not states or any(len(state) != 2 for state in states):
        raise InputError(
            f"must be charge,multiplicity pairs like '0,1 0,3', got {text!r}"
        )
    return states


def _given(**settings: Any) -> dict[str, Any]:
    """Settings that were given; the others keep the defaults of the class."""
    return {name: value for name, value in settings.items() if value is not None}


def _target(course: Course | None) -> "Target | None":
    from mlff.dynamics.schedules import Ramp

    if not isinstance(course, tuple):
        return course
    times, values = zip(*course, strict=True) if course else ((), ())
    return Ramp(times_fs=times, values=values)


def read_config(kind: type[Config], arguments: argparse.Namespace) -> Config:
    """Return what a command says, with or without a run file.

    Args:
        kind: :class:`MDConfig` or :class:`RelaxConfig`.
        arguments: of the command; those that were not given are ``None``.

    Raises:
        InputError: no structures, a run file beside them, or a key that is unknown,
            missing or out of range.
    """
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    bounds = {f.name for f in fields(Limits)}
    options = {k: v for k, v in vars(arguments).items() if v is not None}
    table: dict[str, Any] = {}
    files = options.pop("structures")
    runs = [file for file in files if file.endswith(".toml")]
    if runs and len(files) > 1:
        raise InputError(
            f"give one run file or structure files, not both: {', '.join(files)}"
        )
    if runs:
        table = _anchored(read_toml(runs[0]), Path(runs[0]).parent)
    else:
        table["structures"] = files
    for one, other in (("steps", "picoseconds"), ("picoseconds", "steps")):
        if one in options:
            table.pop(other, None)
    table |= {name: value for name, value in options.items() if name in names}
    limits = {name: value for name, value in options.items() if name in bounds}
    if limits:
        table["limits"] = {**table.get("limits", {}), **limits}
    for name, option in (
        ("model", "model"),
        ("out", "out"),
        ("coordinates", "coordinate"),
    ):
        if name in names and name not in table:
            raise InputError(f"give --{option}, or `{name}` in the run file")
    return from_table(kind, table)


def _anchored(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A table whose paths are relative to a folder; other types are left to fail.

    One file, and states as a command has them, may be strings.
    """
    out = dict(table)
    if isinstance(out.get("structures"), str):
        out["structures"] = [out["structures"]]
    if isinstance(out.get("states"), str):
        try:
            out["states"] = state_pairs(out["states"])
        except InputError as error:
            raise InputError(f"`states` {error}") from error
    if isinstance(out.get("structures"), list):
        out["structures"] = [
            str(folder / name) if isinstance(name, str) else name
            for name in out["structures"]
        ]
    if isinstance(out.get("out"), str):
        out["out"] = str(folder / out["out"])
    if isinstance(out.get("model"), str):
        out["model"] = _anchored_model(out["model"], folder)
    return out


def _anchored_model(model: str, folder: Path) -> str:
    """A model of a run file; the members of a committee are separated by commas."""
    names = [model] if (folder / model).is_file() else model.split(",")
    return ",".join(
        str(folder / name) if (folder / name).is_file() else name for name in names
    )
