"""spark-submit as a process: its stderr line by line, its signals, its exit code.

spark-submit prints both streams of a Python driver on stdout. By the path that `cli` is given in a variable the job
finds stderr again. What spark-submit itself says there passes through here: Java says that it uses a module that
Spark 4 always asks for, which nobody can do anything about; in a log of JSON each line becomes an object, also those
of Java, of TensorFlow and of Python's own warnings; and of a driver in a container YARN or Kubernetes tells here how it
has ended.
"""

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from seedlings_spark import cli

_NOISE = b"WARNING: Using incubator modules: jdk.incubator.vector"
_EXITED = re.compile(rb"User application exited with status (\d+)")
_APPLICATION = re.compile(rb"application_\d+_\d+")
# In whose container a driver can run.
YARN, KUBERNETES = "yarn", "k8s"
# How Spark's client for Kubernetes describes the driver's pod; of the containers in it this one is the driver's.
_OF_POD = re.compile(rb"(pod name|namespace|phase|container name|exit code): ([\w.-]+)")
_NOT_AWAITED = b"Deployed Spark application"
_DRIVER = "spark-kubernetes-driver"
# A Ctrl-C is for the job, not for what passes its last words on.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Python ignores them; a program that it becomes must not.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)


class Relay:
    """Passes lines on.

    Args:
        target: An open file to write them to.
        as_json: Whether each of them has to be an object of a log of JSON.

    Attributes:
        exit_code: Exit code of the driver, as YARN or Kubernetes has told it last; None if neither has.
        application: YARN's id of the application; "" if none was told.
        pod: What Kubernetes has told last of the driver's pod, by name.
        is_awaited: Whether spark-submit stays until the driver has ended.
    """

    def __init__(self, target: int, *, as_json: bool) -> None:
        self.target, self.as_json = target, as_json
        self.exit_code: int | None = None
        self.application = ""
        self.pod: dict[str, str] = {}
        self.is_awaited = True

    def outcome(self, code: int, cluster: str) -> tuple[int, str]:
        """How a job in a container has ended: its exit code, and a command that shows its own words.

        Args:
            code: spark-submit's, which on YARN is 0 or 1, and on Kubernetes 0 whatever has become of the pod.
            cluster: `YARN` or `KUBERNETES`.
        """
        if cluster == YARN:
            told = self.exit_code if code == 1 and self.exit_code is not None else code
            return told, f"yarn logs -applicationId {self.application}" if self.application else ""
        if code == 0 and self.is_awaited and self.pod.get("phase") != "Succeeded":
            code = self.exit_code or 1
        space, name = self.pod.get("namespace", "default"), self.pod.get("pod name", "")
        return code, f"kubectl logs --namespace {space} {name}" if name else ""

    def pass_on(self, source: int) -> None:
        """Do so until nobody writes to the source any more, or nobody reads."""
        with contextlib.suppress(OSError), open(source, "rb") as lines:
            for line in lines:
                if line.rstrip(b"\n") != _NOISE:
                    self._heed(line)
                    self._write(line)

    def _heed(self, line: bytes) -> None:
        if exited := _EXITED.findall(line):
            self.exit_code = int(exited[-1])
        for name, value in _OF_POD.findall(line):
            self.pod[name.decode()] = value.decode()
            is_new = self.exit_code is None or self.pod.get("container name") == _DRIVER
            if name == b"exit code" and value.isdigit() and is_new:
                self.exit_code = int(value)
        self.is_awaited = self.is_awaited and _NOT_AWAITED not in line
        if applications := _APPLICATION.findall(line):
            self.application = applications[-1].decode()

    def _write(self, line: bytes) -> None:
        if self.as_json:
            line = f"{cli.as_json_line(line)}\n".encode() if line.strip() else b""
        while line:
            line = line[os.write(self.target, line) :]


def become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Go on as another program, in the place of this process."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(command[0], list(command), dict(environment))


def become_submit(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Go on as spark-submit, with a process beside it that passes its stderr on."""
    if sys.stderr is None:
        become(command, environment)
    original = os.dup(2)
    os.set_inheritable(original, True)
    source, sink = os.pipe()
    if os.fork() == 0:
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            os.close(sink)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os.dup2(0, 2)
            Relay(original, as_json=False).pass_on(source)
        finally:
            os._exit(0)
    os.dup2(sink, 2)
    os.close(sink)
    os.close(source)
    become(command, {**environment, **_stderr_of_job(original)})


def must_stay(*, log: str) -> bool:
    """Whether what a job itself writes to stderr has to pass through a pipe.

    A file that is opened a second time would be written from its beginning, and of a log of JSON each line is one.
    """
    return log == cli.JSON_LINES or (sys.stderr is not None and stat.S_ISREG(os.fstat(2).st_mode))


def attend(command: Sequence[str], environment: Mapping[str, str], *, log: str, cluster: str) -> int:
    """Call spark-submit and stay with it until it has ended, and all that it has said is passed on.

    Args:
        command: What to call.
        environment: Its variables.
        log: The style of the log.
        cluster: In whose container the driver runs, `YARN` or `KUBERNETES`; "" if it runs here.

    Returns:
        The exit code; of a driver in a container its own, of which spark-submit knows little.
    """
    if sys.stderr is None:
        return _run(command, environment, None)
    relay = Relay(2, as_json=log == cli.JSON_LINES)
    source, sink = os.pipe()
    passing = threading.Thread(target=relay.pass_on, args=(source,))
    passing.start()
    job = {} if cluster else _stderr_of_job(sink if must_stay(log=log) else 2)
    try:
        code = _run(command, {**environment, **job}, sink)
    finally:
        os.close(sink)
        passing.join()
    if cluster:
        of_submit = code
        code, words = relay.outcome(code, cluster)
        if code and of_submit in (0, 1):  # else it was a signal
            more = f"; its own words: {words}" if words else ""
            cli.last_line(f"the job ended with exit code {code}{more}", code)
    return code


def _run(command: Sequence[str], environment: Mapping[str, str], stderr: int | None) -> int:
    """Call a program in a process group of its own; a signal for this process is one for that group."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)

    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background, or under nohup
            signal.signal(number, forward)
    child = subprocess.Popen(command, env=environment, stderr=stderr, process_group=0)
    for each in early:
        forward(each, None)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _stderr_of_job(number: int) -> dict[str, str]:
    """The variable by which a job finds an open file of this process; none where only Linux knows such paths."""
    path = Path(f"/proc/{os.getpid()}/fd/{number}")
    return {cli.STDERR: str(path)} if path.exists() else {}
