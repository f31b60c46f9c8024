"""Compare predictions with labels that have come since."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, display, workflow
from seedlings_spark.config import FeedbackOptions


def main(spark: SparkSession, options: FeedbackOptions) -> int:
    told = workflow.feedback(spark, options)
    print(told.found.table())
    print(f"\n{told.copied:,} wrong pictures and the report are in {display.shown(options.report)}")
    return cli.accuracy_exit_code(told.found.overall.accuracy, options.min_accuracy)


if __name__ == "__main__":
    sys.exit(cli.run("feedback", FeedbackOptions, main))
