"""Measure this machine or cluster: training beside plain Keras and stock Elephas."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import benchmark, cli, config
from seedlings_spark.config import BenchmarkOptions

# What all contestants of `benchmark train` share.
_SAME = ("num_images", "image_size", "epochs", "num_workers", "batch_size", "network", "precision")


def main(spark: SparkSession, options: BenchmarkOptions) -> None:
    found = benchmark.measure_training(
        spark,
        benchmark.Training(**config.chosen(options, *_SAME)),
        options.contestants,
        rounds=options.rounds,
        folder=options.output,
        json_file=options.json,
    )
    print(benchmark.report(found))


if __name__ == "__main__":
    sys.exit(cli.run("benchmark", BenchmarkOptions, main))
