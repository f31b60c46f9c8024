"""The whole path in about two minutes: draw images, prepare, train, evaluate, score."""

import json
import sys
from pathlib import Path

import evaluate
import prepare
import score
import train
from pyspark.sql import SparkSession

from seedlings_spark import cli, config, files
from seedlings_spark.config import QuickstartOptions
from seedlings_spark.workflow import quickstart


def main(spark: SparkSession, options: QuickstartOptions) -> int:
    place = quickstart.Places(options.output, options.images)
    place.check()
    if not options.images:
        quickstart.draw(place.images)
    given = quickstart.options(place, Path(__file__).parents[1] / "conf" / quickstart.settings(place))
    codes = [
        prepare.main(spark, given(config.PrepareOptions, "prepare")),
        train.main(spark, given(config.TrainOptions, "train")),
        evaluate.main(spark, given(config.EvaluateOptions, "evaluate")),
        score.main(spark, given(config.ScoreOptions, "score")),
    ]
    accuracy = json.loads(files.read_text(files.join(place.report, "metrics.json")))["accuracy"]
    print("\n" + cli.table(place.summary(accuracy)))
    if not options.images:
        quickstart.require_accuracy(accuracy, place.report)
    return max(code or cli.DONE for code in codes)


if __name__ == "__main__":
    sys.exit(cli.run("quickstart", QuickstartOptions, main))
