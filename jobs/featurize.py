"""Compute what a layer of a network gives for each image."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, workflow
from seedlings_spark.config import FeaturizeOptions


def main(spark: SparkSession, options: FeaturizeOptions) -> int:
    made = workflow.featurize(spark, options)
    print(cli.table(made.summary()))
    return cli.rejects_exit_code(made.manifest, options.max_reject_fraction)


if __name__ == "__main__":
    sys.exit(cli.run("featurize", FeaturizeOptions, main))
