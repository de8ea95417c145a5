"""What importing costs, what is reachable, and what ends up in a wheel."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mlff

ROOT = Path(__file__).parents[2]
OPTIONAL = {"pyscf", "threadpoolctl", "matplotlib", "pytest"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running ``code``."""
    probe = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{probe}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {n.split(".")[0] for n in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_loads_next_to_nothing():
    loaded = loaded_by("import mlff")
    assert "mlff" in loaded
    assert not loaded & {"torch", "ase", "numpy", "scipy", *OPTIONAL}


def test_help_is_answered_without_torch_or_ase():
    code = (
        "from mlff.cli import main\n"
        "for argv in (['--help'], ['label', '--help'], ['--version']):\n"
        "    try: main(argv)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
    )
    assert not loaded_by(code) & {"torch", "ase", "numpy", *OPTIONAL}


def test_no_public_name_needs_an_optional_package():
    code = (
        "import mlff\n"
        "for name in mlff.__all__:\n"
        "    if name != 'testing': getattr(mlff, name)\n"
    )
    loaded = loaded_by(code)
    assert {"torch", "ase"} <= loaded
    assert not loaded & OPTIONAL


def test_labelling_workers_do_not_load_torch():
    assert "torch" not in loaded_by("import mlff.labels")


def test_every_public_name_is_there():
    for name in mlff.__all__:
        assert getattr(mlff, name) is not None
        assert name in dir(mlff)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = mlff.colour


@pytest.mark.parametrize(
    "name",
    [
        "AtomsBatch.from_atoms",
        "MLFFCalculator",
        "MODELS",
        "build_model",
        "dft.DFTSettings",
        "dft.label",
        "evaluate",
        "fit",
        "load",
        "predict",
        "set_state",
        "testing.check_calculator",
        "testing.check_model",
        "testing.check_neighbors",
    ],
)
def test_the_names_that_users_rely_on_are_there(name):
    found = mlff
    for part in name.split("."):
        found = getattr(found, part)


# Versions


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_version_is_told_once_and_the_same():
    assert project()["version"] == mlff.__version__


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *extras["dft"], *extras["dev"]]
    assert len(wanted) > 8
    for text in wanted:
        requirement = Requirement(text)
        assert requirement.specifier.contains(
            pins()[canonicalize_name(requirement.name)]
        )


def test_pins_are_exact_and_free_of_local_builds():
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), name


def test_torch_is_installed_in_the_pinned_version():
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert f"torch=={pins()['torch']}" in lines
    assert "-c constraints.txt" in lines


@pytest.mark.slow
def test_a_wheel_holds_the_package_its_models_and_nothing_else(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("mlff", "tests", "data_gen"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = out.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        f"mlff/{path.relative_to(ROOT / 'mlff')}"
        for pattern in ("**/*.py", "py.typed", "pretrained/*")
        for path in (ROOT / "mlff").glob(pattern)
        if path.is_file()
    }
    assert needed <= files
    assert {name.split("/")[0] for name in files} == {
        "mlff",
        f"mlff-{mlff.__version__}.dist-info",
    }
