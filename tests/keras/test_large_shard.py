"""A shard that is larger than the worker's memory budget."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HANG_SECONDS, with_all

MB = 1024 * 1024
BUDGET = 100 * MB
# Images of 64x64 in three channels.
ROW_BYTES = 64 * 64 * 3
ROOT = Path(__file__).parents[2]


def _worker(num_bytes: int, budget_bytes: int) -> dict[str, Any]:
    """Train an epoch in a process of its own on drawn images of so many bytes; its peak memory and its sums."""
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("large_shard.py")), str(num_bytes), str(budget_bytes)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


@with_all
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_a_shard_of_one_gigabyte_trains_within_a_budget_of_a_hundred_megabytes() -> None:
    small = _worker(2 * MB, BUDGET)  # the network's own memory, Python and TensorFlow
    large = _worker(1024 * MB, BUDGET)
    assert large["images"] == 1024 * MB // ROW_BYTES and large["spooled"]
    assert large["peak_bytes"] - small["peak_bytes"] <= BUDGET


def test_the_budget_does_not_change_what_is_trained() -> None:
    spooled, held = _worker(40 * MB, 16 * MB), _worker(40 * MB, 400 * MB)
    assert spooled["spooled"] and not held["spooled"]
    assert spooled["weights"] == held["weights"]
