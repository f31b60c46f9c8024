"""Read image files into a corpus: pixels, splits, rejects and a manifest that adds up."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, corpus, reading, schema
from seedlings_spark.config import PrepareOptions


def main(spark: SparkSession, options: PrepareOptions) -> int:
    size = (options.image_size, options.image_size)
    task = reading.DecodeTask(size, options.aspect, options.formats, options.max_pixels, options.max_bytes)
    prepared = corpus.prepare(
        spark,
        options.images,
        options.corpus,
        task,
        split_policy=options.split_policy,
        shares=dict(zip(schema.SPLITS, options.split_shares, strict=True)),
        conflicts=options.conflicts,
        sample=options.sample,
        overwrite=options.overwrite,
    )
    print(cli.table(corpus.summary(prepared)))
    return cli.rejects_exit_code(prepared.manifest, options.max_reject_fraction)


if __name__ == "__main__":
    sys.exit(cli.run("prepare", PrepareOptions, main))
