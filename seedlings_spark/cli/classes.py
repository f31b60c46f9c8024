"""An archive of Spark's classes, by which the JVM of a job on this machine starts sooner: Java's class data sharing.

It is made once for a Java and a Spark, lies in the Python environment, and goes with it. A JVM that has other jars or
another Java than it is of loads its classes as ever. `spark-submit.sh` makes it when it sets up an environment; for
another one `python -m seedlings_spark.cli.classes` does.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from seedlings_spark.cli.installation import Installation

_FOLDER = Path(sys.prefix) / "share" / "seedlings_spark"
_SECONDS = 120.0  # who sets up waits for it; where it takes longer, jobs do without
# A path that needs no quotes where options stand in one text.
_PLAIN = re.compile(r"[\w/.+@:,-]+")


def options(environment: Mapping[str, str]) -> str:
    """Options for a JVM with Spark's own class path; "" without an archive.

    Args:
        environment: Variables that it will have.
    """
    archive = path(environment)
    if not (archive.exists() and _PLAIN.fullmatch(str(archive))):
        return ""
    return f"-XX:SharedArchiveFile={archive} -Xlog:cds*=off"


def path(environment: Mapping[str, str]) -> Path:
    """Where the archive is or would be: of the Java and the Spark that these variables name."""
    java, spark = _java(environment), Path(Installation().spark_home(environment))
    about = [
        f"{each.resolve()} {each.stat().st_mtime_ns if each.exists() else 0}"
        for each in (java, spark / "jars")
    ]
    return _FOLDER / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.jsa"


def make(environment: Mapping[str, str]) -> None:
    """Make the archive if there is none, in place of those of other Javas and Sparks.

    Raises:
        OSError: The Python environment is not ours to write to, or the disk is full.
    """
    archive = path(environment)
    if archive.exists():
        return
    scratch = _FOLDER / "making"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        if archive.exists():
            return
        scratch.mkdir()
        try:
            _make(archive, scratch, environment)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _make(archive: Path, scratch: Path, environment: Mapping[str, str]) -> None:
    made = scratch / archive.name
    told = {
        **environment,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_SUBMIT_OPTS": f"-XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit={made} -Xlog:disable",
    }
    _run([sys.executable, __file__, f"{scratch}/table"], told)
    # One that was cut, as on a full disk, would end each JVM that looks at it.
    look = [str(_java(environment)), f"-XX:SharedArchiveFile={made}", "-XX:+VerifySharedSpaces", "-version"]
    if made.exists() and not subprocess.run(look, capture_output=True, check=False).returncode:
        for other in _FOLDER.glob("*.jsa"):
            other.unlink()
        made.rename(archive)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a program with all that it starts, and end what is left of it when its time is over."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as program:
        try:
            program.communicate(timeout=_SECONDS)  # the pipe is closed when its JVM has ended, too
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)


def _java(environment: Mapping[str, str]) -> Path:
    home = environment.get("JAVA_HOME")
    return (
        Path(home) / "bin" / "java"
        if home
        else Path(shutil.which("java", path=environment.get("PATH")) or "java")
    )


def _use_spark(folder: str) -> None:
    """Some of all that jobs do, for the JVM to note which classes that takes."""
    import pyarrow as pa
    from pyspark.sql import SparkSession, Window
    from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.sql.shuffle.partitions", "2")
    spark = builder.getOrCreate()
    table = pa.table({"a": range(10), "b": [str(number) for number in range(10)], "c": [b"x"] * 10})
    rows = spark.createDataFrame(table).withColumn("d", F.array(F.lit(0.5), F.rand(1)).cast("array<float>"))
    rows = rows.repartition(2).mapInArrow(lambda batches: batches, rows.schema)
    rows.write.option("compression", "zstd").partitionBy("b").parquet(folder)
    read = spark.read.schema(rows.schema).parquet(folder).persist()
    before = F.sum("a").over(Window.orderBy("a").rowsBetween(Window.unboundedPreceding, 0))
    hashed = F.sum(F.xxhash64("b").cast("decimal(20,0)")).alias("hash")
    counts = read.withColumn("before", before).groupBy("b").agg(F.count("*").alias("n"), F.max("a"), hashed)
    best = F.element_at(F.array(F.lit("x"), F.lit("y")), F.array_position("d", F.array_max("d")).cast("int"))
    joined = spark.createDataFrame(table).join(counts, "b", "left").join(read.select("a", "d"), "a")
    joined = joined.withColumn("best", F.when(F.col("n").isNull(), None).otherwise(best))
    joined.write.parquet(f"{folder}-joined")
    found = spark.read.parquet(f"{folder}-joined")
    found.select(F.posexplode("d").alias("place", "cell")).groupBy("place", "cell").count().collect()
    found.select("best", "a").union(read.select("b", "a")).orderBy("a").limit(5).collect()
    found.select("a", "b").dropDuplicates(["a"]).toArrow()
    spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(folder).collect()
    spark.stop()


if __name__ == "__main__":
    if sys.argv[1:]:
        _use_spark(sys.argv[1])
    else:
        make(os.environ)
