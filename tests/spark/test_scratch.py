"""What a local session leaves on disk while it runs, and who may read it."""

import stat
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812


def test_nobody_else_can_read_the_shuffle_files_of_a_local_session(spark: SparkSession) -> None:
    shuffled = spark.range(1000).repartition(2).rdd.persist()
    assert shuffled.count() == 1000 and spark.range(10).groupBy(F.col("id") % 3).count().count() == 3
    folders = [Path(each) for each in (spark.sparkContext.getConf().get("spark.local.dir") or "").split(",")]
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert any(file.name.startswith("shuffle_") for file in files)
    # Spark's own folders are where others cannot go, and not beside that.
    assert not [each.name for each in folders[0].parent.iterdir() if each.name.startswith("blockmgr-")]
    shuffled.unpersist()
