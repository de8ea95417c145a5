"""The command line: one verb for each function, and no more logic than that.

Everything heavy is imported inside the verbs, so that ``mlff --help`` answers at once.
A mistake of the user ends with one line on stderr and exit code 2, an interruption with
130 and how to go on; a traceback means a bug.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from mlff import __version__
from mlff.cli import cross, describe, explore, learn, move, trajectories, vibrate
from mlff.errors import MlffError, MlffWarning


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments; those of the process if not given.

    Returns:
        The exit code: 0 done, 1 done in part, 2 refused, 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return int(arguments.verb(arguments))
        except (MlffError, OSError) as error:
            print(f"mlff: error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"mlff: interrupted; {arguments.go_on}", file=sys.stderr)
            return 130


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    name = "" if issubclass(category, MlffWarning) else f"{category.__name__}: "
    print(f"mlff: warning: {name}{message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlff",
        description="Machine-learned force fields for molecules whose charge and spin "
        "matter. Units: eV, Å, e; spin is the multiplicity 2S+1.",
        epilog="mlff VERB --help tells more about each.",
    )
    parser.add_argument("--version", action="version", version=f"mlff {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for group in (describe, learn, move, trajectories, vibrate, explore, cross):
        group.add_verbs(verbs)
    return parser
