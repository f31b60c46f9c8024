"""An HDFS and a YARN of one Java process on this machine, without an installation of Hadoop.

The Java process lives only as long as the tests: its stdin is a pipe of theirs. YARN's containers have sessions of
their own; they are found by the cluster's folder, which stands in the environment, the command line or the
working directory of each of them.

Hadoop's test jars, 100 MB that pip's pyspark does not carry, come by Maven from where it is set up to find them,
once for all checkouts of this user.
"""

import contextlib
import getpass
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.standalone import (
    POLITE_SECONDS,
    SCRIPT,
    SILENT_SECONDS,
    Cluster,
    Session,
    clean_environment,
    kill_all,
    spark_home,
    wait_until,
)
from tests.java import QUICK_START, why_not_fetched
from tests.sockets import command_line

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
JARS = CACHE / "seedlings_spark" / "hadoop-test-jars"

_HERE = Path(__file__).parent
_FETCH_SECONDS = 1200.0  # Maven says nothing that would tell how far it is
# Where the node managers keep the logs of their containers: one folder an application, one in it a container.
_LOGS = "target/test/data/yarn/*/*-logDir-*"
_APPLICATION_MASTER = b"org.apache.spark.deploy.yarn.ApplicationMaster"
_EXECUTOR = b"org.apache.spark.executor.YarnCoarseGrainedExecutorBackend"

# As an administrator writes it. The nodes have Spark's jars, so that no job uploads them.
_SPARK_DEFAULTS = """\
spark.driver.host                          127.0.0.1
spark.driver.bindAddress                   127.0.0.1
spark.yarn.appMasterEnv.SPARK_LOCAL_IP     127.0.0.1
spark.executorEnv.SPARK_LOCAL_IP           127.0.0.1
spark.ui.enabled                           false
spark.yarn.jars                            local:{jars}/*
spark.driver.extraJavaOptions              {java}
spark.executor.extraJavaOptions            {java}
spark.yarn.am.extraJavaOptions             {java}
"""


class NoHadoopError(Exception):
    """Why Hadoop's test jars are not to be had on this machine."""


def fetch_jars() -> Path:
    """The folder of Hadoop's test jars, of the version that Spark brings, which the first call fills.

    Raises:
        NoHadoopError: There is no Maven, or it could not fetch them.
    """
    pom = _HERE / "pom.xml"
    (client,) = (spark_home() / "jars").glob("hadoop-client-api-*.jar")
    version = client.stem.removeprefix("hadoop-client-api-")
    folder = JARS / hashlib.sha256(pom.read_bytes() + version.encode()).hexdigest()[:16]
    if folder.exists():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise NoHadoopError("no mvn on the PATH, which fetches Hadoop's test jars (apt-get install maven)")
    JARS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=JARS) as place:
        command = [maven, "-q", "-B", "-f", str(pom), f"-Dhadoop.version={version}"]
        command.append(f"-DoutputDirectory={place}/jars")
        why = why_not_fetched([*command, "dependency:copy-dependencies"], _FETCH_SECONDS)
        if why:
            raise NoHadoopError(f"Hadoop's test jars: {why}")
        with contextlib.suppress(FileExistsError):  # another has been faster
            (Path(place) / "jars").rename(folder)
    return folder


@dataclass
class YarnCluster(Cluster):
    """An HDFS of one data node and a YARN of two node managers; a context manager.

    Args:
        folder: For all that they write.
    """

    folder: Path
    uri: str = ""

    @property
    def settings(self) -> Path:
        """The folder of `core-site.xml`, `yarn-site.xml` and `spark-defaults.conf`."""
        return self.folder / "conf"

    def environment(self) -> dict[str, str]:
        """What makes a process a client of this cluster."""
        return {
            **clean_environment(),
            "HADOOP_CONF_DIR": str(self.settings),
            "YARN_CONF_DIR": str(self.settings),
            "SPARK_CONF_DIR": str(self.settings),
            "SPARK_LOCAL_DIRS": str(self.folder / "local"),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "TMPDIR": str(self.folder / "tmp"),
        }

    def put(self, target: str, *local: Path) -> None:
        """Copy files or folders of this machine to the HDFS.

        Args:
            target: URI of a folder that is there; of the copy, where there is only one.
            local: To copy.
        """
        shell = [str(self._home / "bin" / "spark-class"), "org.apache.hadoop.fs.FsShell"]
        # Hadoop decodes what is percent-encoded in a local path, and in no other.
        command = [*shell, "-put", *(urllib.parse.quote(str(path)) for path in local), target]
        environment = {**self.environment(), "SPARK_HOME": str(self._home)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SILENT_SECONDS
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def read(self, path: str) -> bytes | None:
        """The bytes of a file on the HDFS; None if there is none."""
        name = urllib.parse.quote(path.removeprefix(self.uri))
        return self._get(f"{self._web}/webhdfs/v1{name}?op=OPEN&user.name={getpass.getuser()}")

    def list_names(self, path: str) -> list[str]:
        """The names in a folder on the HDFS; none if there is no such folder."""
        name = urllib.parse.quote(path.removeprefix(self.uri))
        found = self._get(f"{self._web}/webhdfs/v1{name}?op=LISTSTATUS&user.name={getpass.getuser()}")
        statuses = json.loads(found)["FileStatuses"]["FileStatus"] if found else []
        return sorted(status["pathSuffix"] for status in statuses)

    def applications(self) -> list[str]:
        """The ids of all applications that have had a container, the oldest first.

        Those of YARN's own web service cannot be asked for: its parts do not work within one process.
        """
        return sorted({folder.name for folder in self.folder.glob(f"{_LOGS}/application_*")})

    def attempts(self, application: str) -> list[int]:
        """The numbers of the attempts of an application that have had a container, from 1."""
        containers = self.folder.glob(f"{_LOGS}/{application}/container_*")
        return sorted({int(container.name.split("_")[-2]) for container in containers})

    def processes(self, application: str = "") -> list[int]:
        """The cluster's own process, and those of its containers and clients.

        Args:
            application: Only those in its containers.
        """
        container = (
            f"container_{application.removeprefix('application_')}" if application else str(self.folder)
        )
        return [pid for pid in _pids() if any(container.encode() in text for text in _traces(pid))]

    def application_master(self, application: str) -> int | None:
        """The process of an application's master in cluster mode, with the driver in it; None if it has none."""
        return next(self._javas(application, _APPLICATION_MASTER), None)

    def executors(self, application: str) -> list[int]:
        """The JVMs of an application's executors, each in a container of its own."""
        return sorted(self._javas(application, _EXECUTOR))

    def said(self, application: str) -> str:
        """What an application's containers have printed on stderr, the ends of it."""
        files = sorted(self.folder.glob(f"{_LOGS}/{application}/container_*/stderr"))
        return "\n".join(f"{file.parent.name}:\n{file.read_text(errors='replace')[-4000:]}" for file in files)

    def _javas(self, application: str, program: bytes) -> Iterator[int]:
        """The JVMs in an application's containers that run a program."""
        for pid in self.processes(application):
            java, *arguments = command_line(pid).split(b"\0")
            if java.endswith(b"java") and program in arguments:
                yield pid

    def _start(self) -> None:
        jars = fetch_jars()
        self._home = spark_home()
        for place in (self.settings, self.folder / "local", self.folder / "tmp"):
            place.mkdir(parents=True, mode=0o700)
        defaults = self.settings / "spark-defaults.conf"
        defaults.write_text(_SPARK_DEFAULTS.format(jars=self._home / "jars", java=QUICK_START))
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        java = str(Path(os.environ["JAVA_HOME"]) / "bin" / "java") if "JAVA_HOME" in os.environ else "java"
        options = [
            "--add-opens",
            "java.base/java.lang=ALL-UNNAMED",
            "-Djava.net.preferIPv4Stack=true",
            "-Xmx1g",
        ]
        options += [*QUICK_START.split(), "-cp", f"{jars}/*:{self._home / 'jars'}/*"]
        program = [str(_HERE / "MiniCluster.java"), str(self.settings)]
        environment = {**clean_environment(), "TMPDIR": str(self.folder / "tmp")}
        environment["LOG4J_CONFIGURATION_FILE"] = str(SCRIPT.parent / "conf" / "log4j2.properties")
        command = [java, *options, *program]
        log = self.folder / "hadoop.log"
        self._daemon = _Fed(command, environment, self.folder, log, stdin=subprocess.PIPE)

        def ready() -> re.Match[str] | None:
            assert self._daemon.is_running(), f"the cluster has ended: {self._daemon.said()[-2000:]}"
            return re.search(r"^READY (\S+) (\S+)$", self._daemon.said(), re.MULTILINE)

        wait_until(ready, "an HDFS and a YARN", self.folder)
        found = ready()
        assert found is not None
        self.uri, self._web = found.groups()

    def _get(self, url: str) -> bytes | None:
        try:
            with self._open(url, timeout=SILENT_SECONDS) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _end(self) -> None:
        if hasattr(self, "_daemon"):
            self._daemon.end()
        kill_all(self.processes)


class _Fed(Session):
    """A process whose stdin stays open until it is to end, or until the tests have ended, whatever way."""

    def end(self) -> None:
        """Close stdin, which ends the process, and kill what is still there after a while."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(POLITE_SECONDS)
        super().end()


def _pids() -> Iterator[int]:
    own = os.getpid()
    return (
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and entry.name != str(own)
    )


def _traces(pid: int) -> Iterator[bytes]:
    """Where a process shows to whom it belongs: environment, command line, working directory."""
    place = Path(f"/proc/{pid}")
    for name in ("environ", "cmdline"):
        with contextlib.suppress(OSError):
            yield (place / name).read_bytes()
    with contextlib.suppress(OSError):
        yield bytes(str((place / "cwd").readlink()), sys.getfilesystemencoding())
