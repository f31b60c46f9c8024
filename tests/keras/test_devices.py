"""Which devices TensorFlow may use in a task: those that Spark assigned to it, and no others."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.resource import ResourceInformation

from seedlings_spark.cluster import runtime
from tests.conftest import HANG_SECONDS, with_all

ROOT = Path(__file__).parents[2]
STARTED = """
import json, os, sys
from seedlings_spark.cluster import runtime
tf = runtime.start(1, tuple(sys.argv[1:]))
found = tf.config.list_physical_devices("GPU")
growth = [tf.config.experimental.get_memory_growth(device) for device in found]
total = float(tf.reduce_sum(tf.ones([10])))
print(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], len(found), all(growth), total]))
"""


def _started(*gpus: str) -> list[Any]:
    process = subprocess.run(
        [sys.executable, "-c", STARTED, *gpus],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=HANG_SECONDS,
        check=True,
    )
    found: list[Any] = json.loads(process.stdout.splitlines()[-1])
    return found


def test_a_task_without_a_gpu_of_its_own_sees_none() -> None:
    assert _started() == ["-1", 0, True, 10.0]


@pytest.mark.parametrize("gpus", [pytest.param(("0",), marks=with_all), ("1", "3")])
def test_a_task_sees_the_gpus_that_spark_assigned_to_it_with_memory_growth(gpus: tuple[str, ...]) -> None:
    """Where the machine has none, the processor does the work."""
    visible, count, growing, total = _started(*gpus)
    assert visible == ",".join(gpus)
    assert count <= len(gpus) and growing
    assert total == 10.0


def test_a_task_imports_nothing_for_people_to_look_at_and_may_do_so_later() -> None:
    program = """
from seedlings_spark.cluster import runtime
import sys
runtime.start(1)
print("matplotlib" in sys.modules, "sklearn" in sys.modules)
import matplotlib, sklearn
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **runtime.worker_environment(1)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert ran.stdout.split() == ["False", "False"]


def test_the_gpus_of_a_task_are_those_among_its_resources() -> None:
    gpu = ResourceInformation("gpu", ["2", "5"])
    fpga = ResourceInformation("fpga", ["f1"])
    assert runtime.gpu_addresses({"gpu": gpu, "fpga": fpga}) == ("2", "5")
    assert runtime.gpu_addresses({"fpga": fpga}) == runtime.gpu_addresses({}) == ()
