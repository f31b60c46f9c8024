"""Read image files into a corpus: pixels, splits, rejects and a manifest that adds up."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, corpus, workflow
from seedlings_spark.config import PrepareOptions


def main(spark: SparkSession, options: PrepareOptions) -> int:
    prepared = workflow.prepare(spark, options)
    print(cli.table(corpus.summary(prepared)))
    return cli.rejects_exit_code(prepared.manifest, options.max_reject_fraction)


if __name__ == "__main__":
    sys.exit(cli.run("prepare", PrepareOptions, main))
