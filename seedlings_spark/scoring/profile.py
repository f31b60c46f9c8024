"""What images and predictions look like as a whole, to compare a run with the training corpus."""

import json
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import files, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import StoreError
from seedlings_spark.kinds import Kind
from seedlings_spark.models import prediction
from seedlings_spark.models.store import ModelVersion
from seedlings_spark.reports import drift
from seedlings_spark.scoring.tasks import (
    CELLS,
    DESCRIBED,
    SCORED,
    describe,
    histograms,
    score_decoded,
    with_prediction,
    with_species,
)

# In a profile's species: images of which no species was named, where any number of them may be.
NO_SPECIES = "(none)"


def profile_of_corpus(version: ModelVersion) -> drift.Profile | None:
    """What a version keeps of the corpus that it was trained on; None where it keeps nothing.

    Raises:
        SeedlingsError: It is damaged.
    """
    if not files.exists(version.profile_path):
        return None
    try:
        return drift.Profile.from_json(json.loads(files.read_text(version.profile_path)))
    except ValueError as error:  # bad JSON, or bad UTF-8
        raise StoreError(
            f"{version.profile_path}, which is no JSON ({error})",
            "the profile that was published",
            "Restore the file from a copy, or publish the version again",
        ) from None


def require_profile(version: ModelVersion) -> None:
    """Refuse to guard against drift with a version that knows nothing to drift from.

    Raises:
        StoreError: It keeps no profile of its corpus, or an empty one.
    """
    profile = profile_of_corpus(version)
    if profile is None or not profile.num_predicted:
        raise StoreError(
            f"--max-drift with {version.name} {version.version}, which has "
            + ("no profile of a corpus" if profile is None else "an empty profile of its corpus"),
            "a version that train has published: an imported network's corpus is not known",
            "Leave --max-drift out, or choose another --model-version",
        )


def profile_of(predictions: DataFrame, kind: Kind, species: Mapping[str, int] | None = None) -> drift.Profile:
    """The profile of a table with the columns `predicted_species`, if they are of species, and `cells`.

    Args:
        predictions: The table.
        kind: Of the predictions.
        species: How many rows have each of them, where that is known; then the first column is not needed.
    """
    if species is None:
        species = count_species(predictions)
    return drift.Profile(dict(species), _counted(predictions, histograms(kind)))


def _counted(rows: DataFrame, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The histograms of these names, in the order of the `cells` of a table."""
    cells = rows.select(F.posexplode(CELLS).alias("place", "cell")).groupBy("place", "cell").count()
    counts = {name: np.zeros(drift.NUM_BINS, np.int64) for name in names}
    for place, cell, count in cells.collect():
        counts[names[place]][cell] = count
    return {name: tuple(map(int, each)) for name, each in counts.items()}


def count_species(predictions: DataFrame) -> dict[str, int]:
    """How many rows of a table have each `predicted_species`; where that is a list, each name in it counts.

    Of a table of numbers there are none.
    """
    kind, name = schema.kind_of(predictions), F.col(schema.PREDICTED_SPECIES)
    if kind == Kind.REGRESSION:
        return {}
    if kind == Kind.MULTILABEL:
        name = F.explode(F.when(F.size(name) == 0, F.array(F.lit(NO_SPECIES))).otherwise(name))
    counts = predictions.select(name.alias("name")).groupBy("name").count().collect()
    return {row[0]: int(row[1]) for row in counts}


def count_values(predictions: DataFrame) -> dict[str, float | None]:
    """Mean, least and most `predicted_value` of a table, null where it is empty; nothing of a table of species."""
    if schema.kind_of(predictions) != Kind.REGRESSION:
        return {}
    value = F.col(schema.PREDICTED_VALUE).cast("double")
    (found,) = predictions.agg(F.avg(value), F.min(value), F.max(value)).collect()
    return dict(zip(("mean", "least", "most"), found, strict=True))


def profile_of_images(
    spark: SparkSession,
    prepared: DataFrame,
    forward: prediction.ForwardTask,
    image_size: tuple[int, int],
    classes: Sequence[str],
) -> drift.Profile:
    """The profile of prepared images.

    Args:
        spark: The session.
        prepared: A table of `schema.CORPUS`.
        forward: The network.
        image_size: (height, width) in pixels.
        classes: Their names, in the order of the network's outputs.
    """
    with session.arrow_batches(spark, image_size[0] * image_size[1] * 3):
        scored = probabilities(spark, prepared, forward)
        kind = forward.reading.kind
        rows = with_prediction(scored, classes, forward.reading)
        rows = rows.select(schema.prediction_of(kind), CELLS).persist()
        try:
            return profile_of(rows, kind)
        finally:
            rows.unpersist()


def profile_of_pixels(spark: SparkSession, prepared: DataFrame, image_size: tuple[int, int]) -> drift.Profile:
    """What prepared images look like, whatever a network says of them.

    Args:
        spark: The session.
        prepared: A table of `schema.CORPUS`.
        image_size: (height, width) in pixels.
    """
    with session.arrow_batches(spark, image_size[0] * image_size[1] * 3):
        rows = prepared.select(schema.IMAGE, schema.LENGTH)
        described = rows.mapInArrow(partial(describe, (*image_size, 3)), DESCRIBED)
        return drift.Profile(histograms=_counted(described, drift.STATISTICS))


def predicted_species(
    spark: SparkSession,
    prepared: DataFrame,
    forward: prediction.ForwardTask,
    classes: Sequence[str],
) -> DataFrame:
    """The species that a network takes prepared images for, with the columns `path` and `predicted_species`.

    Args:
        spark: The session.
        prepared: A table of `schema.CORPUS`.
        forward: The network.
        classes: Their names, in the order of the network's outputs.
    """
    rows = with_species(probabilities(spark, prepared, forward), classes)
    return rows.select(schema.PATH, schema.PREDICTED_SPECIES)


def probabilities(spark: SparkSession, prepared: DataFrame, forward: prediction.ForwardTask) -> DataFrame:
    """Prepared images, a table of `schema.CORPUS`, as rows of `SCORED`."""
    nothing = F.lit(None).cast("string")
    decoded = prepared.withColumns(dict.fromkeys((schema.REASON, schema.STAGE, schema.DETAIL), nothing))
    with session.python_environment(spark, runtime.worker_environment(forward.threads)):
        return decoded.select(*schema.DECODED.names).mapInArrow(partial(score_decoded, forward), SCORED)
