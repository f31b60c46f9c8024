"""List, promote, roll back, sign, import, export and delete model versions."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, workflow
from seedlings_spark.config import ModelsOptions


def main(spark: SparkSession, options: ModelsOptions) -> None:
    print(workflow.models(options))


if __name__ == "__main__":
    sys.exit(cli.run("models", ModelsOptions, main))
