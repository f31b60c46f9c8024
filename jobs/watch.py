"""Show the drift of all runs of an output over time."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, display, workflow
from seedlings_spark.config import WatchOptions


def main(spark: SparkSession, options: WatchOptions) -> int:
    found = workflow.watch(options)
    print(found.table())
    print(f"\nreport in {display.shown(options.report)}")
    return cli.DONE if found.since is None else cli.TOO_MANY_REJECTS


if __name__ == "__main__":
    sys.exit(cli.run("watch", WatchOptions, main))
