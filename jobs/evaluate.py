"""Evaluate a model version on a split of a corpus: numbers, plots, a page."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, corpus, display
from seedlings_spark.config import EvaluateOptions
from seedlings_spark.models.store import ModelStore
from seedlings_spark.reports import evaluation
from seedlings_spark.reports import page as report
from seedlings_spark.workflow import pipeline


def main(spark: SparkSession, options: EvaluateOptions) -> None:
    prepared = corpus.load(options.corpus)
    version = ModelStore(options.store, options.name, options.require_signature).verify(options.model_version)
    predictions = pipeline.predictions(spark, version, prepared, options.split)
    numbers = evaluation.evaluate(evaluation.confusion_matrix(predictions, version.classes), version.classes)
    about = pipeline.about_evaluation(version, prepared, options.split)
    history, kept_epoch = version.manifest.get("history"), (version.manifest.get("kept") or {}).get("epoch")
    report.write(options.report, numbers, history=history, kept_epoch=kept_epoch, about=about)
    print(report.table(numbers))
    print(f"\nreport in {display.shown(options.report)}")


if __name__ == "__main__":
    sys.exit(cli.run("evaluate", EvaluateOptions, main))
