"""Search for the options of train that suit a corpus best."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, workflow
from seedlings_spark.config import TuneOptions


def main(spark: SparkSession, options: TuneOptions) -> None:
    print(workflow.tune(spark, options).told())


if __name__ == "__main__":
    sys.exit(cli.run("tune", TuneOptions, main))
