"""Score images with a model version: a prediction or a rejection for every file."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, scoring, workflow
from seedlings_spark.config import ScoreOptions


def main(spark: SparkSession, options: ScoreOptions) -> int:
    run = workflow.score(spark, options)
    print(scoring.printed(run, options.summary), end="")
    code = cli.rejects_exit_code(run.manifest, options.max_reject_fraction)
    return cli.drift_exit_code(run.manifest, options.max_drift) or code


if __name__ == "__main__":
    sys.exit(cli.run("score", ScoreOptions, main))
