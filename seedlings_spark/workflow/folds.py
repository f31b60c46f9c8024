"""K-fold cross-validation: every image is predicted once by a network that has not seen it.

Training and validation images are dealt to folds, those of the test split stay what they are. A network of a fold is
that of its last epoch: the best one of the images that it is measured on would be too good.

RUN/folds/K/               a fold: its metrics and checkpoints, its predictions, in the end its confusion
RUN/folds/predictions/     those of all folds
RUN/folds/folds.json       what they are worth
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import files, schema
from seedlings_spark.corpus import Corpus, tables
from seedlings_spark.corpus.splits import BY_TIME
from seedlings_spark.errors import OptionError, SeedlingsError
from seedlings_spark.reports import evaluation
from seedlings_spark.workflow import pipeline, predicting, runs

_log = logging.getLogger(__name__)
# In the folder of a run; the confusion of a fold comes last, and says that its predictions are whole.
FOLDS, CONFUSION = runs.FOLDS, runs.CONFUSION
PREDICTIONS, NUMBERS = "predictions", "folds.json"


def check(corpus: Corpus, num_folds: int) -> None:
    """Refuse a corpus whose splits keep apart what folds would mix, and one of too few images.

    Raises:
        OptionError: It has groups, or near duplicates that are kept in one split, or is split by time; or a fold might
            have no image.
    """
    most = max(
        splits[schema.TRAIN] + splits[schema.VALIDATION]
        for splits in corpus.manifest["images_of_species"].values()
    )
    if most < num_folds:
        raise OptionError(
            f"--folds {num_folds} with {corpus.path}, which has {most:,} images of its largest species",
            "at least one for each fold",
            "Give fewer --folds",
        )
    near = corpus.manifest.get("near_duplicates") or {}
    by_time = corpus.manifest["split_policy"] == BY_TIME
    if by_time or corpus.manifest.get("groups") or near.get("policy") == "group":
        how = "are by time" if by_time else "keep groups of pictures together"
        raise OptionError(
            f"--folds with {corpus.path}, whose splits {how}",
            "pictures that may be dealt one by one: folds would mix what the splits keep apart, and look too good",
            "Leave out --folds",
        )


def cross_validate(
    spark: SparkSession,
    images: DataFrame,
    corpus: Corpus,
    run: str,
    num_folds: int,
    fit: Callable[[str, DataFrame], PipelineModel],
) -> dict[str, Any]:
    """Train a network for each fold on all others, and predict it.

    Folds that an earlier attempt has predicted are taken as they are.

    Args:
        spark: The session.
        images: As `pipeline.training_images` gives them.
        corpus: That they are of.
        run: Folder of the run; what is made lies in `folds` below it.
        num_folds: At least 2.
        fit: Trains: given a folder of the run's and images with what is held out marked.

    Returns:
        What the manifest of the version says of it: accuracy and macro F1 of each fold, their mean and standard
        deviation. `folds.json` has each fold's confusion matrix, too (rows are true, columns predicted species).

    Raises:
        SeedlingsError: There is not one prediction for each image.
    """
    found, matrices = [], []
    for fold in range(num_folds):
        path = files.join(run, FOLDS, str(fold))
        predictions, confusion = (files.join(path, name) for name in (PREDICTIONS, CONFUSION))
        if not files.exists(confusion):
            _log.info("fold %d of %d", fold + 1, num_folds)
            marked = dealt(images, num_folds, fold)
            model = fit(path, marked)
            table = predicting.kept(model.transform(marked.where(F.col(pipeline.HELD_OUT))), predictions)
            matrix = evaluation.confusion_matrix(table, corpus.classes, probability=schema.PROBABILITIES)
            files.write_text(confusion, json.dumps(matrix.tolist()) + "\n")
            files.delete(files.join(path, runs.CHECKPOINTS))
        matrices.append(np.array(json.loads(files.read_text(confusion)), np.int64))
        table = tables.parquet(spark, predictions, schema.EVALUATED).withColumn(schema.FOLD, F.lit(fold))
        found.append(table.select(*schema.OUT_OF_FOLD.names))
    expected = sum(corpus.num_images(split) for split in (schema.TRAIN, schema.VALIDATION))
    if (predicted := sum(int(matrix.sum()) for matrix in matrices)) != expected:
        raise SeedlingsError(
            f"predictions for {predicted:,} images in {files.join(run, FOLDS)}",
            f"one for each of the {expected:,} to train on and to validate on",
            "Delete the folder, and start again",
        )
    everything = files.join(run, FOLDS, PREDICTIONS)
    reduce(DataFrame.union, found).write.mode("overwrite").options(
        **tables.write_options(everything)
    ).parquet(everything)
    numbers = _numbers(corpus, matrices)
    confusions = {
        "classes": list(corpus.classes),
        "confusion_of_fold": [matrix.tolist() for matrix in matrices],
    }
    files.write_text(
        files.join(run, FOLDS, NUMBERS), json.dumps({**numbers, **confusions}, ensure_ascii=False) + "\n"
    )
    return numbers


def dealt(images: DataFrame, num_folds: int, fold: int) -> DataFrame:
    """The images with those of a fold marked as held out, and their splits accordingly.

    Each species is dealt out in the order of its hashes, so that each fold has as many of it, give or take one. With
    which fold it begins depends on its name: else the first one would have one more of all. Files of the same content
    are in the same fold.
    """
    contents = images.select(schema.CONTENT_HASH, schema.SPECIES).distinct()
    place = F.row_number().over(Window.partitionBy(schema.SPECIES).orderBy(schema.CONTENT_HASH))
    turn = F.pmod(place + F.pmod(F.xxhash64(schema.SPECIES), F.lit(num_folds)), F.lit(num_folds))
    held_out = contents.withColumn(pipeline.HELD_OUT, turn == fold).drop(schema.SPECIES)
    marked = images.drop(pipeline.HELD_OUT).join(held_out, schema.CONTENT_HASH)
    split = F.when(F.col(pipeline.HELD_OUT), schema.VALIDATION).otherwise(schema.TRAIN)
    return schema.with_content_hash(marked.withColumn(schema.SPLIT, split).select(*images.columns))


def in_words(numbers: Mapping[str, Any]) -> str:
    """What `cross_validate` has found, in one line."""
    accuracy, f1 = numbers["accuracy"], numbers["macro_f1"]
    return (
        f"accuracy {accuracy['mean']:.4f} +- {accuracy['deviation']:.4f}, macro F1 {f1['mean']:.4f} +-"
        f" {f1['deviation']:.4f} (mean and deviation of {numbers['folds']} folds)"
    )


def _numbers(corpus: Corpus, matrices: Sequence[Any]) -> dict[str, Any]:
    evaluated = [evaluation.evaluate(matrix, corpus.classes) for matrix in matrices]

    def spread(name: str) -> dict[str, Any]:
        values = [float(getattr(each, name)) for each in evaluated]
        deviation = float(np.std(values, ddof=1))
        return {"mean": math.fsum(values) / len(values), "deviation": deviation, "of_fold": values}

    return {
        "folds": len(matrices),
        "images_of_fold": [each.num_images for each in evaluated],
        "accuracy": spread("accuracy"),
        "macro_f1": spread("macro_f1"),
    }
