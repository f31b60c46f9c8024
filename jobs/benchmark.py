"""Measure this machine or cluster: training, scoring, engines, and how training scales."""

import dataclasses
import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config
from seedlings_spark.benchmark import inference, scale, score, train
from seedlings_spark.config import BenchmarkOptions

_NUM_IMAGES = {"train": 4000, "score": 8000, "scale": 2000, "inference": 0}
# What all contestants of an action share.
_TRAINING = ("num_images", "image_size", "epochs", "num_workers", "batch_size", "network", "precision")
_SCORING = ("num_images", "image_size", "network", "precision", "images")
_INFERENCE = ("network", "image_size", "store", "name", "model_version", "corpus")


def main(spark: SparkSession, options: BenchmarkOptions) -> None:
    chosen = dataclasses.replace(options, num_images=options.num_images or _NUM_IMAGES[options.action])
    where = {"folder": options.output, "json_file": options.json}
    print(_ACTIONS[options.action](spark, chosen, where))


def _train(spark: SparkSession, options: BenchmarkOptions, where: dict[str, str]) -> str:
    task = train.Training(**config.chosen(options, *_TRAINING))
    found = train.measure_training(spark, task, options.contestants, rounds=options.rounds, **where)
    return train.report(found)


def _score(spark: SparkSession, options: BenchmarkOptions, where: dict[str, str]) -> str:
    memory = score.MEMORY_IMAGES if options.memory else ()
    task = score.Scoring(**config.chosen(options, *_SCORING), memory_images=memory)
    return score.report(score.measure_scoring(spark, task, options.scorers, rounds=options.rounds, **where))


def _scale(spark: SparkSession, options: BenchmarkOptions, where: dict[str, str]) -> str:
    task = train.Training(**config.chosen(options, *_TRAINING))
    return scale.report(scale.measure_scaling(spark, task, rounds=options.rounds, **where))


def _inference(spark: SparkSession, options: BenchmarkOptions, where: dict[str, str]) -> str:
    task = inference.Inference(**config.chosen(options, *_INFERENCE))
    return inference.report(inference.measure_inference(spark, task, **where))


_ACTIONS = {"train": _train, "score": _score, "scale": _scale, "inference": _inference}

if __name__ == "__main__":
    sys.exit(cli.run("benchmark", BenchmarkOptions, main))
