"""A process with one worker and its master: `large_shard.py BYTES BUDGET`, run by `test_large_shard.py`."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from seedlings_spark.cluster import runtime

tf = runtime.start(1)

import keras  # noqa: E402 - after TensorFlow has been held to its threads

from seedlings_spark.training import shard, synchronous, worker  # noqa: E402
from seedlings_spark.training.coordination import Stages  # noqa: E402
from seedlings_spark.training.master import Master, build_metrics  # noqa: E402
from seedlings_spark.training.network import to_bytes  # noqa: E402
from seedlings_spark.training.progress import Silent  # noqa: E402
from seedlings_spark.training.server import ParameterServer  # noqa: E402
from seedlings_spark.training.wire import Credentials  # noqa: E402

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
                worker.RANK: np.zeros(count, np.int32),
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
    master = Master(network)
    task = worker.TrainTask(
        run="run",
        generation=0,
        address=("", 0),
        credentials=Credentials.make(),
        num_workers=1,
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
    summaries: list[dict[str, float]] = []
    threads: list[threading.Thread] = []

    def start(generation: int) -> object:
        import dataclasses

        current = dataclasses.replace(task, address=("127.0.0.1", server.port), generation=generation)

        def one() -> None:
            summaries.append(worker.work(current, 0, 0, batches(num_bytes // ROW_BYTES), tf))

        threads.append(threading.Thread(target=one, daemon=True))
        threads[-1].start()
        return lambda: None

    stages = Stages("run", 1, start, 0)  # type: ignore[arg-type]
    rendezvous = synchronous.Rendezvous(stages, master.model_layout)
    with ParameterServer(rendezvous, "127.0.0.1", task.credentials) as server:
        rows = [int(one["rows"]) for one in stages.gather()]
        rendezvous.begin(
            {
                "steps": synchronous.steps_of_epoch(rows, 32),
                "vector": "gradient",
                "precision": "float32",
                "class_weight": {},
            }
        )
        callbacks = keras.callbacks.CallbackList([], add_history=True, model=network)
        callbacks.on_train_begin()
        synchronous.train(
            master,
            rendezvous,
            stages,
            rows=rows,
            held_out_rows=0,
            batch_size=32,
            frequency="batch",
            first_epoch=0,
            num_epochs=1,
            callbacks=callbacks,
            progress=Silent(),
            checkpoint=lambda epoch: None,
        )
        rendezvous.stop()
        threads[0].join(60)
    print(
        json.dumps(
            {
                "images": summaries[0]["images"],
                "spooled": bool(spooled),
                "peak_bytes": peak_bytes(),
                "weights": hashlib.sha256(master.weights().tobytes()).hexdigest(),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
