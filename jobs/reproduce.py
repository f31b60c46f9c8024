"""Train again what a run has trained, and compare the bits."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, workflow
from seedlings_spark.config import ReproduceOptions


def main(spark: SparkSession, options: ReproduceOptions) -> int:
    found = workflow.reproduce(spark, options)
    print(cli.table(found.summary()))
    return cli.DONE if found.is_same else cli.FAILED


if __name__ == "__main__":
    sys.exit(cli.run("reproduce", ReproduceOptions, main))
