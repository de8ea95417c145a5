"""The shipped CH2 model on the labelled surface: inside and outside what it has seen.

python benchmarks/surface.py

Equal bonds 0.90 … 1.40 Å, angle 90 … 180°; the training square is 0.95 … 1.20 Å,
90 … 140°; its margin is what else is not reported as outside of training. The singlet
labels are restricted.
"""

import json
from pathlib import Path

import numpy as np

import mlff
from mlff.frames import read_frames
from mlff.inference import region_of

DATA = Path(__file__).parent.parent / "data_gen" / "ch2_surface.xyz"


def main() -> None:
    frames = read_frames(DATA)
    potential = mlff.load("ch2")
    out = mlff.predict(potential, frames)
    region = region_of(potential)
    assert region is not None  # the file records it
    reasons = region.reasons(mlff.AtomsBatch.from_atoms(frames))
    bond = np.array([a.get_distance(0, 1) for a in frames])
    angle = np.array([a.get_angle(1, 0, 2) for a in frames])
    spin = np.array([int(a.info["spin"]) for a in frames])
    energy = np.array(
        [o["energy"] - a.info["REF_energy"] for o, a in zip(out, frames, strict=True)]
    )
    forces = np.array(
        [
            np.abs(o["forces"] - a.arrays["REF_forces"]).mean()
            for o, a in zip(out, frames, strict=True)
        ]
    )
    inside = (bond > 0.9499) & (bond < 1.2001) & (angle < 140.01)
    near = np.array([not text for text in reasons]) & ~inside
    report = {}
    for name, multiplicity in (("singlet", 1), ("triplet", 3)):
        for where, chosen in (
            ("inside", inside),
            ("in the margin around", near),
            ("outside", ~inside),
        ):
            rows = chosen & (spin == multiplicity)
            report[f"{name}, {where} the training square"] = {
                "points": int(rows.sum()),
                "energy_mae_meV": round(1e3 * float(np.abs(energy[rows]).mean()), 3),
                "energy_max_meV": round(1e3 * float(np.abs(energy[rows]).max()), 3),
                "forces_mae_meV_per_A": round(1e3 * float(forces[rows].mean()), 3),
            }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
