"""Spark ML's face of training: `SeedlingsEstimator` and `SeedlingsModel`.

Their modules import Keras and Elephas, and this package's others must not: names are looked up when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seedlings_spark.estimator.estimator import SeedlingsEstimator
    from seedlings_spark.estimator.model import SeedlingsModel, keep_network_once, read_network

__all__ = ["SeedlingsEstimator", "SeedlingsModel", "keep_network_once", "read_network"]

_MODULES = {"SeedlingsEstimator": "estimator"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'model')}"), name)
