"""Say how far a run of train is."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli
from seedlings_spark.config import StatusOptions
from seedlings_spark.workflow import runs


def main(spark: SparkSession, options: StatusOptions) -> None:
    print(cli.table(runs.status(options.run)))


if __name__ == "__main__":
    sys.exit(cli.run("status", StatusOptions, main))
