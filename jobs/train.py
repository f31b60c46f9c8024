"""Train a network on a corpus and publish it to the store as a new version."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, workflow
from seedlings_spark.config import TrainOptions


def main(spark: SparkSession, options: TrainOptions) -> None:
    print(cli.table(workflow.train(spark, options).summary()))


if __name__ == "__main__":
    sys.exit(cli.run("train", TrainOptions, main))
