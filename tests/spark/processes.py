"""Finds and kills the Python workers of this machine's Spark, for tests that need a worker to die."""

import os
import signal
from pathlib import Path


def python_workers(of: int | None = None) -> list[int]:
    """Processes that Spark's Python daemon has forked below the process `of` (this one), TensorFlow loaded."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    return sorted(
        pid for pid in parents if _descends(pid, of or os.getpid(), parents) and _is_worker(pid, parents)
    )


def kill_one_worker(of: int | None = None) -> int:
    """SIGKILL one worker; its process id."""
    victim = python_workers(of)[0]
    os.kill(victim, signal.SIGKILL)
    return victim


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor


def _is_worker(pid: int, parents: dict[int, int]) -> bool:
    try:
        daemon = Path(f"/proc/{parents[pid]}/cmdline").read_bytes()
        return b"pyspark.daemon" in daemon and "tensorflow" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
