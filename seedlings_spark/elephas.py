"""Drop-in for `elephas.ml_model`: the public path of `estimator.elephas`, which saved pipelines name too."""

from seedlings_spark.estimator.elephas import (
    ElephasEstimator,
    ElephasTransformer,
    load_ml_estimator,
    load_ml_transformer,
)

__all__ = ["ElephasEstimator", "ElephasTransformer", "load_ml_estimator", "load_ml_transformer"]
