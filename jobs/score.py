"""Score images with a model version: a prediction or a rejection for every file."""

import logging
import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config, display, scoring
from seedlings_spark.config import ScoreOptions
from seedlings_spark.models.store import ModelStore

_log = logging.getLogger("seedlings_spark")
# What scoring calls by the same names.
_SAME = ("formats", "max_pixels", "max_bytes", "batch_size", "incremental", "rescore", "path_column")
_SAME += ("content_column", "table_format", "allowed_roots", "top_k", "probabilities", "review", "keep_empty")


def main(spark: SparkSession, options: ScoreOptions) -> int:
    store = ModelStore(options.store, options.name, options.require_signature)
    version = store.verify(options.model_version, scoring.CONTENTS)
    if options.max_drift:
        scoring.require_profile(version)
    settings = scoring.ScoreSettings(run=options.run_id, **config.chosen(options, *_SAME))
    run = scoring.score(spark, options.images, version, options.output, settings)
    if options.summary == "json":
        print(display.as_json(scoring.short_summary(run)))
    else:
        print(cli.table(scoring.summary(run)))
        print(scoring.drift_table(run), end="")
    code = cli.rejects_exit_code(run.manifest, options.max_reject_fraction)
    if options.max_drift and run.manifest["drift"]["worst"] > options.max_drift:
        _log.warning(
            "the images differ from the training corpus by more than --max-drift %g", options.max_drift
        )
        code = cli.TOO_MANY_REJECTS
    return code


if __name__ == "__main__":
    sys.exit(cli.run("score", ScoreOptions, main))
