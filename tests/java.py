"""Options for the JVMs that tests start, dozens of them, and an archive of Spark's classes by which they start sooner.

The archive (Java's class data sharing) is made once on a machine, outside of the checkout. A JVM that does not find
it, or has other jars, loads its classes as ever. As a program this module does some of all that jobs do, for the JVM
to note which classes that takes.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyspark

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seedlings_spark"
# Most JVMs here live for seconds, in which compiling thoroughly does not pay.
QUICK_START = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

_MAKE_SECONDS = 600.0  # against hangs


def options() -> str:
    """For a JVM with Spark's own class path; it says nothing of an archive that it cannot use."""
    return f"{QUICK_START} -XX:SharedArchiveFile={_archive()} -Xlog:disable"


def make_archive() -> None:
    """Make the archive if there is none; several processes that want to make one."""
    archive = _archive()
    if archive.exists():
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    with (archive.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            return
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            made = Path(folder) / archive.name
            environment = {
                **os.environ,
                "PYSPARK_PYTHON": sys.executable,
                "SPARK_SUBMIT_OPTS": f"{QUICK_START} -XX:ArchiveClassesAtExit={made} -Xlog:disable",
            }
            # Its pipes are closed when its JVM has ended, too.
            command = [sys.executable, __file__, f"{folder}/table"]
            subprocess.run(command, env=environment, capture_output=True, timeout=_MAKE_SECONDS)
            if made.exists():
                made.rename(archive)


def why_not_fetched(
    command: Sequence[str], seconds: float, folder: Path | None = None, **variables: str
) -> str:
    """Run a program that fetches or builds what tests need; why it could not, or ""."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} has not ended in {seconds:g} s"
    return f"{command[0]} failed: {done.stdout.strip()[-500:]}" if done.returncode else ""


@contextlib.contextmanager
def once(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, which becomes `folder` if it is filled; None if that is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            place = Path(made) / "made"
            place.mkdir()
            yield place
            place.rename(folder)


def _archive() -> Path:
    """Of this Java and this Spark."""
    home = os.environ.get("JAVA_HOME")
    java = Path(home) / "bin" / "java" if home else Path(shutil.which("java") or "java")
    about = [str(java.resolve()), pyspark.__file__, pyspark.__version__]
    if java.exists():
        about.append(str(java.resolve().stat().st_mtime_ns))
    return CACHE / "classes" / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.jsa"


def _use_spark(folder: str) -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.sql.shuffle.partitions", "2")
    spark = builder.getOrCreate()
    rows = spark.createDataFrame(
        [(number, str(number), b"x") for number in range(10)], "a int, b string, c binary"
    )
    rows = rows.repartition(2).mapInArrow(lambda batches: batches, rows.schema)
    rows.write.partitionBy("b").parquet(folder)
    read = spark.read.parquet(folder).persist()
    counts = read.groupBy("b").agg(F.count("*").alias("n"), F.max("a"))
    read.join(counts, "b").orderBy("a").collect()
    spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(folder).collect()
    spark.stop()


if __name__ == "__main__":
    _use_spark(sys.argv[1])
