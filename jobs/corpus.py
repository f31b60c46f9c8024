"""Say what tells two corpora apart."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config, corpus
from seedlings_spark.config import CorpusOptions
from seedlings_spark.corpus import comparison


def main(spark: SparkSession, options: CorpusOptions) -> None:
    options = config.qualified(options)
    one, other = (corpus.load(path) for path in (options.corpus, options.other))
    print(cli.table(comparison.summary(corpus.diff(spark, one, other))))


if __name__ == "__main__":
    sys.exit(cli.run("corpus", CorpusOptions, main))
