"""Evaluate a model version on a split of a corpus: numbers, plots, a page."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, display, workflow
from seedlings_spark.config import EvaluateOptions
from seedlings_spark.reports import page


def main(spark: SparkSession, options: EvaluateOptions) -> None:
    print(page.table(workflow.evaluate(spark, options)))
    print(f"\nreport in {display.shown(options.report)}")


if __name__ == "__main__":
    sys.exit(cli.run("evaluate", EvaluateOptions, main))
