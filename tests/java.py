"""Options for the JVMs that tests start, dozens of them, and what tests fetch once on a machine."""

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from seedlings_spark.cli import classes

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seedlings_spark"
# Most JVMs here live for seconds, in which compiling thoroughly does not pay; that of a session for many tests would
# else fill the 48 MB for its code, and interpret from then on.
QUICK_START = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"


def options() -> str:
    """For a JVM with Spark's own class path; it says nothing of an archive that it cannot use."""
    return f"{QUICK_START} -XX:SharedArchiveFile={classes.path(os.environ)} -Xlog:disable"


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
