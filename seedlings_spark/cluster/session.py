"""Builds the SparkSession, and knows what it offers: slots, addresses, environments.

What belongs to a cluster stands in `conf/spark-*.conf`; here stands only what no job can run without.
"""

import atexit
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark import InheritableThread, SparkConf, SparkContext
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import config, display
from seedlings_spark.cluster import connect
from seedlings_spark.errors import ClusterError, OptionError, in_brief, recognized

_log = logging.getLogger(__name__)
# What a Python process with TensorFlow needs beside the JVM: 750 to 870 MiB were measured with small networks.
_WORKER_MIB = 1024
# How long it takes until nobody expects dynamic allocation to bring another executor, and longer than anybody waits.
_NO_MORE_SECONDS, _LONG_SECONDS = 30.0, 86_400.0
# Rows of one Arrow batch are chosen so that it takes about this much.
ARROW_BATCH_BYTES = 8 * 1024 * 1024

# Parquet's pages carry checksums, which nobody compares by default: a flipped bit would be another picture.
PARQUET_CHECKSUMS = {
    "parquet.page.write-checksum.enabled": "true",
    "parquet.page.verify-checksum.enabled": "true",
}


def build(app_name: str, settings: Mapping[str, str] | None = None) -> SparkSession:
    """The session of this application; one that is already active is used.

    Args:
        app_name: Shown in Spark's UI.
        settings: Further Spark settings, for tests and notebooks; spark-submit has set all others.

    Raises:
        ClusterError: No JVM could be started, or the session could not.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(app_name)
    checksums = {f"spark.hadoop.{name}": value for name, value in PARQUET_CHECKSUMS.items()}
    folders = _private_folders(settings or {})
    for name, value in {**checksums, **(settings or {}), **folders}.items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # py4j and pyspark raise many kinds here
        known = recognized(error)
        if known is not None:
            raise known from error
        raise ClusterError(
            f"no SparkSession could be started ({in_brief(error)})",
            "Java 17 on the PATH or in JAVA_HOME, and a master that answers",
            "Check `java -version` and the value of --master",
        ) from error


def require_utf8(spark: SparkSession, texts: Iterable[str]) -> None:
    """Refuse arguments that the JVM cannot have read: without a UTF-8 locale it makes each letter outside of ASCII `?`.

    Args:
        spark: The session.
        texts: Arguments, paths and names of a job.

    Raises:
        ClusterError: One of them has such a letter, or what may be left of one.
    """
    lost = [text for text in texts if not text.isascii() or "?" in text]
    if not lost:
        return
    encoding = str(jvm(spark).java.lang.System.getProperty("sun.jnu.encoding"))
    if encoding.upper().replace("-", "") != "UTF8":
        raise ClusterError(
            f"{lost[0]!r} where the JVM reads arguments and names of files as {encoding}",
            "UTF-8: any other letter than those of ASCII becomes a `?`, which stands for other names too",
            f"Set LC_ALL=C.UTF-8 for spark-submit, or start the job by {display.command()}, which does",
        )


def _private_folders(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings for a local session whose shuffle files and spills nobody else on the machine can read.

    Spark makes them readable for all, whatever is in them; on a cluster they are the node manager's to protect. Where
    `SPARK_LOCAL_DIRS` is set Spark looks nowhere else, and that folder has to be a private one.
    """
    if SparkContext._active_spark_context is not None or os.environ.get("SPARK_LOCAL_DIRS"):
        return {}
    configuration = dict(settings)
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit's settings are in its JVM, which is there already
        SparkContext._ensure_initialized()
        known = SparkConf()
        names = ("spark.master", "spark.local.dir")
        configuration = {**{name: known.get(name) or "" for name in names}, **configuration}
    if not (configuration.get("spark.master") or "").startswith("local"):
        return {}
    folders = (configuration.get("spark.local.dir") or tempfile.gettempdir()).split(",")
    private = []
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
        private.append(tempfile.mkdtemp(prefix="seedlings-", dir=folder))  # for its owner alone
        atexit.register(shutil.rmtree, private[-1], ignore_errors=True)
    return {"spark.local.dir": ",".join(private)}


def is_local(spark: SparkSession) -> bool:
    """Whether driver and workers are one process tree on this machine."""
    if connect.is_connect(spark):
        return False
    master = str(spark.sparkContext.master)
    return master == "local" or master.startswith("local[")


def task_cpus(spark: SparkSession) -> int:
    """Cores of one task."""
    return int(spark.conf.get("spark.task.cpus", "1") or "1")


def is_dynamic(spark: SparkSession) -> bool:
    """Whether Spark asks for executors as there are tasks for them, and gives back those that have none."""
    enabled = spark.conf.get("spark.dynamicAllocation.enabled", "false") or ""
    return enabled.lower() == "true" and not is_local(spark)


def num_slots(spark: SparkSession) -> int:
    """How many tasks can run at once on the executors that have registered."""
    if connect.is_connect(spark):
        return connect.num_slots(spark)
    context = spark.sparkContext._jsc.sc()
    return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))


def requested_slots(spark: SparkSession) -> int | None:
    """How many tasks could run at once on the executors that were asked for; None where that is not known."""
    if is_local(spark):
        return num_slots(spark)
    cores, instances = (
        spark.conf.get(name, None) for name in ("spark.executor.cores", "spark.executor.instances")
    )
    most = spark.conf.get("spark.cores.max", None)
    if is_dynamic(spark):
        instances = spark.conf.get("spark.dynamicAllocation.maxExecutors", None)
        if not instances or not cores:
            return None
        return int(instances) * (int(cores) // task_cpus(spark))
    if str(spark.sparkContext.master).startswith(("yarn", "k8s")):
        # The defaults of both: two executors of one core each.
        return int(instances or 2) * (int(cores or 1) // task_cpus(spark))
    return int(most) // task_cpus(spark) if most else None


def require_slots(spark: SparkSession, num_workers: int, wait_seconds: float = 120.0, least: int = 0) -> None:
    """Refuse a run whose workers cannot all run at once, before Spark waits ten minutes for them.

    Args:
        spark: The session.
        num_workers: Number of workers of the run.
        wait_seconds: How long executors that were asked for may take to register.
        least: Workers with which it would begin after that; 0 for all of them.

    Raises:
        ClusterError: A session of Spark Connect, fewer slots than workers, or executors too small for TensorFlow.
    """
    connect.refuse(spark, "training")
    require_memory(spark)
    requested, cpus = requested_slots(spark), task_cpus(spark)
    least = least or num_workers
    most = num_workers if requested is None else min(num_workers, requested)
    waited = _wait_for_slots(spark, least, most, wait_seconds) if most >= least else 0.0
    slots = min(num_slots(spark), most)
    if least > slots:
        asked = f", {requested} asked for" if requested is not None and not is_local(spark) else ""
        late = f" after {waited:.0f} s" if waited else ""
        raise ClusterError(
            f"{slots} free slot{'s' * (slots != 1)}{late} ({spark.sparkContext.master}, spark.task.cpus={cpus}{asked})"
            f" for {least} workers",
            "a slot for every worker",
            f"Use --num-workers {max(1, slots)}, or start with more cores"
            f" (--master 'local[{least * cpus}]', --num-executors, --executor-cores)",
        )


def _wait_for_slots(spark: SparkSession, least: int, most: int, wait_seconds: float) -> float:
    """Wait until so many tasks could run at once, at most; the seconds that it took.

    Of dynamic allocation nobody knows how many executors there will be: it has to do when there are enough, and for a
    while none has come.
    """
    if is_local(spark) or num_slots(spark) >= most:
        return 0.0
    waited = came = 0.0
    slots, is_dynamically = num_slots(spark), is_dynamic(spark)
    with _tasks_that_wait(spark, most) if is_dynamically else contextlib.nullcontext():
        while slots < most and waited < wait_seconds:
            if is_dynamically and slots >= least and waited - came > _NO_MORE_SECONDS:
                break
            if waited in (5.0, 30.0, 60.0):
                _log.info("%d of %d slots are there; waiting for further executors", slots, most)
            time.sleep(0.5)
            waited += 0.5
            before, slots = slots, num_slots(spark)
            came = waited if slots > before else came
    return waited


@contextlib.contextmanager
def _tasks_that_wait(spark: SparkSession, count: int) -> Iterator[None]:
    """Tasks that do nothing, for which dynamic allocation asks for executors. They end with this."""
    context, group = spark.sparkContext, f"waiting-{uuid.uuid4().hex[:12]}"

    def wait() -> None:
        context.setJobGroup(group, "waiting for executors", interruptOnCancel=True)
        with contextlib.suppress(Exception):  # it is cancelled
            context.parallelize(range(count), count).foreach(_wait)

    thread = InheritableThread(wait, session=spark)
    thread.start()
    try:
        yield
    finally:
        while thread.is_alive():  # the job may not have begun
            context.cancelJobGroup(group)
            thread.join(0.5)


def _wait(_number: int) -> None:
    time.sleep(_LONG_SECONDS)


def require_memory(spark: SparkSession) -> None:
    """Refuse executors whose containers are too small for TensorFlow, before YARN or Kubernetes kills them.

    Args:
        spark: The session.

    Raises:
        ClusterError: Too little memory beside the JVM's heap for as many Python processes as an executor has slots.
    """
    overhead = _overhead(spark)
    if overhead is None:
        return
    mebibytes, slots = overhead
    needed = _WORKER_MIB * slots
    if mebibytes < needed:
        raise ClusterError(
            f"spark.executor.memoryOverhead of {mebibytes:,} MiB for {slots} Python"
            f" process{'es' * (slots != 1)} of each executor",
            f"at least {needed:,} MiB: TensorFlow lives outside of the JVM's heap, and a container that takes more than"
            " it asked for is killed",
            f"Start with --conf spark.executor.memoryOverhead={max(3072, needed)}m, or with fewer --executor-cores",
        )


def overhead_in_words(spark: SparkSession) -> str:
    """What an executor's Python processes may take, for a person to read."""
    overhead = _overhead(spark)
    if overhead is None:
        return (
            "not limited by a standalone cluster: 1 GB or more for each slot should be free on its machines"
        )
    return f"{overhead[0]:,} MiB for {overhead[1]} Python process{'es' * (overhead[1] != 1)} of an executor"


def _overhead(spark: SparkSession) -> tuple[int, int] | None:
    """MiB of an executor's container beside the heap, and its slots; None where nothing limits them."""
    if not str(spark.sparkContext.master).startswith(("yarn", "k8s")):
        return None
    # Spark's client for Kubernetes sets the second one in a driver's pod: 0.4 for Python.
    names = ("spark.executor.memoryOverheadFactor", "spark.kubernetes.memoryOverheadFactor")
    factor = float(next(filter(None, (spark.conf.get(name, None) for name in names)), 0.1))
    heap = _mebibytes(spark, spark.conf.get("spark.executor.memory", None) or "1g")
    given = spark.conf.get("spark.executor.memoryOverhead", None)
    overhead = _mebibytes(spark, given) if given else max(384, int(heap * factor))
    python = spark.conf.get("spark.executor.pyspark.memory", None)
    overhead += _mebibytes(spark, python) if python else 0
    cores = int(spark.conf.get("spark.executor.cores", None) or 1)
    return overhead, max(1, cores // task_cpus(spark))


def jvm(spark: SparkSession) -> Any:
    """The JVM of a session's application.

    Raises:
        ClusterError: The session has none: its context is stopped.
    """
    found = spark.sparkContext._jvm
    if found is None:
        raise ClusterError(
            "a session whose Spark application has ended",
            "one that is running",
            "Start a new session",
        )
    return found


def _mebibytes(spark: SparkSession, text: str) -> int:
    """Of a size as Spark's settings have it; a number alone means MiB."""
    return int(jvm(spark).org.apache.spark.network.util.JavaUtils.byteStringAsMb(text))


def ports(text: str, name: str = "server_port") -> range:
    """Candidate ports of the parameter server.

    Args:
        text: "0" for any, "N", or "N-M".
        name: Of the option.

    Raises:
        OptionError: It is none of these.
    """
    found = config.ports_of(text)
    if found is None:
        raise OptionError(
            f"{name}={text!r}",
            "'0', a port such as '4100' or a range such as '4100-4110'",
            f"Correct {name}",
        )
    return found


def driver_addresses(spark: SparkSession) -> tuple[str, str]:
    """Where a server on the driver listens, and where executors reach it: (bind address, host)."""
    if is_local(spark):
        return "127.0.0.1", "127.0.0.1"
    host = str(spark.conf.get("spark.driver.host"))
    return str(spark.conf.get("spark.driver.bindAddress", host)), host


def partition_key(partition: Column, num_partitions: int) -> Column:
    """What to `repartition(num_partitions, ...)` by, so that each row lands in the partition that a column names.

    Spark hashes what it is given: two partitions could fall into one.

    Args:
        partition: An integer column, from 0 to num_partitions - 1.
        num_partitions: All of them.
    """
    found: dict[int, int] = {}
    start, count = 0, 64 * num_partitions
    while len(found) < num_partitions:
        candidates = np.arange(start, start + count, dtype=np.uint32)
        places, first = np.unique(spark_hash(candidates) % num_partitions, return_index=True)
        for place, key in zip(places.tolist(), candidates[first].tolist(), strict=True):
            found.setdefault(place, key)
        start += count
    keys = F.array(*[F.lit(found[place]) for place in range(num_partitions)])
    return F.element_at(keys, partition.cast("int") + 1)


def spark_hash(values: NDArray[np.uint32]) -> NDArray[np.int32]:
    """What Spark's `hash` gives for integers of 32 bits: MurmurHash3 (x86, 32 bits) of one block, with the seed 42."""
    with np.errstate(over="ignore"):
        mixed = _rotated(values * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
        found = _rotated(np.uint32(42) ^ mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)
        found ^= np.uint32(4)  # bytes
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            found = (found ^ (found >> np.uint32(shift))) * np.uint32(factor)
    return found.view(np.int32)


def _rotated(values: NDArray[np.uint32], by: int) -> NDArray[np.uint32]:
    return (values << np.uint32(by)) | (values >> np.uint32(32 - by))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each of these calls returns: Spark plans and runs what they ask of it side by side."""
    with ThreadPoolExecutor(len(calls)) as pool:
        answers = [pool.submit(call) for call in calls]
    return [answer.result() for answer in answers]


_making = threading.RLock()
_RECORDS = "spark.sql.execution.arrow.maxRecordsPerBatch"
# Of each session what was set before, and what those want who are inside of `arrow_batches`.
_batches: dict[str, tuple[str, list[int]]] = {}


@contextlib.contextmanager
def python_environment(
    spark: SparkSession, variables: Mapping[str, str], *, across_threads: bool = False
) -> Iterator[None]:
    """Give the Python functions that are made inside these environment variables on the executors.

    Spark keeps Python processes of different environments apart, so a process that has started TensorFlow
    with one number of threads is never reused for another. The environment is one of the whole process: threads wait
    for each other, so only make the function inside, and run it afterwards. On a session of Spark Connect nobody can
    set it: the workers get this package, and what their server has set.

    Args:
        spark: The session.
        variables: To set.
        across_threads: Whether functions that other threads make meanwhile get them too.
    """
    if connect.is_connect(spark):
        connect.supply(spark)
        yield
        return
    with contextlib.nullcontext() if across_threads else _making:
        environment = spark.sparkContext.environment
        before = dict(environment)
        environment.update(variables)
        try:
            yield
        finally:
            environment.clear()
            environment.update(before)


@contextlib.contextmanager
def arrow_batches(spark: SparkSession, row_bytes: int) -> Iterator[None]:
    """Let the Arrow batches of what is run inside hold about `ARROW_BATCH_BYTES`; Spark's default is 10,000 rows.

    Spark reads the setting when it runs something, not when that is made. Of threads that are inside at once the
    shortest batches hold for all of them.
    """
    wanted = max(1, min(10_000, ARROW_BATCH_BYTES // max(1, row_bytes)))
    key: str = getattr(spark, "session_id", None) or spark._jsparkSession.sessionUUID()
    with _making:
        before, inside = _batches.setdefault(key, (str(spark.conf.get(_RECORDS)), []))
        inside.append(wanted)
        spark.conf.set(_RECORDS, str(min(inside)))
    try:
        yield
    finally:
        with _making:
            inside.remove(wanted)
            spark.conf.set(_RECORDS, str(min(inside)) if inside else before)
            if not inside:
                del _batches[key]
