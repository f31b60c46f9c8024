"""Read image files into a corpus: pixels, splits, rejects and a manifest that adds up."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config, corpus, schema
from seedlings_spark.config import PrepareOptions
from seedlings_spark.corpus import reading


def main(spark: SparkSession, options: PrepareOptions) -> int:
    task = reading.DecodeTask(
        size=(options.image_size, options.image_size),
        **config.chosen(options, "aspect", "formats", "max_pixels", "max_bytes"),
    )
    prepared = corpus.prepare(
        spark,
        options.images,
        options.corpus,
        task,
        shares=dict(zip(schema.SPLITS, options.split_shares, strict=True)),
        **config.chosen(options, "split_policy", "conflicts", "sample", "overwrite"),
    )
    print(cli.table(corpus.summary(prepared)))
    return cli.rejects_exit_code(prepared.manifest, options.max_reject_fraction)


if __name__ == "__main__":
    sys.exit(cli.run("prepare", PrepareOptions, main))
