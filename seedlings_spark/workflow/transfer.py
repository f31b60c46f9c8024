"""A new last layer on features that are computed once, on the cluster, and kept as a table beside the store's versions.

A network whose layers but the last one are frozen gives the same features for an image in every epoch, and in every
run. So they are computed by the scoring engine when they are first wanted, and a run trains one layer on numbers.
"""

import json
import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import ArrayType, FloatType, IntegerType, StructField, StructType

from seedlings_spark import files, fingerprint, schema
from seedlings_spark.choices import BACKBONES, FEW_VIEWS
from seedlings_spark.cluster import runtime
from seedlings_spark.corpus import Corpus, tables
from seedlings_spark.errors import StoreError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel
from seedlings_spark.models import networks
from seedlings_spark.models.backbones import STAGES, standardized
from seedlings_spark.workflow import pipeline

with runtime.quiet_import():
    import keras

_log = logging.getLogger(__name__)
FEATURES = "features"
NAMED = "table"  # the file that names the folder of a whole one
# Of the head before all other layers are trained: what takes seconds, and leaves little to learn.
HEAD_EPOCHS, HEAD_RATE = 20, 0.001
# Number of a view, 0 for the image itself.
_VIEW = "view"
# Features that their mean and deviation are taken from.
_MOST_NUMBERS = 4_000_000


def is_for(network: str, fine_tune: str, augment: Sequence[str]) -> bool:
    """Whether features can be kept: the head alone is trained, on images of which there are few views."""
    return network in BACKBONES and fine_tune == "head" and set(augment) in FEW_VIEWS


def num_views(augment: Sequence[str], image_size: tuple[int, int]) -> int:
    """How many views an image has by changes that `is_for` allows: as `prediction.views` makes them.

    Args:
        augment: Changes to images.
        image_size: (height, width) in pixels; what is not square is not turned by a quarter.
    """
    if "flip" in augment:
        return 8 if "turn" in augment and image_size[0] == image_size[1] else 4
    return 2 if "mirror" in augment else 1


def in_views(images: DataFrame, count: int) -> DataFrame:
    """Rows of images, with one for each view of one that is trained on; a view has a hash of its own.

    Args:
        images: With a content hash and a split.
        count: As `num_views` gives it.
    """
    of_train = F.when(F.col(schema.SPLIT) == schema.TRAIN, F.lit(count)).otherwise(F.lit(1))
    views = F.explode(F.sequence(F.lit(0), of_train - 1)).alias(_VIEW)
    return _with_own_hashes(images.select("*", views)).drop(_VIEW)


def _with_own_hashes(table: DataFrame) -> DataFrame:
    """Views of one image as rows that are not the same."""
    of_view = F.sha2(F.concat_ws(":", F.col(schema.CONTENT_HASH), F.col(_VIEW).cast("string")), 256)
    itself = F.col(_VIEW) == 0
    chosen = F.when(itself, F.col(schema.CONTENT_HASH)).otherwise(of_view)
    return schema.with_content_hash(table.withColumn(schema.CONTENT_HASH, chosen))


@dataclass(frozen=True)
class Kept:
    """Features that are kept.

    Args:
        network: One of `choices.BACKBONES`, built for a corpus, with its weights.
        folder: Where features are kept, those of each network in a folder of its own.
        count: Views of each image that is trained on, as `num_views` gives it.
    """

    network: Any
    folder: str
    count: int = 1


def fit(
    spark: SparkSession,
    estimator: SeedlingsEstimator,
    corpus: Corpus,
    kept: Kept,
    images: DataFrame | None = None,
) -> PipelineModel:
    """Train the last layer of a network, and give what `pipeline.pipeline(...).fit` gives for the whole of it.

    Args:
        spark: The session.
        estimator: With all params but its network and columns.
        corpus: Whose training and validation images are taken.
        kept: The network, whose last layer is trained in place unless its stages are to be standardised, and where its
            features are.
        images: Those that are taken, and which of them are held out; None for all, and the validation images.
    """
    table, network = features(spark, corpus, kept), kept.network
    if images is not None:
        # By path: files of the same content may lie in two splits.
        marks = images.select(schema.PATH, pipeline.HELD_OUT)
        table = table.drop(pipeline.HELD_OUT).join(marks, schema.PATH)
    table = _with_own_hashes(table.where(~F.col(pipeline.HELD_OUT) | (F.col(_VIEW) == 0))).drop(_VIEW)
    if any(layer.name == STAGES for layer in network.layers):
        length = networks.features_of(network).output_shape[-1]
        network = standardized(network, *_moments(table, max(2, _MOST_NUMBERS // length)))
    estimator.set_network(_head(network))
    stages = pipeline.pipeline(corpus, estimator, scaler="none", scaler_images=0)
    estimator._set(featuresCol=FEATURES)
    fitted = stages.fit(table)
    head = cast(SeedlingsModel, fitted.stages[-1])
    _last(network).set_weights(head.get_model().get_weights())
    whole = head.copy()
    whole._set(featuresCol=schema.IMAGE)
    whole._take(networks.to_bytes(network), head.history, head.record)
    return PipelineModel([*fitted.stages[:-1], whole])


def _head(network: Any) -> Any:
    """The layers behind the features, as a network of their own with copies of the weights."""
    inputs = x = keras.Input(networks.features_of(network).output_shape[1:], name=FEATURES)
    for layer in network.layers[networks.place_of_head(network) :]:
        x = type(layer).from_config(layer.get_config())(x)
    head = keras.Model(inputs, x, name="head")
    head.set_weights(_last(network).get_weights())
    return head


def _last(network: Any) -> Any:
    """The last layer with weights: the one that is trained."""
    return [layer for layer in network.layers if layer.weights][-1]


def _moments(table: DataFrame, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of each feature over so many rows that are trained on: the first ones by their hash."""
    chosen = table.where(~F.col(pipeline.HELD_OUT)).orderBy(schema.CONTENT_HASH).limit(count)
    rows = np.array([row[0] for row in chosen.select(FEATURES).collect()], np.float64)
    return rows.mean(axis=0), rows.var(axis=0)


def _of_views(network: Any, count: int) -> Any:
    """The features of each view of an image, one after the other: those of `prediction.views`, in their order."""
    of_one = networks.features_of(network)
    if count == 1:
        return of_one
    inputs = keras.Input(network.input_shape[1:], name="pixels_of_views")
    seen = [inputs]
    if count >= 2:
        seen += [keras.ops.flip(each, axis=2) for each in seen]
    if count >= 4:
        seen += [keras.ops.flip(each, axis=1) for each in seen]
    if count >= 8:
        seen += [keras.ops.transpose(each, (0, 2, 1, 3)) for each in seen]
    joined = keras.layers.Concatenate(name=FEATURES)([of_one(each) for each in seen])
    return keras.Model(inputs, joined)


def place_of(corpus: Corpus, kept: Kept) -> str:
    """Where the features of a corpus are kept.

    They are of these very files of the corpus: of another split, or another cut, of the same pictures they are others.
    """
    given = networks.features_of(kept.network)
    # Without the numbers of the layers' names, which Keras gives by what the process has built before.
    layers = re.sub(r'_\d+"', '"', given.to_json())
    texts = (json.dumps(dict(corpus.manifest), sort_keys=True), layers, f"{kept.count} views")
    weights = (weight.tobytes() for weight in given.get_weights())
    key = fingerprint.content_hash(b"".join(["".join(texts).encode(), *weights]))
    return files.join(kept.folder, key[:16])


def features(spark: SparkSession, corpus: Corpus, kept: Kept) -> DataFrame:
    """The features of each view of training and validation images, computed if no earlier run has.

    Raises:
        StoreError: Of what an earlier run has left something is gone.
    """
    folder, count = place_of(corpus, kept), kept.count
    images = pipeline.training_images(spark, corpus)
    added = [StructField(_VIEW, IntegerType()), StructField(FEATURES, ArrayType(FloatType()))]
    layout = StructType([*images.drop(schema.IMAGE).schema, *added])
    named = files.join(folder, NAMED)
    if files.exists(named):
        _log.info("the features are those that an earlier run has left in %s", folder)
    else:
        _log.info("computing the features of all images once; they are kept in %s", folder)
        table = uuid.uuid4().hex
        of_views = _of_views(kept.network, count)
        model = SeedlingsModel.featurizer(of_views, of_views.layers[-1].name, output_col=FEATURES)
        made = _a_row_for_each_view(model.transform(images), count)
        place = files.join(folder, table)
        made.select(*layout.names).write.options(**tables.write_options(place)).parquet(place)
        try:
            files.create(named, table.encode())
        except FileExistsError:  # of runs that begin at once the first to end is followed by all
            files.delete(place)
    found = tables.parquet(spark, files.join(folder, files.read_text(named)), layout)
    expected = count * sum(corpus.num_images(split) for split in (schema.TRAIN, schema.VALIDATION))
    if (rows := found.count()) != expected:
        raise StoreError(f"features of {rows:,} images in {folder}", f"of {expected:,}", "Delete the folder")
    return found


def _a_row_for_each_view(table: DataFrame, count: int) -> DataFrame:
    """Features of all views of an image, one after the other, as rows."""
    length = (F.size(FEATURES) / F.lit(count)).cast("int")
    views = F.explode(F.sequence(F.lit(0), F.lit(count - 1))).alias(_VIEW)
    part = F.slice(FEATURES, F.col(_VIEW) * length + 1, length).cast("array<float>")
    return table.select("*", views).withColumn(FEATURES, part)
