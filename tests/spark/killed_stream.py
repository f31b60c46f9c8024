"""A process of its own that streams, and is killed with its JVM at its second batch, before or after it does something.

    python -m tests.spark.killed_stream before|after publish|point_to IMAGES STORE OUTPUT CHECKPOINT

Of its five files each batch has two.
"""

import os
import signal
import sys
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.streaming import StreamingQuery

from seedlings_spark import scoring
from seedlings_spark.cluster import session
from seedlings_spark.config import ScoreOptions
from seedlings_spark.scoring.runs import Runs

NAME = "arriving"


def start(spark: SparkSession, options: ScoreOptions, checkpoint: str) -> StreamingQuery:
    """A query over the files that are there."""
    layout = "path string, modificationTime timestamp, length bigint, content binary"
    source = spark.readStream.format("binaryFile").schema(layout).option("recursiveFileLookup", True)
    rows = source.option("maxFilesPerTrigger", 2).load(options.images).select("path")
    return scoring.stream(spark, options, checkpoint, rows).trigger(availableNow=True).start()


def kill(when: str, name: str) -> None:
    """Let this process and its JVM be killed at the second call of a method of `Runs`."""
    real, count = getattr(Runs, name), 0

    def watched(self: Runs, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2 and when == "before":
            os.killpg(0, signal.SIGKILL)
        found = real(self, *arguments)
        if count == 2:
            os.killpg(0, signal.SIGKILL)
        return found

    setattr(Runs, name, watched)


if __name__ == "__main__":
    when, method, images, store, output, checkpoint = sys.argv[1:]
    settings = {
        "spark.master": "local[1]",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "1",
        "spark.local.dir": f"{output}-scratch",
    }
    spark = session.build("killed", settings)
    kill(when, method)
    options = ScoreOptions(images=images, store=store, name=NAME, output=output, review=0)
    start(spark, options, checkpoint).awaitTermination()
