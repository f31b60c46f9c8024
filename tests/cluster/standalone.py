"""A Spark standalone cluster of processes of this machine: a master, and a worker on each of two loopback addresses.

Two addresses, since Spark never runs a speculative copy of a task on the host of the original. Everything listens
on loopback only, and all of Spark's connections are authenticated and encrypted with a secret that stands in a file
of the tests' own user; it is on no command line.

Each process is started in a session of its own, which executors and Python workers inherit: by the sessions' numbers
all of them are found, and ended, whatever has become of their parents.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.java import QUICK_START
from tests.sockets import ESTABLISHED, LISTENING, command_line, environment_of, sockets

SCRIPT = Path(__file__).parents[2] / "spark-submit.sh"
HOSTS = ("127.0.0.1", "127.0.0.2")
CORES_OF_WORKER = 2
# The key of a run's parameter server begins so.
PRIVATE_KEY = b"BEGIN PRIVATE KEY"

# What writes nothing for so long hangs. How long all of it takes is the machine's affair, which may be slow for hours.
SILENT_SECONDS = 300.0
_LOOK_SECONDS = 1.0
# Whoever was asked to end gets so long before it is killed.
POLITE_SECONDS = 20.0
# Of the tests' own environment: neither Spark nor the package shall be found by them.
_NOT_INHERITED = ("SPARK", "PYSPARK", "PYTHONPATH", "SEEDLINGS", "HADOOP", "YARN", "LOG4J")

# As an administrator writes it. The event log, in a folder that each job is given, is where a test reads what Spark
# has done.
_SPARK_DEFAULTS = """\
spark.authenticate                  true
spark.authenticate.secret           {secret}
spark.network.crypto.enabled        true
spark.network.crypto.cipher         AES/GCM/NoPadding
spark.driver.host                   127.0.0.1
spark.driver.bindAddress            127.0.0.1
spark.ui.enabled                    false
spark.eventLog.enabled              true
spark.eventLog.dir                  file://{events}
spark.eventLog.compress             false
spark.eventLog.rolling.enabled      false
spark.driver.extraJavaOptions       {java}
spark.executor.extraJavaOptions     {java}
"""


def clean_environment() -> dict[str, str]:
    """The environment of somebody who has just logged in."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return {**inherited, "SEEDLINGS_PYTHON": sys.executable}


def wait_until(condition: Callable[[], object], what: str, folder: Path) -> None:
    """Wait for a condition as long as somebody works on it.

    Args:
        condition: To wait for.
        what: It is, for whoever waits in vain.
        folder: Below which something is written as long as anything goes on: logs, events, metrics.

    Raises:
        AssertionError: Nothing was written for `SILENT_SECONDS`.
    """
    newest, looked = 0, 0.0
    silent_since = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now - looked > _LOOK_SECONDS:
            looked, found = now, _last_written(folder)
            if found != newest:
                newest, silent_since = found, now
        assert now - silent_since < SILENT_SECONDS, f"nothing was written for {SILENT_SECONDS:g} s: {what}"
        time.sleep(0.02)


def _last_written(folder: Path) -> int:
    """The newest time of modification below a folder, in ns."""
    newest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it may have gone meanwhile
                newest = max(newest, os.lstat(os.path.join(parent, name)).st_mtime_ns)  # noqa: PTH118 - many files
    return newest


def kill_all(find: Callable[[], list[int]], *, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Kill processes until none is found any more: one can be started while others are killed."""
    deadline = time.monotonic() + SILENT_SECONDS
    while remaining := find():
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        meanwhile()
        time.sleep(0.05)
        assert time.monotonic() < deadline, f"processes that cannot be ended: {remaining}"


def spark_home() -> Path:
    """Where pip has put Spark."""
    spec = find_spec("pyspark")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


class Session:
    """A process with all that it starts; a context manager that ends them.

    Args:
        command: Command of the process.
        environment: Environment of the process.
        folder: Its working directory, below which all is written that tells that it goes on.
        log: File for both of its streams, in the folder.
        stdin: Standard input of the process, as `subprocess.Popen` takes it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        *,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.folder, self.log = folder, log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def is_running(self) -> bool:
        """Whether the process itself has not ended."""
        return self._process.poll() is None

    def wait(self) -> int:
        """The process' exit code."""
        wait_until(lambda: not self.is_running(), f"the end of {self.log.name}", self.folder)
        return self._process.wait()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition that the process brings about.

        Raises:
            AssertionError: It has ended without, or nothing goes on any more.
        """
        found: object = None

        def is_over() -> bool:
            nonlocal found
            found = condition()
            return bool(found) or not self.is_running()

        wait_until(is_over, what, self.folder)
        assert found, f"ended without {what}: {self.said()[-4000:]}"

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def members(self) -> list[int]:
        """The processes of the session."""
        return [pid for pid, session in _sessions() if session == self._process.pid]

    def end(self) -> None:
        """Ask the process to end, and kill what is still there after a while."""
        if not self.members():
            return
        if self.is_running():
            self._process.terminate()
        deadline = time.monotonic() + POLITE_SECONDS
        while self.members() and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(0.05)
        kill_all(self.members, meanwhile=self._process.poll)


class Cluster:
    """Processes that are up within a `with`, and are ended also when not all of them have come up."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


@dataclass
class StandaloneCluster(Cluster):
    """A master and its workers; a context manager.

    Args:
        folder: For all that they write.
    """

    folder: Path
    url: str = ""
    _daemons: dict[str, Session] = field(default_factory=dict)

    @property
    def settings(self) -> Path:
        """The folder of the cluster's `spark-defaults.conf`, which holds the secret."""
        return self.folder / "conf"

    def environment(self, host: str = HOSTS[0]) -> dict[str, str]:
        """What makes a process one of this cluster, on the address of one of its hosts."""
        return {
            **clean_environment(),
            "SPARK_CONF_DIR": str(self.settings),
            "SPARK_LOCAL_DIRS": str(self.folder / "local"),
            "SPARK_LOCAL_IP": host,
            "TMPDIR": str(self.folder / "tmp"),
        }

    @property
    def secret(self) -> str:
        """Of Spark's connections."""
        return self._secret

    def processes(self) -> list[int]:
        """Master, workers, executors and Python workers."""
        return [pid for daemon in self._daemons.values() for pid in daemon.members()]

    def executors(self) -> list[int]:
        """The JVMs of executors, in the order of their numbers."""
        kind = b"CoarseGrainedExecutorBackend"
        return sorted(pid for pid in self.processes() if kind in command_line(pid))

    def training_workers(self, job: Session) -> dict[int, str]:
        """The Python processes that are connected to a job's driver, and the hosts that they are on."""
        ports = {each.port for each in sockets(job.members()) if each.state == LISTENING}
        found = {}
        for host in HOSTS:
            for pid in self._daemons[f"worker {host}"].members():
                if b"pyspark.daemon" in command_line(pid) and any(
                    each.state == ESTABLISHED and each.remote_port in ports for each in sockets([pid])
                ):
                    found[pid] = host
        return found

    def check_privacy(self, job: Session) -> None:
        """Nothing listens on the network, and the secret is in no command line."""
        pids = [*self.processes(), *job.members()]
        strangers = {
            str(each.address)
            for each in sockets(pids)
            if each.state == LISTENING and not each.address.is_loopback
        }
        assert strangers == set()
        assert [pid for pid in pids if PRIVATE_KEY in command_line(pid) + environment_of(pid)] == []
        assert [pid for pid in pids if self._secret.encode() in command_line(pid)] == []

    def _start(self) -> None:
        for place in (self.settings, self.folder / "local", self.folder / "tmp", self.folder / "events"):
            place.mkdir(parents=True, mode=0o700)
        self._secret = secrets.token_hex(32)
        defaults = self.settings / "spark-defaults.conf"
        defaults.touch(0o600)
        written = {"secret": self._secret, "java": QUICK_START, "events": self.folder / "events"}
        defaults.write_text(_SPARK_DEFAULTS.format(**written))
        home = spark_home()
        self._start_daemon(home, "master", HOSTS[0], "master.Master")
        master = self._daemons["master"]
        self._await(r"Starting Spark master at (spark://\S+)", 1)
        found = re.search(r"Starting Spark master at (spark://\S+)", master.said())
        assert found is not None
        self.url = found[1]
        for host in HOSTS:
            options = ["--cores", str(CORES_OF_WORKER), "--memory", "2g"]
            options += ["--work-dir", str(self.folder / f"work {host}"), self.url]
            self._start_daemon(home, f"worker {host}", host, "worker.Worker", *options)
        self._await(r"Registering worker 127\.0\.0\.\d", len(HOSTS))

    def _start_daemon(self, home: Path, name: str, host: str, kind: str, *options: str) -> None:
        program = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}"]
        command = [*program, "--host", host, "--port", "0", "--webui-port", "0", *options]
        environment = {**self.environment(host), "SPARK_HOME": str(home)}
        environment |= {"SPARK_DAEMON_MEMORY": "256m", "SPARK_DAEMON_JAVA_OPTS": QUICK_START}
        self._daemons[name] = Session(command, environment, self.folder, self.folder / f"{name}.log")

    def _await(self, pattern: str, times: int) -> None:
        """Wait until the master has said something so many times."""
        master = self._daemons["master"]

        def said() -> bool:
            for name, daemon in self._daemons.items():
                assert daemon.is_running(), f"the {name} has ended: {daemon.said()[-2000:]}"
            return len(re.findall(pattern, master.said())) >= times

        wait_until(said, pattern, self.folder)

    def _end(self) -> None:
        for daemon in reversed(self._daemons.values()):  # workers first: they end their executors
            daemon.end()


@dataclass(frozen=True)
class Attempt:
    """One attempt to run one task of a stage of training workers, as Spark's event log has it.

    Args:
        stage: Number of the stage, and of its own attempt.
        rank: Rank of the worker.
        host: Where it ran.
        is_speculative: Whether it is a copy of one that ran.
        reason: How it ended: "Success", or Spark's name of the failure.
        text: Text of the failure.
    """

    stage: tuple[int, int]
    rank: int
    host: str
    is_speculative: bool
    reason: str
    text: str


def training_attempts(log: Path) -> list[Attempt]:
    """All attempts of an application's training workers, in the order in which they ended.

    Args:
        log: The event log of the application.
    """
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    stages = {
        stage
        for event in events
        if event["Event"] == "SparkListenerJobStart"
        and event.get("Properties", {}).get("spark.jobGroup.id", "").startswith("seedlings-")
        for stage in event["Stage IDs"]
    }
    return [
        Attempt(
            stage=(event["Stage ID"], event["Stage Attempt ID"]),
            rank=event["Task Info"]["Index"],
            host=event["Task Info"]["Host"],
            is_speculative=event["Task Info"]["Speculative"],
            reason=event["Task End Reason"]["Reason"],
            text=json.dumps(event["Task End Reason"]),
        )
        for event in events
        # The stages before the last one shuffle the rows: they are not the workers.
        if event["Event"] == "SparkListenerTaskEnd"
        and event["Stage ID"] in stages
        and event["Task Type"] == "ResultTask"
    ]


def _sessions() -> Iterator[tuple[int, int]]:
    """Every process that has not ended, and its session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except OSError:
                continue
            state, _, _, session = stat.rpartition(") ")[2].split()[:4]
            if state not in "ZX":
                yield int(entry.name), int(session)
