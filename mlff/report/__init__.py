"""What a run or a relaxation of many systems amounts to, for people and for programs.

Takes what :func:`mlff.run_md`, :func:`mlff.relax` or :func:`mlff.scan` returns, or a
trajectory file, and writes a table, a CSV file with a line for each system, and
pictures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlff.report.figures import plot_conserved, plot_gaps, plot_temperature
from mlff.report.relaxation import plot_relaxation, relaxation_csv, relaxation_table
from mlff.report.run import Kind, Run
from mlff.report.scans import Reference, reference_csv, scan_table
from mlff.report.surfaces import plot_surface
from mlff.report.tables import md_csv, md_table

if TYPE_CHECKING:
    from mlff.relaxation.relaxed import Relaxed
    from mlff.scanning import Surface

__all__ = ["Kind", "Reference", "Run", "report_md", "report_relaxation", "report_scan"]


def report_md(run: Run, folder: str | Path, remarks: Sequence[str] = ()) -> str:
    """Write the report of a run; what is there of an earlier one is replaced.

    Args:
        run: what to tell of.
        folder: to write into, which is there: ``summary.txt``, ``summary.csv``,
            ``conserved_energy.png``, ``temperature.png`` and, if energies of several
            states were recorded, ``gaps.png``.
        remarks: lines below the table.

    Returns:
        The table, which is in ``summary.txt`` too.
    """
    folder = Path(folder)
    table = "\n".join((md_table(run), *remarks))
    (folder / "summary.txt").write_text(table + "\n", encoding="utf-8")
    md_csv(run, folder / "summary.csv")
    plot_conserved(run, folder / "conserved_energy.png")
    plot_temperature(run, folder / "temperature.png")
    (folder / "gaps.png").unlink(missing_ok=True)
    if run.gaps():
        plot_gaps(run, folder / "gaps.png")
    return table


def report_relaxation(
    results: Sequence["Relaxed"], folder: str | Path, remarks: Sequence[str] = ()
) -> str:
    """Write the report of a relaxation; what is there of an earlier one is replaced.

    Args:
        results: of :func:`mlff.relax`, at least one.
        folder: to write into, which is there: ``summary.txt``, ``summary.csv`` and
            ``relaxation.png``.
        remarks: lines below the table.

    Returns:
        The table, which is in ``summary.txt`` too.
    """
    folder = Path(folder)
    table = "\n".join((relaxation_table(results), *remarks))
    (folder / "summary.txt").write_text(table + "\n", encoding="utf-8")
    relaxation_csv(results, folder / "summary.csv")
    plot_relaxation(results, folder / "relaxation.png")
    return table


def report_scan(
    surface: "Surface", folder: str | Path, reference: Reference | None = None
) -> str:
    """Write the report of a scan; what is there of an earlier one is replaced.

    Args:
        surface: of :func:`mlff.scan`.
        folder: to write into, which is there: ``summary.txt``, ``surface.csv``, of one
            or two axes ``surface.png``, and ``reference.csv`` if there is one.
        reference: energies to hold the scan against.

    Returns:
        The table, which is in ``summary.txt`` too.
    """
    folder = Path(folder)
    table = scan_table(surface, reference)
    (folder / "summary.txt").write_text(table + "\n", encoding="utf-8")
    surface.write_csv(folder / "surface.csv")
    for name in ("surface.png", "reference.csv"):
        (folder / name).unlink(missing_ok=True)
    if reference is not None:
        reference_csv(surface, reference, folder / "reference.csv")
    if len(surface.axes) <= 2:
        plot_surface(surface, folder / "surface.png", reference)
    return table
