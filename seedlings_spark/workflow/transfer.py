"""A new last layer on features that are computed once, on the cluster, and kept as a table beside the store's versions.

A network whose layers but the last one are frozen gives the same features for an image in every epoch, and in every
run. So they are computed by the scoring engine when they are first wanted, and a run trains one layer on numbers.
"""

import json
import logging
import uuid
from typing import Any, cast

from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from seedlings_spark import files, fingerprint, schema
from seedlings_spark.choices import BACKBONES
from seedlings_spark.cluster import runtime
from seedlings_spark.corpus import Corpus, tables
from seedlings_spark.errors import StoreError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel
from seedlings_spark.models import networks
from seedlings_spark.workflow import pipeline

with runtime.quiet_import():
    import keras

_log = logging.getLogger(__name__)
FEATURES = "features"
NAMED = "table"  # the file that names the folder of a whole one
# Of the head before all other layers are trained: what takes seconds, and leaves little to learn.
HEAD_EPOCHS, HEAD_RATE = 20, 0.001


def is_for(network: str, fine_tune: str, augment: tuple[str, ...]) -> bool:
    """Whether features can be kept: the head alone is trained, on images that are the same in every epoch."""
    return network in BACKBONES and fine_tune == "head" and augment == ("none",)


def fit(
    spark: SparkSession,
    estimator: SeedlingsEstimator,
    network: Any,
    corpus: Corpus,
    folder: str,
    images: DataFrame | None = None,
) -> PipelineModel:
    """Train the last layer of a network, and give what `pipeline.pipeline(...).fit` gives for the whole of it.

    Args:
        spark: The session.
        estimator: With all params but its network and columns.
        network: One of `choices.BACKBONES`, built for this corpus, with its weights. Its last layer is trained.
        corpus: Whose training and validation images are taken.
        folder: Where features are kept, each network's in a folder of its own.
        images: Which of them are held out; None for the validation images.
    """
    table = _kept(spark, network, corpus, folder)
    if images is not None:
        marks = images.select(schema.CONTENT_HASH, pipeline.HELD_OUT)
        table = schema.with_content_hash(table.drop(pipeline.HELD_OUT).join(marks, schema.CONTENT_HASH))
    estimator.set_network(_head(network))
    stages = pipeline.pipeline(corpus, estimator, scaler="none", scaler_images=0)
    estimator._set(featuresCol=FEATURES)
    fitted = stages.fit(table)
    head = cast(SeedlingsModel, fitted.stages[-1])
    _, last, *_ = _behind(network)
    last.set_weights(head.get_model().get_weights())
    whole = head.copy()
    whole._set(featuresCol=schema.IMAGE)
    whole._take(networks.to_bytes(network), head.history, head.record)
    return PipelineModel([*fitted.stages[:-1], whole])


def _head(network: Any) -> Any:
    """The layers behind the features, as a network of their own with copies of the weights."""
    features = networks.features_of(network)
    inputs = x = keras.Input(features.output_shape[1:], name=FEATURES)
    for layer in _behind(network):
        x = type(layer).from_config(layer.get_config())(x)
    head = keras.Model(inputs, x, name="head")
    _, last, *_ = _behind(network)
    head.set_weights(last.get_weights())
    return head


def _behind(network: Any) -> list[Any]:
    """The layers behind the features: a dropout, the last layer with weights, and what follows that."""
    place = max(place for place, layer in enumerate(network.layers) if layer.weights)
    return list(network.layers[place - 1 :])


def place_of(network: Any, corpus: Corpus, folder: str) -> str:
    """Where the features that a network gives of a corpus are kept, below a folder.

    They are of these very files of the corpus: of another split, or another cut, of the same pictures they are others.
    """
    features = networks.features_of(network)
    about = (json.dumps(dict(corpus.manifest), sort_keys=True) + features.to_json()).encode()
    key = fingerprint.content_hash(
        b"".join([about, *(weight.tobytes() for weight in features.get_weights())])
    )
    return files.join(folder, key[:16])


def _kept(spark: SparkSession, network: Any, corpus: Corpus, folder: str) -> DataFrame:
    """The features of the training and validation images, computed if no earlier run has.

    Raises:
        StoreError: Of what an earlier run has left something is gone.
    """
    folder = place_of(network, corpus, folder)
    images = pipeline.training_images(spark, corpus)
    layout = StructType([*images.drop(schema.IMAGE).schema, StructField(FEATURES, ArrayType(FloatType()))])
    named = files.join(folder, NAMED)
    if files.exists(named):
        _log.info("the features are those that an earlier run has left in %s", folder)
    else:
        _log.info("computing the features of all images once; they are kept in %s", folder)
        table = uuid.uuid4().hex
        model = SeedlingsModel.featurizer(network, output_col=FEATURES)
        made = model.transform(images).withColumn(FEATURES, F.col(FEATURES).cast("array<float>"))
        place = files.join(folder, table)
        made.select(*layout.names).write.options(**tables.write_options(place)).parquet(place)
        try:
            files.create(named, table.encode())
        except FileExistsError:  # of runs that begin at once the first to end is followed by all
            files.delete(place)
    kept = tables.parquet(spark, files.join(folder, files.read_text(named)), layout)
    expected = sum(corpus.num_images(split) for split in (schema.TRAIN, schema.VALIDATION))
    if (found := kept.count()) != expected:
        raise StoreError(f"features of {found:,} images in {folder}", f"of {expected:,}", "Delete the folder")
    return kept
