"""Elephas' own classes, some of which ours extend; their only door.

Elephas is not among what pip installs with this package: its metadata allows older packages only.
"""

from seedlings_spark.cluster import environment
from seedlings_spark.errors import ClusterError

try:
    from elephas import ml_model
    from elephas.ml_model import ElephasEstimator, ElephasTransformer
    from elephas.utils.model_utils import LossModelTypeMapper, ModelType, ModelTypeEncoder, as_enum
except ModuleNotFoundError as missing:
    if missing.name != "elephas":
        raise
    remedy = f"Install it with pip install {' '.join(environment.ELEPHAS)}"
    raise ClusterError("a Python without elephas", "Elephas 7.3.0", remedy) from None

__all__ = [
    "ElephasEstimator",
    "ElephasTransformer",
    "LossModelTypeMapper",
    "ModelType",
    "ModelTypeEncoder",
    "as_enum",
    "ml_model",
]
