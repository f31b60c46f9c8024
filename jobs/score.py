"""Score a folder of images with a model version: a prediction or a rejection for every file."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config, scoring
from seedlings_spark.config import ScoreOptions
from seedlings_spark.store import ModelStore


def main(spark: SparkSession, options: ScoreOptions) -> int:
    version = ModelStore(options.store, options.name).resolve(options.model_version)
    run = scoring.score(
        spark,
        options.images,
        version,
        options.output,
        **config.chosen(options, "formats", "max_pixels", "max_bytes", "batch_size"),
    )
    print(cli.table(scoring.summary(run)))
    return cli.rejects_exit_code(run.manifest, options.max_reject_fraction)


if __name__ == "__main__":
    sys.exit(cli.run("score", ScoreOptions, main))
