"""The models, by name."""

import dataclasses
import difflib
from typing import Any

from mlff.errors import InputError
from mlff.models.base import Features, Representation
from mlff.models.cmret import CMRET
from mlff.models.demetar import DEMETAr
from mlff.models.edgewise import EdgeFeatures, Edgewise, EdgewiseConfig
from mlff.models.egnn import EGNN
from mlff.models.geomformer import GeoMFormer
from mlff.models.invariant_attention import InvariantAttention
from mlff.models.painn import PaiNN

#: Every model, by name. Adding one is a line here.
MODELS: dict[str, type[Representation]] = {
    "cmret": CMRET,
    "demetar": DEMETAr,
    "egnn": EGNN,
    "geomformer": GeoMFormer,
    "invariant_attention": InvariantAttention,
    "painn": PaiNN,
}

__all__ = [
    "MODELS",
    "EdgeFeatures",
    "Edgewise",
    "EdgewiseConfig",
    "Features",
    "Representation",
    "build_model",
]


def build_model(name: str, **options: Any) -> Representation:
    """Build a model with fresh weights.

    Args:
        name: a key of :data:`MODELS`.
        **options: fields of the model's configuration, e.g. ``n_features=128``.

    Raises:
        InputError: unknown name, unknown option, or an option out of range.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise InputError(f"`name` must be one of {sorted(MODELS)}, got {name!r}")
    model = MODELS[name]
    known = [f.name for f in dataclasses.fields(model.Config)]
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise InputError(
                f"model {name!r} has no option {option!r}{hint} It has {known}"
            )
    return model(model.Config(**options))
