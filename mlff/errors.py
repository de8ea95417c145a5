"""The one family of errors and warnings that the package raises on bad input.

Every error is an ``MlffError`` and also the built-in type that a caller would expect,
and its text names the argument, what came, what was needed and the cure.
"""

import warnings

_said: set[str] = set()


class MlffError(Exception):
    """Base of everything that mlff raises on purpose."""


class InputError(MlffError, ValueError):
    """A value that cannot be used: the text names it and the cure."""


class InputTypeError(MlffError, TypeError):
    """A value of the wrong type: the text names it and what was needed."""


class StateError(InputError):
    """Charge and multiplicity that are missing, in conflict or impossible."""


class ModelFileError(InputError):
    """A model file that is damaged, foreign or not what was asked for."""


class DataError(InputError):
    """Training data that would teach a model something wrong."""


class MlffWarning(UserWarning):
    """Something that works but that the user should know."""


def warn_once(text: str, stacklevel: int = 3) -> None:
    """Warn with :class:`MlffWarning`, once per process and text."""
    if text not in _said:
        _said.add(text)
        warnings.warn(text, MlffWarning, stacklevel=stacklevel)
