"""Measure this machine or cluster: training, scoring, engines, and how training scales."""

import dataclasses
import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config
from seedlings_spark.benchmark import inference, narrow, scale, score, train
from seedlings_spark.config import BenchmarkOptions

_NUM_IMAGES = {"train": 4000, "score": 8000, "scale": 2000, "inference": 0}
_TRAINING = ("num_images", "image_size", "epochs", "num_workers", "batch_size", "network", "precision")
_SCORING = ("num_images", "image_size", "network", "precision", "images")
_INFERENCE = ("network", "image_size", "store", "name", "model_version", "corpus")


def main(spark: SparkSession, options: BenchmarkOptions) -> None:
    chosen = dataclasses.replace(options, num_images=options.num_images or _NUM_IMAGES[options.action])
    where = {"folder": options.output, "json_file": options.json}
    print(_ACTIONS[options.action](spark, chosen, where))


def _train(spark: SparkSession, options: BenchmarkOptions, where: dict[str, str]) -> str:
    task, names = train.Training(**config.chosen(options, *_TRAINING)), options.contestants
    return train.report(train.measure_training(spark, task, names, rounds=options.rounds, **where))


def _score(spark: SparkSession, options: BenchmarkOptions, where: dict[str, str]) -> str:
    images = score.MEMORY_IMAGES * options.memory
    task = score.Scoring(**config.chosen(options, *_SCORING), memory_images=images)
    return score.report(score.measure_scoring(spark, task, options.scorers, rounds=options.rounds, **where))


def _scale(spark: SparkSession, options: BenchmarkOptions, where: dict[str, str]) -> str:
    if options.bandwidth:
        return narrow.measured(spark, narrow.Setting(**config.chosen(options, *narrow.SETTING)), options.json)
    task = train.Training(**config.chosen(options, *_TRAINING))
    return scale.report(scale.measure_scaling(spark, task, rounds=options.rounds, **where))


def _inference(spark: SparkSession, options: BenchmarkOptions, where: dict[str, str]) -> str:
    task = inference.Inference(**config.chosen(options, *_INFERENCE))
    return inference.report(inference.measure_inference(spark, task, **where))


_ACTIONS = {"train": _train, "score": _score, "scale": _scale, "inference": _inference}

if __name__ == "__main__":
    sys.exit(cli.run("benchmark", BenchmarkOptions, main))
