"""Runs the training engine without Spark: workers are threads that talk to a real parameter server."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import pyarrow as pa

from seedlings_spark.cluster import runtime
from seedlings_spark.training import network as carried
from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training import synchronous, worker
from seedlings_spark.training.coordination import Stages
from seedlings_spark.training.master import Master, build_metrics
from seedlings_spark.training.progress import Silent
from seedlings_spark.training.server import ParameterServer
from seedlings_spark.training.wire import Credentials


@dataclass(frozen=True)
class Rows:
    """The rows of one worker: features, labels, sample weights, and which are held out."""

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    held_out: np.ndarray | None = None

    def batches(self, rank: int) -> Iterator[pa.RecordBatch]:
        count = len(self.labels)
        flat = self.features.reshape(count, int(np.prod(self.features.shape[1:])))
        offsets = np.arange(count + 1, dtype=np.int32) * flat.shape[1] if count else np.zeros(1, np.int32)
        yield pa.RecordBatch.from_pydict(
            {
                worker.RANK: np.full(count, rank, np.int32),
                worker.FEATURES: pa.ListArray.from_arrays(offsets, flat.astype(np.float64).ravel()),
                worker.LABEL: self.labels.astype(np.float64),
                worker.WEIGHT: np.ones(count) if self.weights is None else self.weights,
                worker.HELD_OUT: np.zeros(count, bool) if self.held_out is None else self.held_out,
            }
        )


@dataclass
class Outcome:
    """What a run leaves behind."""

    master: Master
    history: dict[str, list[float]]
    summaries: list[dict[str, float]]


def train(
    network: Any,
    rows: Sequence[Rows],
    *,
    optimizer: Any,
    loss: Any = "sparse_categorical_crossentropy",
    metrics: Sequence[Any] = (),
    labels: str = "index",
    frequency: str | int = "batch",
    epochs: int = 3,
    batch_size: int = 4,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
    class_weight: dict[str, float] | None = None,
    custom_objects: dict[str, Any] | None = None,
) -> Outcome:
    """Train a copy of the network on these workers."""
    with runtime.float_type_of(network):
        return _train(**locals())


def _train(
    network: Any,
    rows: Sequence[Rows],
    optimizer: Any,
    loss: Any,
    metrics: Sequence[Any],
    labels: str,
    frequency: str | int,
    epochs: int,
    batch_size: int,
    seed: int,
    callbacks: Sequence[Any],
    class_weight: dict[str, float] | None,
    custom_objects: dict[str, Any] | None,
) -> Outcome:
    content = carried.to_bytes(network)
    master_network = carried.from_bytes(content, custom_objects)
    master_network.compile(loss=loss, optimizer=optimizer, metrics=list(metrics))
    num_classes = int(network.output_shape[-1])
    examples = {
        "index": np.zeros(2, np.int64),
        "one_hot": np.eye(num_classes, dtype=np.float32)[[0, 0]],
        "number": np.zeros((2, 1)),
    }
    build_metrics(master_network, examples[labels])
    master = Master(master_network)
    task = worker.TrainTask(
        run="run",
        generation=0,
        address=("", 0),
        credentials=Credentials.make(),
        num_workers=len(rows),
        network=content,
        loss=loss,
        metrics=list(metrics),
        optimizer=optimizers.to_config(master_network.optimizer),
        labels=labels,
        num_classes=num_classes if labels != "number" else 0,
        row_shape=tuple(network.input_shape[1:]),
        row_dtype=network.inputs[0].dtype,
        augmentation=None,
        batch_size=batch_size,
        seed=seed,
        threads=1,
        budget_bytes=10**8,
        custom_objects=custom_objects or {},
    )
    summaries: list[dict[str, float]] = []
    callback_list = keras.callbacks.CallbackList(list(callbacks), add_history=True, model=master_network)

    def start(generation: int) -> Any:
        import tensorflow as tf

        current = replace(task, generation=generation, address=("127.0.0.1", server.port))
        threads = []

        def one(rank: int) -> None:
            try:
                summaries.append(worker.work(current, rank, rank, rows[rank].batches(rank), tf))
            except Exception as error:
                stages.stage_ended(generation, error)

        for rank in range(len(rows)):
            threads.append(threading.Thread(target=one, args=(rank,), daemon=True))
            threads[-1].start()
        started.extend(threads)
        return lambda: None

    started: list[threading.Thread] = []
    stages = Stages(task.run, len(rows), start, 3)
    local = frequency != "batch"
    rendezvous = synchronous.Rendezvous(stages, master.state_layout if local else master.model_layout)
    with ParameterServer(rendezvous, "127.0.0.1", task.credentials) as server:
        try:
            workers = stages.gather()
            counts = [int(one["rows"]) for one in workers]
            rendezvous.begin(
                {
                    "steps": synchronous.steps_of_epoch(counts, batch_size),
                    "vector": "state" if local else "gradient",
                    "precision": "float32",
                    "class_weight": class_weight or {},
                }
            )
            callback_list.on_train_begin()
            synchronous.train(
                master,
                rendezvous,
                stages,
                rows=counts,
                held_out_rows=sum(int(one["held_out_rows"]) for one in workers),
                batch_size=batch_size,
                frequency=frequency,
                first_epoch=0,
                num_epochs=epochs,
                callbacks=callback_list,
                progress=Silent(),
                checkpoint=lambda epoch: None,
            )
        finally:
            rendezvous.stop()
            for thread in started:
                thread.join(30)
    history = next(c.history for c in callback_list.callbacks if isinstance(c, keras.callbacks.History))
    return Outcome(master, history, sorted(summaries, key=lambda one: one["rank"]))
