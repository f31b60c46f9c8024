"""A process with one worker and its master: `large_shard.py BYTES BUDGET`, run by `test_large_shard.py`."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from seedlings_spark.cluster import runtime

runtime.start(1)

import keras  # noqa: E402 - after TensorFlow has been held to its threads

from seedlings_spark.training import shard, worker  # noqa: E402
from seedlings_spark.training.engine import Engine, RunOptions  # noqa: E402
from seedlings_spark.training.launcher import ThreadLauncher  # noqa: E402
from seedlings_spark.training.master import build_metrics  # noqa: E402
from seedlings_spark.training.network import to_bytes  # noqa: E402

SHAPE = (64, 64, 3)
ROW_BYTES = 64 * 64 * 3
BATCH_ROWS = 1024  # about what Spark sends at once


def batches(num_rows: int) -> Iterator[pa.RecordBatch]:
    generator = np.random.default_rng(7)
    for start in range(0, num_rows, BATCH_ROWS):
        count = min(BATCH_ROWS, num_rows - start)
        pixels = generator.integers(0, 256, (count, ROW_BYTES), np.uint8)
        offsets = pa.py_buffer(np.arange(count + 1, dtype=np.int32) * ROW_BYTES)
        yield pa.RecordBatch.from_pydict(
            {
                worker.SHARD: np.zeros(count, np.int32),
                worker.FEATURES: pa.Array.from_buffers(
                    pa.binary(), count, [None, offsets, pa.py_buffer(pixels)]
                ),
                worker.LABEL: (pixels[:, 0] // 64).astype(np.float64),
                worker.WEIGHT: np.ones(count),
                worker.HELD_OUT: np.zeros(count, bool),
            }
        )


def peak_bytes() -> int:
    """The most physical memory that this process has had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


def main(num_bytes: int, budget_bytes: int) -> None:
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.AveragePooling2D(16),
            keras.layers.Flatten(),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    network.compile("sgd", "sparse_categorical_crossentropy")
    network.optimizer.learning_rate = 1e-5
    build_metrics(network, np.zeros(2, np.int64))
    recipe = worker.Recipe(
        num_shards=1,
        network=to_bytes(network),
        loss="sparse_categorical_crossentropy",
        metrics=[],
        optimizer=keras.optimizers.serialize(network.optimizer),
        labels="index",
        num_classes=4,
        row_shape=SHAPE,
        row_dtype="uint8",
        augmentation=None,
        batch_size=32,
        seed=0,
        threads=1,
        budget_bytes=budget_bytes,
    )
    spooled: list[bool] = []
    spool = shard.Shard._spool

    def seen_spool(self: shard.Shard) -> None:
        spooled.append(True)
        spool(self)

    shard.Shard._spool = seen_spool  # type: ignore[method-assign]
    options = RunOptions("synchronous", "batch", num_epochs=1)
    launcher = ThreadLauncher([lambda: batches(num_bytes // ROW_BYTES)])
    engine = Engine(options, recipe, network, launcher)
    record = engine.run()
    print(
        json.dumps(
            {
                "images": record.workers[0]["images"],
                "spooled": bool(spooled),
                "peak_bytes": peak_bytes(),
                "weights": hashlib.sha256(engine.master.weights().tobytes()).hexdigest(),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
