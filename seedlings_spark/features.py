"""The path under which saved pipelines name the stages of `estimator.features`."""

from seedlings_spark.estimator.features import ImageStandardizer, ImageStandardizerModel

__all__ = ["ImageStandardizer", "ImageStandardizerModel"]
