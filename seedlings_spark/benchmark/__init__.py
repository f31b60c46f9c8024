"""Measures this machine or cluster, beside what else there is for the same work.

All contestants of a benchmark get the same images and the same network and take turns in rounds: A B C, A B C, ...
So what slows the machine down for a while meets them alike, and a ratio is taken within each round. Where a job of
its own would start fresh Python processes, a contestant does so too; what needs TensorFlow's threads for itself
runs in a process of its own beside the driver, since they cannot change once TensorFlow has started.

This module knows what the benchmarks share. TensorFlow is imported by functions only: Spark's Python processes
import these modules to draw images.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from seedlings_spark import display, files, reproducibility
from seedlings_spark.cluster import session
from seedlings_spark.errors import ClusterError

NUM_CLASSES = 12
# Mean and std of the drawn images: half of them noise of 0 to 127, half the brightness of their class.
MEAN, STD = 118.5, 50.6
# Spark keeps Python processes of different environments apart, so another value means fresh ones.
_FRESH = "SEEDLINGS_BENCHMARK_FIT"
# What may hold a process of TensorFlow's back from using all cores.
_THREAD_VARIABLES = {"OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"}
# What a process beside the driver says to it begins with this; libraries may print what they like.
_SAID = "benchmark: "


# What is measured.


def draw(index: int, image_size: int) -> tuple[NDArray[np.uint8], int]:
    """An image and its class: noise, the brighter the higher the class. A pure function of its arguments."""
    label = index % NUM_CLASSES
    shape = (image_size, image_size, 3)
    noise = np.random.default_rng(index).integers(0, 128, shape, np.uint8)
    return noise + np.uint8(10 * label), label


def network(name: str, image_size: int) -> Any:
    """A network of `networks.BY_NAME` over raw pixels, as ours becomes it."""
    from seedlings_spark.models import networks

    built = networks.build(name, (image_size, image_size), NUM_CLASSES)
    return networks.fold_standardization(built, np.full(3, MEAN), np.full(3, STD))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of one or more values."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def prose(text: str) -> str:
    """Lines of text as a terminal shows them whole."""
    return "\n".join(line for each in text.split("\n") for line in display.wrapped(each, display.COLUMNS))


def speeds(contestants: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    """The rows of a table of speeds, its head first.

    Args:
        contestants: Their numbers, by name.
        names: Two speeds, by their keys in the numbers.
    """
    rows = [["images/s", "", *[cell for name in names.values() for cell in (name, "", "")]]]
    rows.append(["", "precision", *["median", "min", "max"] * len(names)])
    for contestant, numbers in contestants.items():
        row = [contestant, ", ".join(numbers["precisions"])]
        for speed in names:
            values = numbers[speed].values() if speed in numbers else ()
            row += [f"{value:,.0f}" for value in values] or ["-"] * 3
        rows.append(row)
    return rows


def where(spark: SparkSession) -> dict[str, Any]:
    """The machine or cluster, for the setting of a benchmark."""
    return {
        "master": str(spark.sparkContext.master),
        "task_cpus": session.task_cpus(spark),
        "driver_cores": cores(),
        "driver": reproducibility.environment(cores()),
    }


def cores() -> int:
    """Those that this process may use, which TensorFlow goes by."""
    with contextlib.suppress(AttributeError):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Where it is measured.


def fresh() -> dict[str, str]:
    """Environment variables that no Python process of Spark's has yet."""
    return {_FRESH: uuid.uuid4().hex}


def hidden_gpus(spark: SparkSession) -> dict[str, str]:
    """As ours, the others see a GPU only where Spark assigns one."""
    assigned = float(spark.conf.get("spark.task.resource.gpu.amount", "0") or "0")
    return {} if assigned else {"CUDA_VISIBLE_DEVICES": "-1"}


@contextlib.contextmanager
def scratch(folder: str) -> Iterator[str]:
    """A new folder inside of this one, for what is made to be measured; removed afterwards."""
    path = files.join(folder, f"drawn-{uuid.uuid4().hex[:12]}")
    made = not files.exists(folder)
    try:
        yield path
    finally:
        files.delete(path)
        if made and files.exists(folder) and not files.list_names(folder):
            files.delete(folder)


def write_json(target: str, found: Mapping[str, Any]) -> None:
    """Write all numbers to a file; "" for none."""
    if target:
        files.write_text(files.qualify(target), json.dumps(found, indent=2) + "\n")


class Beside:
    """A process beside the driver, with TensorFlow for itself; a context manager.

    It is `python -m MODULE`, gets one request and says one or more things, which are JSON.

    Args:
        spark: The session.
        module: With a `main` for it: see `serve`.
        request: What it is told.
        text: What it is, for an error.
        prefix: A command that starts others, and starts it.
    """

    def __init__(
        self,
        spark: SparkSession,
        module: str,
        request: Mapping[str, Any],
        text: str,
        prefix: Sequence[str] = (),
    ) -> None:
        self._module, self._text, self._prefix = module, text, prefix
        self._request = json.dumps(request)
        self._environment = {
            name: value for name, value in os.environ.items() if name not in _THREAD_VARIABLES
        }
        self._environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **hidden_gpus(spark)}

    def __enter__(self) -> "Beside":
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [*self._prefix, sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=self._environment,
        )
        self.say(self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        self._process.communicate()
        self._stderr.close()

    def kill(self) -> None:
        """End it at once; whoever waits in `hear` is told that it has ended."""
        self._process.kill()

    def say(self, line: str = "") -> None:
        """Tell the process a line."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `hear` tells why it has gone
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def hear(self) -> Any:
        """What the process says next.

        Raises:
            ClusterError: It has ended instead.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_SAID):
                return json.loads(line.removeprefix(_SAID))
        code = self._process.wait()
        self._stderr.seek(0)
        last = next(
            (line for line in reversed(self._stderr.read().splitlines()) if line.strip()), "no message"
        )
        raise ClusterError(
            f"{self._text} ended with code {code} ({last.strip()[:300]})",
            "a process that does its work",
            "Leave it out (--contestants, --scorers), or give the driver's machine more memory",
        )


def heard() -> str:
    """In a process of `Beside`: the next line from the driver."""
    return sys.stdin.readline()


def said(what: object) -> None:
    """In a process of `Beside`: say this to the driver."""
    print(_SAID + json.dumps(what), flush=True)
