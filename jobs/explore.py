"""Look at a corpus."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, display, workflow
from seedlings_spark.config import ExploreOptions
from seedlings_spark.workflow.exploring import summary


def main(spark: SparkSession, options: ExploreOptions) -> None:
    print(cli.table(summary(workflow.explore(spark, options))))
    print(f"\nreport in {display.shown(options.report)}")


if __name__ == "__main__":
    sys.exit(cli.run("explore", ExploreOptions, main))
