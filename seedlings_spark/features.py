"""The path under which saved pipelines name the stages of `estimator.features`."""

from seedlings_spark.estimator.features import (
    ImageStandardizer,
    ImageStandardizerModel,
    MultiLabelBinarizer,
    MultiLabelBinarizerModel,
)

__all__ = ["ImageStandardizer", "ImageStandardizerModel", "MultiLabelBinarizer", "MultiLabelBinarizerModel"]
