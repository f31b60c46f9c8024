"""Remove pictures from scores and a corpus, and name the versions that were trained on them."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, workflow
from seedlings_spark.config import ForgetOptions


def main(spark: SparkSession, options: ForgetOptions) -> None:
    print(cli.table(workflow.forget(spark, options).summary()))


if __name__ == "__main__":
    sys.exit(cli.run("forget", ForgetOptions, main))
