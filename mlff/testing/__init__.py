"""The contracts of the package, importable: run them on your own model or calculator.

Each check was shown to fail on a deliberately broken toy (``tests/contract``).
"""

from mlff.testing.calculator import check_calculator
from mlff.testing.models import MODEL_CHECKS, check_model
from mlff.testing.neighbors import check_neighbors

__all__ = ["MODEL_CHECKS", "check_calculator", "check_model", "check_neighbors"]
