"""Runs the training engine with workers that are threads of this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from seedlings_spark.cluster import runtime
from seedlings_spark.training import network as carried
from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training import worker
from seedlings_spark.training.engine import Engine, RunOptions
from seedlings_spark.training.launcher import ThreadLauncher
from seedlings_spark.training.master import Master, build_metrics, made_metrics, metric_recipes
from seedlings_spark.training.record import TrainingRecord


@dataclass(frozen=True)
class Rows:
    """The rows of one shard: features, labels, sample weights, which are held out, and levels of a curriculum."""

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    held_out: np.ndarray | None = None
    levels: np.ndarray | None = None

    def batches(self, shard: int) -> Iterator[pa.RecordBatch]:
        count = len(self.labels)
        flat = self.features.reshape(count, int(np.prod(self.features.shape[1:])))
        offsets = np.arange(count + 1, dtype=np.int32) * flat.shape[1] if count else np.zeros(1, np.int32)
        yield pa.RecordBatch.from_pydict(
            {
                worker.SHARD: np.full(count, shard, np.int32),
                worker.FEATURES: pa.ListArray.from_arrays(offsets, flat.astype(np.float64).ravel()),
                worker.LABEL: self.labels.astype(np.float64),
                worker.WEIGHT: np.ones(count) if self.weights is None else self.weights,
                worker.HELD_OUT: np.zeros(count, bool) if self.held_out is None else self.held_out,
                **({} if self.levels is None else {worker.LEVEL: self.levels}),
            }
        )


@dataclass
class Outcome:
    """What a run leaves behind."""

    master: Master
    network: Any
    record: TrainingRecord

    @property
    def history(self) -> Any:
        return self.record.history


def launcher(rows: Sequence[Rows], retries: int = 0) -> ThreadLauncher:
    return ThreadLauncher([partial(one.batches, shard) for shard, one in enumerate(rows)], retries=retries)


def train(
    network: Any, rows: Sequence[Rows], *, optimizer: Any, epochs: int = 3, launch: Any = None, **given: Any
) -> Outcome:
    """Train a copy of the network on these shards; `given` are fields of `RunOptions`, `Recipe` and `Engine`."""
    with runtime.float_type_of(network):
        engine = made(network, rows, optimizer=optimizer, epochs=epochs, launch=launch, **given)
        record = engine.run()
    return Outcome(engine.master, engine.network, record)


def made(
    network: Any, rows: Sequence[Rows], *, optimizer: Any, epochs: int = 3, launch: Any = None, **given: Any
) -> Engine:
    """The engine of `train`."""
    of_engine = {name: given.pop(name) for name in ("callbacks", "progress", "identity") if name in given}
    of_options = {field.name: given.pop(field.name) for field in fields(RunOptions) if field.name in given}
    options = RunOptions(
        **{
            "mode": "synchronous",
            "frequency": "batch",
            "num_epochs": epochs,
            "num_workers": len(rows),
            **of_options,
        }
    )
    content = carried.to_bytes(network)
    trained = carried.from_bytes(content, given.get("custom_objects"))
    labels = given.get("labels", "index")
    loss, metrics = (
        given.pop("loss", "sparse_categorical_crossentropy"),
        metric_recipes(given.pop("metrics", [])),
    )
    trained.compile(loss=loss, optimizer=optimizer, metrics=made_metrics(metrics))
    recipe = worker.Recipe(
        **{
            "num_shards": len(rows),
            "network": content,
            "loss": loss,
            "metrics": metrics,
            "optimizer": optimizers.to_config(trained.optimizer),
            "labels": labels,
            "num_classes": int(network.output_shape[-1]) if labels != "number" else 0,
            "row_shape": tuple(network.input_shape[1:]),
            "row_dtype": network.inputs[0].dtype,
            "augmentation": None,
            "batch_size": 4,
            "seed": 0,
            "threads": 1,
            "budget_bytes": 10**8,
            **given,
        }
    )
    build_metrics(trained, recipe.example_labels(trained.outputs[0].dtype))
    return Engine(options, recipe, trained, launch or launcher(rows), **of_engine)
