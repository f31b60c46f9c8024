"""Find the pictures that are most like one picture."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, workflow
from seedlings_spark.config import SimilarOptions


def main(spark: SparkSession, options: SimilarOptions) -> None:
    print(workflow.similar(spark, options).table())


if __name__ == "__main__":
    sys.exit(cli.run("similar", SimilarOptions, main))
