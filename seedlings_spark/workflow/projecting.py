"""From a version and a split to pictures as points: features by the scoring engine."""

import logging

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import choices, schema
from seedlings_spark.errors import NetworkError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.models.store import ModelVersion
from seedlings_spark.reports import projector
from seedlings_spark.workflow import predicting

_log = logging.getLogger(__name__)


def featurizer(version: ModelVersion, engine: str) -> SeedlingsModel:
    """What adds the features that a version tells the classes by, as `schema.FEATURES`.

    Args:
        version: The version.
        engine: One of `choices.ENGINES`.

    Raises:
        NetworkError: It has no network of ours.
        OptionError: The layer before the last gives no one vector a picture.
    """
    network = predicting.network_of(version, "--projector").get_model()
    made = SeedlingsModel.featurizer(network, output_col=schema.FEATURES)
    if engine != choices.TENSORFLOW:
        try:
            made.use_onnx()
        except NetworkError as error:
            _log.warning("features are computed by TensorFlow: %s", error.found)
    return made


def projected(featurizer: SeedlingsModel, predictions: DataFrame, pixels: DataFrame) -> projector.Projection:
    """Pictures of a split, or as many as can be looked at, as points.

    Args:
        featurizer: As `featurizer` makes it.
        predictions: As `schema.EVALUATED`.
        pixels: The same pictures, as `schema.CORPUS`.
    """
    chosen = predictions.orderBy(schema.CONTENT_HASH).limit(projector.MOST_IMAGES).collect()
    names = (schema.PATH, schema.CONTENT_HASH, schema.SPECIES, schema.PREDICTED_SPECIES, schema.CONFIDENCE)
    points = [projector.Point(*(row[name] for name in names)) for row in chosen]
    last = max(each.content_hash for each in points)
    few = pixels.where(F.col(schema.CONTENT_HASH) <= last)
    return projector.projection(points, featurizer.transform(few))
