"""Remove what is no longer needed of an output of scores, of a run, of a corpus, or of a model in a store."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli
from seedlings_spark.config import CleanOptions
from seedlings_spark.models.store import ModelStore
from seedlings_spark.workflow import clean


def main(spark: SparkSession, options: CleanOptions) -> None:
    age, dry = clean.age_of(options.older_than), options.dry_run
    if options.output:
        removed = clean.clean_output(spark, options.output, age, dry=dry)
    elif options.run:
        removed = clean.clean_run(options.run, age, dry=dry)
    elif options.corpus:
        removed = clean.clean_corpus(options.corpus, age, dry=dry)
    else:
        removed = clean.clean_store(ModelStore(options.store, options.name), age, dry=dry)
    print(cli.table(clean.summary(removed, dry=dry)))


if __name__ == "__main__":
    sys.exit(cli.run("clean", CleanOptions, main))
