"""Whether a version may take the place of the current one: both on the same pictures, whose species are known.

The pictures are those of a corpus' test split, which both predict now, or pictures with late labels that one of the two
has scored with the other one in its shadow.
"""

import logging
from functools import reduce

from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import corpus, schema
from seedlings_spark.config import FeedbackOptions, ModelsOptions
from seedlings_spark.corpus import Corpus
from seedlings_spark.errors import InputError, StoreError, WorseError
from seedlings_spark.models.decisions import Decisions
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.reports import paired
from seedlings_spark.scoring import shadow, tasks
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import late_labels, predicting

_log = logging.getLogger(__name__)


def promote_if_better(spark: SparkSession, store: ModelStore, options: ModelsOptions) -> str:
    """Make a version the current one unless it is worse than that: by McNemar's exact test at 5 %.

    Args:
        spark: The session.
        store: Where both are.
        options: Those of `models promote --if-better`.

    Returns:
        What was found, in a sentence.

    Raises:
        CorpusError: The corpus has no test images, or they do not fit.
        InputError: No picture with a label has been scored by both.
        StoreError: The two cannot be compared, or one of them is damaged.
        WorseError: It is worse. Nothing has changed.
    """
    version = store.verify(options.model_version)
    before = store.current()
    if before is None or before == version.version:
        store.promote(version.version)
        return f"{version.version} {'was current' if before else 'is the first one to be promoted'}"
    current, why_not = predicting.rival(store, version)
    if current is None:
        raise StoreError(
            f"{why_not} {version.version}" if why_not.endswith("with") else why_not,
            "two versions of the same species and size of images",
            "Look at its report of evaluate, and promote it without --if-better",
        )
    version.require_one_species("models promote --if-better")
    found = _compared(spark, version, current, options)
    if found.overall.verdict == paired.WORSE:
        raise WorseError(
            f"{version.version} is {found.words}",
            "a version that is not worse than the current one",
            f"{current.version} stays the current one; look at both with evaluate, or promote without --if-better",
        )
    store.promote(version.version)
    return f"{version.version} is {found.words}"


def _compared(
    spark: SparkSession, version: ModelVersion, current: ModelVersion, options: ModelsOptions
) -> paired.Comparison:
    if options.corpus:
        rows = _on_test_split(spark, version, current, options.corpus)
    else:
        rows = _on_late_labels(spark, version, current, options)
    # What is called unknown is not right.
    said = {name: F.coalesce(name, F.lit("")) for name in (schema.PREDICTED_SPECIES, schema.CURRENT_SPECIES)}
    found = paired.comparison(rows.withColumns(said), current.version, version.classes)
    if not found.overall.num_images:
        raise InputError(
            f"labels of none of the species that {version.version} knows, in {options.labels}",
            f"some of {', '.join(version.classes)[:200]}",
            "Correct the table of labels",
        )
    return found


def _on_test_split(spark: SparkSession, version: ModelVersion, current: ModelVersion, path: str) -> DataFrame:
    """The true species of each picture of a test split, and what both say."""
    prepared = corpus.load(path)
    for each in (version, current):
        trained = (each.manifest.get("corpus") or {}).get("fingerprint")
        if trained not in prepared.lineage:
            _log.warning(
                "%s was not trained on this corpus: it may have seen pictures of the test split", each.version
            )
    ours, theirs = (_said_of_test(spark, each, prepared) for each in (version, current))
    said = theirs.select(schema.CONTENT_HASH, F.col(schema.PREDICTED_SPECIES).alias(schema.CURRENT_SPECIES))
    # Of copies of a picture, which a corpus has, one.
    return ours.select(schema.CONTENT_HASH, schema.SPECIES, schema.PREDICTED_SPECIES).join(
        said.dropDuplicates([schema.CONTENT_HASH]), schema.CONTENT_HASH
    )


def _said_of_test(spark: SparkSession, version: ModelVersion, prepared: Corpus) -> DataFrame:
    """What a version says of a test split, NULL where it calls a picture unknown."""
    predicted = predicting.predictions(spark, version, prepared, schema.TEST)
    promised = Decisions.of(version.manifest, predicting.precision_of(spark, version))
    decided = tasks.decided(promised, version.classes)
    if schema.PREDICTED_SPECIES not in decided:
        return predicted
    probabilities = vector_to_array(F.col(schema.PROBABILITY), "float32")
    return predicted.withColumn(schema.PROBABILITIES, probabilities).withColumn(
        schema.PREDICTED_SPECIES, decided[schema.PREDICTED_SPECIES]
    )


def _on_late_labels(
    spark: SparkSession, version: ModelVersion, current: ModelVersion, options: ModelsOptions
) -> DataFrame:
    """The label of each picture that both have scored, and what both say."""
    scored = _scored_by_both(spark, version, current, options.scores)
    asked = FeedbackOptions(scores=options.scores, labels=options.labels, report=options.scores)
    labels, _ = late_labels.labels_of(spark, asked)
    matched = late_labels.matched(labels, scored, asked).select(
        schema.PATH, F.col(late_labels.LABEL).alias(schema.SPECIES)
    )
    return matched.join(scored, schema.PATH)


def _scored_by_both(
    spark: SparkSession, version: ModelVersion, current: ModelVersion, scores: str
) -> DataFrame:
    """The newest prediction of each picture by both versions, of runs with one of them in the other one's shadow."""
    runs = Runs(scores)
    parts = []
    for number, run in enumerate(runs.in_order()):
        manifest = runs.manifest(run)
        second = (manifest.get(shadow.FOLDER) or {}).get("model_version")
        said_by = [manifest["model_version"], second]
        if manifest["model_name"] == version.name and sorted(map(str, said_by)) == sorted(
            (version.version, current.version)
        ):
            parts.append(_both(spark, runs, run, number, is_first=said_by[0] == version.version))
    if not parts:
        raise InputError(
            f"no run in {scores} in which {version.version} and {current.version} have scored the same pictures",
            f"one of score --model-version {current.version} --shadow {version.version}",
            "Score so first, or compare them on a test split with --corpus",
        )
    rows = reduce(DataFrame.union, parts)
    newest = rows.groupBy(schema.PATH).agg(F.max_by(F.struct(*rows.columns[1:-1]), "number").alias("newest"))
    return newest.select(schema.PATH, "newest.*")


def _both(spark: SparkSession, runs: Runs, run: str, number: int, *, is_first: bool) -> DataFrame:
    """What two versions say of a run's pictures; the run's own one is the candidate if `is_first`."""
    columns = [schema.CONTENT_HASH, schema.PREDICTED_SPECIES, schema.CONFIDENCE]
    layout = StructType([schema.PREDICTIONS[name] for name in columns])
    rows = runs.rows(spark, [run], "predictions", layout).select(schema.PATH, "own.*")
    theirs = StructType([schema.SHADOWED[schema.SHADOW_SPECIES]])
    differ = runs.rows(spark, [run], shadow.FOLDER, theirs).select(schema.PATH, F.col("own").alias("theirs"))
    both = rows.join(differ, schema.PATH, "left")
    own = F.col(schema.PREDICTED_SPECIES)
    other = F.when(F.col("theirs").isNull(), own).otherwise(F.col("theirs").getField(schema.SHADOW_SPECIES))
    first, second = (own, other) if is_first else (other, own)
    return both.select(
        schema.PATH,
        schema.CONTENT_HASH,
        first.alias(schema.PREDICTED_SPECIES),
        second.alias(schema.CURRENT_SPECIES),
        schema.CONFIDENCE,
        F.lit(run).alias("run"),
        F.lit(number).alias("number"),
    )
