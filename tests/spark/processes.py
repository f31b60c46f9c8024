"""Finds and kills the training workers of this process, for tests that need a worker to die."""

import os
import signal
from pathlib import Path

from tests.sockets import ESTABLISHED, LISTENING, command_line, sockets


def listening_ports() -> set[int]:
    """The ports on which this process listens."""
    return {each.port for each in sockets([os.getpid()]) if each.state == LISTENING}


def training_workers() -> list[int]:
    """Other processes of this machine that are connected to a server of this one: those that train now."""
    ports = listening_ports()
    processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    workers = (pid for pid in processes if b"pyspark.daemon" in command_line(pid))
    return sorted(
        pid
        for pid in workers
        if any(each.state == ESTABLISHED and each.remote_port in ports for each in sockets([pid]))
    )


def kill_one_worker() -> None:
    """SIGKILL one worker, if one is there: while the stage starts again, none is."""
    for victim in training_workers()[:1]:
        os.kill(victim, signal.SIGKILL)
