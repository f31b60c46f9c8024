"""Finds and kills the training workers of this process, for tests that need a worker to die."""

import os
import signal
from pathlib import Path

_ESTABLISHED, _LISTENING = "01", "0A"


def listening_ports() -> set[str]:
    """The ports on which this process listens."""
    own = _inodes(os.getpid())
    return {_port(one[1]) for one in _sockets() if one[3] == _LISTENING and one[9] in own}


def training_workers() -> list[int]:
    """Other processes of this machine that are connected to a server of this one: those that train now."""
    sockets, own, ports = _sockets(), _inodes(os.getpid()), listening_ports()
    clients = {one[9] for one in sockets if one[3] == _ESTABLISHED and _port(one[2]) in ports} - own
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return sorted(pid for pid in processes if _is_python_worker(pid) and _inodes(pid) & clients)


def kill_one_worker() -> None:
    """SIGKILL one worker, if one is there: while the stage starts again, none is."""
    for victim in training_workers()[:1]:
        os.kill(victim, signal.SIGKILL)


def _sockets() -> list[list[str]]:
    return [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]


def _port(address: str) -> str:
    return address.rsplit(":", 1)[1]


def _inodes(pid: int) -> set[str]:
    """The inodes of a process' sockets; none if it has ended."""
    found = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass
    return found


def _is_python_worker(pid: int) -> bool:
    try:
        return b"pyspark.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
