"""`mlff demo` does what it says and leaves what it says."""

import json

import numpy as np
import pytest
from ase.io import read

from mlff.demo import run_demo
from mlff.errors import InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, picoseconds=0.1, progress=False)


def test_every_file_is_there_and_can_be_read(finished):
    folder, summary = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    for name in ("scan.png", "md_energy.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for name in ("singlet", "triplet"):
        path = read(folder / f"{name}_md.traj", ":")
        assert len(path) == 21
        assert np.isfinite([a.get_potential_energy() for a in path]).all()
        relaxed = read(folder / f"{name}_relax.traj", -1)
        assert np.abs(relaxed.get_forces()).max() < 1e-3


def test_minima_and_gap_agree_with_dft(finished):
    _, summary = finished
    assert summary["gap_eV"] == pytest.approx(summary["gap_dft_eV"], abs=1e-3)
    for name, model in summary["minima"].items():
        dft = summary["minima_dft"][name]
        assert model["bond"] == pytest.approx(dft["bond"], abs=1e-3)
        assert model["angle"] == pytest.approx(dft["angle"], abs=0.1)


def test_dynamics_conserve_energy(finished):
    _, summary = finished
    for drift in summary["drift_meV_per_atom_per_ps"].values():
        assert abs(drift) < 5.0


def test_an_unusable_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="`out`"):
        run_demo(tmp_path / "file")
    with pytest.raises(InputError, match="no step"):
        run_demo(tmp_path / "new", picoseconds=0)
