"""Measure this machine or cluster: training, scoring, engines, and how training scales."""

import dataclasses
import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config
from seedlings_spark.benchmark import inference, scale, score, train
from seedlings_spark.config import BenchmarkOptions

_NUM_IMAGES = {"train": 4000, "score": 8000, "scale": 2000}
# What all contestants of an action share.
_TRAINING = ("num_images", "image_size", "epochs", "num_workers", "batch_size", "network", "precision")
_SCORING = ("num_images", "image_size", "network", "precision", "images")
_COMPUTING = ("network", "image_size", "store", "name", "model_version", "corpus")


def main(spark: SparkSession, options: BenchmarkOptions) -> None:
    chosen = dataclasses.replace(options, num_images=options.num_images or _NUM_IMAGES.get(options.action, 0))
    print(_ACTIONS[options.action](spark, chosen))


def _train(spark: SparkSession, options: BenchmarkOptions) -> str:
    training = train.Training(**config.chosen(options, *_TRAINING))
    return train.report(train.measure_training(spark, training, options.contestants, **_how(options)))


def _score(spark: SparkSession, options: BenchmarkOptions) -> str:
    memory = score.MEMORY_IMAGES if options.memory else ()
    scoring = score.Scoring(**config.chosen(options, *_SCORING), memory_images=memory)
    return score.report(score.measure_scoring(spark, scoring, options.scorers, **_how(options)))


def _scale(spark: SparkSession, options: BenchmarkOptions) -> str:
    training = train.Training(**config.chosen(options, *_TRAINING))
    return scale.report(scale.measure_scaling(spark, training, **_how(options)))


def _inference(spark: SparkSession, options: BenchmarkOptions) -> str:
    task = inference.Inference(**config.chosen(options, *_COMPUTING))
    where = {"folder": options.output, "json_file": options.json}
    return inference.report(inference.measure_inference(spark, task, **where))


def _how(options: BenchmarkOptions) -> dict[str, object]:
    return {"rounds": options.rounds, "folder": options.output, "json_file": options.json}


_ACTIONS = {"train": _train, "score": _score, "scale": _scale, "inference": _inference}


if __name__ == "__main__":
    sys.exit(cli.run("benchmark", BenchmarkOptions, main))
