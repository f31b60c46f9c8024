"""What is in the way of the other jobs on this machine or cluster, found before the first of them runs.

Each check is a row: what was looked at, what was found, whether that will do, and what to do if not. One Spark stage
looks at the executors: as many tasks at once as there are slots, so that every executor is seen.
"""

import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from seedlings_spark import display, files, reproducibility
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import SeedlingsError

GOOD, FAIR, BAD = "ok", "note", "FAIL"
_JAVA = 17
# A task that has seen its executor waits for others to do so too: else one slot could run them all.
_LINGER_SECONDS = 2.0
_CONNECT_SECONDS = 10.0
# More between two clocks, and the times in logs and of files cannot be compared.
_MOST_SKEW_SECONDS = 5.0
_SLOW_IMPORT_SECONDS = 30.0
_SEEN = (
    "host string, python string, versions string, features string, cores long, gpus string, import_seconds double,"
    " import_error string, clock double, reaches string, local string"
)
_LINKED = "host string, failure string, unreachable string"
# Connections that a task tries at once.
_TRIES = 16


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Args:
        name: What was looked at.
        found: What was found.
        verdict: `GOOD`, `FAIR` or `BAD`.
        remedy: What to do about it; "" where nothing is.
    """

    name: str
    found: str
    verdict: str = GOOD
    remedy: str = ""


@dataclass(frozen=True)
class Probe:
    """What a task is told to look at.

    Args:
        host: Host of the driver.
        port: That the driver listens on.
        token: That it answers with.
        shared: A local path that the driver has written, or "".
    """

    host: str
    port: int
    token: str
    shared: str


def examine(
    spark: SparkSession,
    *,
    output: str,
    num_workers: int,
    ports: Sequence[int],
    worker_ports: Sequence[int] = (0,),
) -> list[Check]:
    """Run all checks.

    Args:
        spark: The session.
        output: Full URI of a folder to write to, or "".
        num_workers: Workers of a training run.
        ports: Candidates for the parameter server's.
        worker_ports: Candidates for that of each worker whose gradients are averaged among the workers.

    Returns:
        The rows, those of the driver first.
    """
    checks = [*_driver(spark), *_slots(spark, num_workers), *_memory(spark), *_security(spark)]
    with contextlib.ExitStack() as stack:
        shared = ""
        if output:
            shared, check = stack.enter_context(_written(output))
            checks.append(check)
        try:
            listener = stack.enter_context(_Answering(session.driver_addresses(spark)[0], ports))
        except OSError as error:
            remedy = "Give another --server-port; 0 lets the system choose"
            return [*checks, Check("port of the parameter server", str(error), BAD, remedy)]
        probe = Probe(session.driver_addresses(spark)[1], listener.port, listener.token, shared)
        asked = time.time()
        try:
            seen = _look(spark, probe)
        except Exception as error:  # whatever keeps Python from running there
            text = " ".join(str(error).split())
            found = re.search(
                r"(no Python [^'\"]{0,80}|Cannot run program \"[^\"]*\"[^:]*|No module named \S+)", text
            )
            remedy = (
                f"Executors need Python {platform.python_version()} at PYSPARK_PYTHON with the packages of"
                f" {_constraints(spark)}, or --archives dist/environment.tar.gz#environment; see"
                f" {display.command()} pack"
            )
            return [*checks, Check("Python on the executors", found[0] if found else text[:200], BAD, remedy)]
        checks += _executors(seen, asked, time.time(), probe, _constraints(spark))
        return [*checks, *_links(spark, probe, num_workers, worker_ports)]


def is_fit(checks: Sequence[Check]) -> bool:
    """Whether nothing is in the way."""
    return all(check.verdict != BAD for check in checks)


def table(checks: Sequence[Check]) -> str:
    """The rows for a person to read, each remedy below its row."""
    rows = []
    for check in checks:
        rows.append((check.verdict, check.name, display.shown(check.found)))
        if check.remedy and check.verdict != GOOD:
            rows.append(("", "", f"-> {display.shown(check.remedy)}"))
    return display.aligned(rows)


# --- the driver -------------------------------------------------------------------------------------------


def _driver(spark: SparkSession) -> Iterator[Check]:
    context = spark.sparkContext
    yield Check(
        "Spark",
        f"{spark.version} on {context.master}, deploy mode {_setting(spark, 'submit.deployMode', 'client')}",
    )
    java = str(session.jvm(spark).java.lang.System.getProperty("java.version"))
    old = int(java.split(".")[0]) < _JAVA
    yield Check("Java of the driver", java, BAD if old else GOOD, f"Install Java {_JAVA}, or set JAVA_HOME")
    yield Check("Python of the driver", f"{platform.python_version()} ({sys.executable})")
    seconds, error = _import_seconds()
    yield _import("TensorFlow on the driver", seconds, error, _constraints(spark))
    yield Check("address of the driver", ", ".join(dict.fromkeys(session.driver_addresses(spark))))


def _slots(spark: SparkSession, num_workers: int) -> Iterator[Check]:
    try:
        session.require_slots(spark, num_workers, 60.0)
    except SeedlingsError as error:
        yield Check(f"slots for {num_workers} workers", error.found, BAD, error.remedy)
        return
    slots, cpus = session.num_slots(spark), session.task_cpus(spark)
    yield Check(f"slots for {num_workers} workers", f"{slots}, each of {cpus} core{'s' * (cpus > 1)}")


def _memory(spark: SparkSession) -> Iterator[Check]:
    if session.is_local(spark):
        return
    try:
        session.require_memory(spark)
    except SeedlingsError as error:
        yield Check("memory beside the JVM", error.found, BAD, error.remedy)
    else:
        yield Check("memory beside the JVM", session.overhead_in_words(spark))


def _security(spark: SparkSession) -> Iterator[Check]:
    if session.is_local(spark):
        return
    names = ("authenticate", "network.crypto.enabled", "io.encryption.enabled")
    off = [f"spark.{name}" for name in names if _setting(spark, name, "false").lower() != "true"]
    yield Check(
        "Spark's connections",
        f"without {', '.join(off)}" if off else "authenticated and encrypted",
        FAIR if off else GOOD,
        "Leave out --insecure, and give the cluster a secret: whoever reaches its ports can run programs on it",
    )


@contextlib.contextmanager
def _written(output: str) -> Iterator[tuple[str, Check]]:
    """Write a file into a folder; yields its local path for the executors to read, "" elsewhere."""
    path = files.join(output, f".doctor-{uuid.uuid4().hex}")
    try:
        files.write_text(path, "written by doctor\n")
    except OSError as error:
        remedy = "Give the user that runs the jobs the right to write there, or choose another folder"
        yield (
            "",
            Check(
                display.Whole(f"writing to {display.shown(output)}"),
                error.strerror or str(error),
                BAD,
                remedy,
            ),
        )
        return
    try:
        is_local = files.is_local(path)
        yield (
            (str(files.local_path(path)) if is_local else ""),
            Check(display.Whole(f"writing to {display.shown(output)}"), "done by the driver"),
        )
    finally:
        files.delete(path)


class _Answering:
    """Listens where a server of a run would, and answers each connection with a token."""

    def __init__(self, host: str, ports: Sequence[int], token: str = "") -> None:
        self._host, self._ports = host, ports
        self.token = token or uuid.uuid4().hex

    def __enter__(self) -> "_Answering":
        failure: OSError | None = None
        for port in self._ports:
            try:
                self._listener = socket.create_server((self._host, port))
                break
            except OSError as error:
                failure = error
        else:
            raise failure or OSError("no port to try")
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._answer, name="seedlings-doctor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Else the thread waits on and answers one more call, on Linux.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(self.token.encode())


# --- the executors ----------------------------------------------------------------------------------------


def _look(spark: SparkSession, probe: Probe) -> list[Any]:
    slots = max(1, session.num_slots(spark))
    with session.python_environment(spark, runtime.worker_environment(session.task_cpus(spark))):
        return spark.range(0, slots, 1, slots).mapInArrow(partial(_seen, probe), _SEEN).collect()


def _seen(probe: Probe, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """What the process of a task sees."""
    from pyspark import TaskContext

    for _ in batches:
        pass
    context = TaskContext.get()
    gpus = runtime.gpu_addresses(context.resources()) if context is not None else ()
    seconds, error = _import_seconds()
    row = {
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": _versions(),
        "features": " ".join(reproducibility.cpu_features()),
        "cores": os.cpu_count() or 0,
        "gpus": " ".join(gpus),
        "import_seconds": seconds,
        "import_error": error,
        "clock": time.time(),
        "reaches": _reaches((probe.host, probe.port), probe.token),
        "local": _reads(probe.shared),
    }
    time.sleep(_LINGER_SECONDS)
    yield pa.RecordBatch.from_pydict({name: [value] for name, value in row.items()})


def _reaches(address: tuple[str, int], token: str) -> str:
    """Why a port of ours is not reached; "" if it is."""
    try:
        with socket.create_connection(address, _CONNECT_SECONDS) as connection:
            connection.settimeout(_CONNECT_SECONDS)
            said = connection.recv(64).decode(errors="replace")
    except OSError as error:
        return error.strerror or str(error)
    return "" if said == token else "somebody else answers there"


def _reads(path: str) -> str:
    """Why a file that the driver has written is not there; "" if it is."""
    if not path:
        return ""
    try:
        with open(path, "rb"):  # noqa: PTH123
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _constraints(spark: SparkSession) -> str:
    """The file of the packages' exact versions for this cluster's Spark."""
    return f"conf/constraints-spark-{'.'.join(spark.version.split('.')[:2])}.txt"


def _executors(
    seen: Sequence[Any], asked: float, answered: float, probe: Probe, constraints: str
) -> Iterator[Check]:
    hosts = sorted({row["host"] for row in seen})
    yield Check(
        "executors seen",
        f"{len(seen)} tasks on {len(hosts)} host{'s' * (len(hosts) > 1)}: {', '.join(hosts)}",
    )
    failures = sorted({row["import_error"] for row in seen if row["import_error"]})
    slowest = max(row["import_seconds"] for row in seen)
    yield _import("TensorFlow on the executors", slowest, "; ".join(failures), constraints)
    own = _versions()
    others = list(dict.fromkeys(row["versions"] for row in seen if row["versions"] != own))
    differences = [_difference(own, versions) for versions in others]
    yield Check(
        "versions",
        "; ".join(differences) or f"those of the driver: {own}",
        FAIR if others else GOOD,
        f"Install {constraints} everywhere, or ship one environment: results depend on versions",
    )
    yield _processors(seen)
    yield _gpus(seen)
    yield _reachability(seen, probe)
    if probe.shared:
        missing = sorted({f"{row['local']} on {row['host']}" for row in seen if row["local"]})
        yield Check(
            "the same folder on the executors",
            "; ".join(missing) or "they read what the driver has written",
            BAD if missing else GOOD,
            "Give a folder of a file system that is mounted alike on all machines, or of HDFS",
        )
    skew = max(max(asked - row["clock"], row["clock"] - answered, 0.0) for row in seen)
    yield Check(
        "clocks",
        f"within {max(1.0, skew):.0f} s of the driver's",
        FAIR if skew > _MOST_SKEW_SECONDS else GOOD,
        "Let all machines follow one time server",
    )


def _processors(seen: Sequence[Any]) -> Check:
    features = sorted({row["features"] for row in seen})
    has_bfloat16 = all(
        runtime.resolve_precision("auto", tuple(each.split())) != "float32" for each in features
    )
    return Check(
        "processors",
        f"{', '.join(sorted({str(row['cores']) for row in seen}))} cores a host,"
        f" {'bfloat16' if has_bfloat16 else 'no bfloat16: precision auto is float32'}",
        FAIR if len(features) > 1 else GOOD,
        "Processors of several kinds: synchronous training gives the same bits only on one kind",
    )


def _gpus(seen: Sequence[Any]) -> Check:
    """Which GPU Spark has assigned to each task: addresses, host by host."""
    of_host: dict[str, list[str]] = {}
    for row in seen:
        of_host.setdefault(row["host"], []).append(row["gpus"])
    is_any = any(row["gpus"] for row in seen)
    said = [
        f"{', '.join(each or 'none' for each in sorted(gpus))} on {host}"
        for host, gpus in sorted(of_host.items())
    ]
    is_shared = any(
        len(addresses) > len(set(addresses))
        for gpus in of_host.values()
        for addresses in [[address for each in gpus for address in each.split()]]
    )
    is_some = is_any and not all(row["gpus"] for row in seen)
    return Check(
        "GPUs assigned to tasks",
        "; ".join(said) if is_any else "none",
        FAIR if is_shared or is_some else GOOD,
        "Give each task one GPU of its own: --conf spark.task.resource.gpu.amount=1, and executors as many as tasks",
    )


def _reachability(seen: Sequence[Any], probe: Probe) -> Check:
    unreachable = sorted({f"{row['reaches']} from {row['host']}" for row in seen if row["reaches"]})
    return Check(
        "driver's port from the executors",
        "; ".join(unreachable) or f"{probe.host}:{probe.port} answers",
        BAD if unreachable else GOOD,
        "Open a range of ports of the driver to the executors and give it as --server-port; with several addresses"
        " name the right one by --conf spark.driver.host",
    )


# --- the workers' links with each other -------------------------------------------------------------------


def _links(spark: SparkSession, probe: Probe, num_workers: int, ports: Sequence[int]) -> Iterator[Check]:
    """Let as many tasks as a run has workers reach each other, as `--exchange workers` does."""
    count = min(num_workers, session.num_slots(spark))
    if count < 2:
        return
    try:
        with session.python_environment(spark, runtime.worker_environment(session.task_cpus(spark))):
            tasks = spark.range(0, count, 1, count)
            found = tasks.mapInArrow(partial(_linked, probe, ports), _LINKED, barrier=True).collect()
    except Exception as error:  # whatever keeps tasks from running at once
        text = " ".join(str(error).split())
        yield Check(
            "links between workers", f"not tried: {text[:200]}", FAIR, "Only --exchange workers needs them"
        )
        return
    yield _linkage(found)


def _linkage(found: Sequence[Any]) -> Check:
    broken = [f"{row['failure']} on {row['host']}" for row in found if row["failure"]]
    broken += [f"no way from {row['host']} to {row['unreachable']}" for row in found if row["unreachable"]]
    return Check(
        "links between workers",
        "; ".join(sorted(set(broken))) or f"{len(found)} workers reach each other",
        FAIR if broken else GOOD,
        "For --exchange workers open a range of ports between the executors and give it as --worker-port, with as many"
        " ports as workers run on one machine; --exchange driver, the default, needs none",
    )


def _linked(
    probe: Probe, ports: Sequence[int], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Which of the other tasks this one does not reach."""
    from pyspark import BarrierTaskContext

    for _ in batches:
        pass
    context = BarrierTaskContext.get()
    with contextlib.ExitStack() as stack:
        failure = address = ""
        try:
            with socket.create_connection((probe.host, probe.port), _CONNECT_SECONDS) as connection:
                host = str(connection.getsockname()[0])  # where a worker listens, too
            address = f"{host} {stack.enter_context(_Answering(host, ports, probe.token)).port}"
        except OSError as error:
            failure = f"no port for the others ({error.strerror or error})"
        others = [each for each in context.allGather(address) if each not in ("", address)]
        unreachable = unreached(others, probe.token)
        context.barrier()  # until then all have to listen
    row = {"host": platform.node(), "failure": failure, "unreachable": ", ".join(unreachable)}
    yield pa.RecordBatch.from_pydict({name: [value] for name, value in row.items()})


def unreached(addresses: Sequence[str], token: str) -> list[str]:
    """Those of these addresses that are not reached, each with the reason.

    Args:
        addresses: Host and port of each, with a space between.
        token: What is answered there.
    """

    def attempt(address: str) -> str:
        host, port = address.split(" ")
        reason = _reaches((host, int(port)), token)
        return f"{host}:{port} ({reason})" if reason else ""

    with ThreadPoolExecutor(_TRIES) as pool:
        return [found for found in pool.map(attempt, addresses) if found]


# --- of any process -----------------------------------------------------------------------------------------


def _versions() -> str:
    """Of this process: Spark's as Python sees it, which is the cluster's on an executor, and the packages'."""
    import pyspark

    versions = {**reproducibility.package_versions(), "pyspark": pyspark.__version__}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _difference(own: str, other: str) -> str:
    """Where the versions of an executor differ from the driver's."""
    ours, theirs = (dict(each.rsplit(" ", 1) for each in text.split(", ")) for text in (own, other))
    return ", ".join(
        f"{name} {theirs.get(name, 'none')} on executors, {ours.get(name, 'none')} on the driver"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    )


def _import(name: str, seconds: float, error: str, constraints: str) -> Check:
    if error:
        remedy = f"Install {constraints} there, or ship an environment: {display.command()} pack"
        return Check(name, error, BAD, remedy)
    found = f"imported in {seconds:.1f} s"
    if seconds > _SLOW_IMPORT_SECONDS:
        return Check(name, found, FAIR, "Each Python process pays this: put the packages on a local disk")
    return Check(name, found)


def _import_seconds() -> tuple[float, str]:
    """How long a fresh process takes to import TensorFlow, and why it cannot."""
    started = time.monotonic()
    ran = _run([sys.executable, "-c", "import tensorflow"])
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    return time.monotonic() - started, "" if ran.returncode == 0 else (lines or ["it ended without a word"])[
        -1
    ][:200]


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    # Of our own words: this Python, and what it is to import.
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603


def _setting(spark: SparkSession, name: str, default: str) -> str:
    return spark.conf.get(f"spark.{name}", default) or default
