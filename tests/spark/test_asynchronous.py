"""Asynchronous training on a real Spark: really asynchronous, every update exactly once."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from seedlings_spark.errors import OptionError, TrainingError
from seedlings_spark.estimator import SeedlingsEstimator
from seedlings_spark.training.progress import Silent
from tests.conftest import with_all
from tests.spark.processes import kill_one_worker

NETWORK = keras.Sequential(
    [
        keras.Input((8,)),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.Dense(2, activation="softmax"),
    ]
)
ADAM = {"class_name": "Adam", "config": {"learning_rate": 0.01}}
NESTEROV = {"class_name": "SGD", "config": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True}}


@pytest.fixture(scope="module")
def table(spark: SparkSession) -> DataFrame:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 8))
    labels = (values[:, 0] + values[:, 1] > 0).astype(float)
    rows = [(Vectors.dense(x), float(label)) for x, label in zip(values, labels, strict=True)]
    return spark.createDataFrame(rows, ["features", "label"]).cache()


def _estimator(**params: Any) -> SeedlingsEstimator:
    return SeedlingsEstimator(
        **{
            "keras_model_config": NETWORK.to_json(),
            "loss": "sparse_categorical_crossentropy",
            "optimizer_config": ADAM,
            "mode": "asynchronous",
            "frequency": "batch",
            "num_workers": 2,
            "epochs": 4,
            "batch_size": 8,
            "validation_split": 0.2,
            **params,
        }
    )


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"rule": "upstream"}, "rule='upstream'"),
        ({"rule": "downpour", "mode": "synchronous"}, "rule='downpour' with mode='synchronous'"),
        ({"rule": "eamsgd"}, "rule='eamsgd' with the optimizer adam"),
        ({"elasticity": 1.5}, r"elasticity=1\.5"),
    ],
)
def test_an_invalid_combination_is_refused_by_name(
    table: DataFrame, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        _estimator(**params).fit(table)


@pytest.mark.parametrize(
    "params",
    [
        {"frequency": "batch"},
        {"frequency": 3},
        {"frequency": "epoch"},
        pytest.param({"frequency": "batch", "mode": "hogwild"}, marks=with_all),
        {"frequency": 3, "mode": "hogwild"},
        pytest.param({"frequency": 3, "rule": "downpour"}, marks=with_all),
        {
            "frequency": 3,
            "rule": "adag",
            "optimizer_config": {"class_name": "Adam", "config": {"learning_rate": 0.03}},
        },
        pytest.param({"frequency": 3, "rule": "aeasgd"}, marks=with_all),
        {"frequency": "batch", "rule": "eamsgd", "optimizer_config": NESTEROV},
    ],
    ids=str,
)
def test_every_mode_and_rule_learns_and_applies_each_update_once(
    table: DataFrame, params: dict[str, Any]
) -> None:
    model = _estimator(epochs=6, **params).fit(table)
    record = model.record
    frequency = params["frequency"]
    length = {"batch": 1, "epoch": 10**6}.get(str(frequency), frequency)
    per_epoch = [math.ceil(math.ceil(rows / 8) / length) for rows in record["rows"]]
    assert record["updates_of_rank"] == {str(rank): 6 * count for rank, count in enumerate(per_epoch)}
    assert sum(record["staleness"]["histogram"].values()) == record["updates"] == 6 * sum(per_epoch)
    assert all(len(values) == 6 for values in model.history.values())
    assert sorted(model.history) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert model.history["val_accuracy"][-1] > 0.8
    assert all(np.isfinite(weight).all() for weight in model.weights)
    moving_variance = model.get_model().layers[1].moving_variance.numpy()
    assert (moving_variance > 0).all() and not np.allclose(moving_variance, 1)


def test_updates_of_the_workers_are_interleaved_and_their_staleness_counted(table: DataFrame) -> None:
    record = _estimator(epochs=12, batch_size=4).fit(table).record
    assert record["rank_switches"] >= 3
    assert record["staleness"]["max"] >= 1
    assert 0 < record["staleness"]["mean"] <= record["staleness"]["max"]


class KillWorkers(Silent):
    """Kills a worker when so many images of so many epochs have been seen."""

    def __init__(self, epochs: set[int]) -> None:
        self._epochs = epochs

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        if epoch in self._epochs:
            kill_one_worker()

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        pass


@pytest.mark.parametrize(("frequency", "epochs"), [pytest.param("batch", 30, marks=with_all), (2, 12)])
def test_after_killed_workers_each_update_has_still_been_applied_once(
    table: DataFrame, frequency: str | int, epochs: int
) -> None:
    estimator = _estimator(frequency=frequency, epochs=epochs).set_progress(KillWorkers({2, 5, 9}))
    model = estimator.fit(table)
    steps = [-(-rows // 8) for rows in model.record["rows"]]
    expected = [epochs * (count if frequency == "batch" else -(-count // 2)) for count in steps]
    assert model.record["stage_failures"] >= 1
    assert model.record["updates_of_rank"] == {"0": expected[0], "1": expected[1]}
    assert len(model.history["loss"]) == epochs


def test_callbacks_stop_an_asynchronous_run_and_give_back_the_best_weights(table: DataFrame) -> None:
    seen: list[np.ndarray] = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(self.model.get_weights()[0].copy())

    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=100.0, restore_best_weights=True)
    model = _estimator(epochs=20).set_callbacks([Watch(), stop]).fit(table)
    assert len(model.history["loss"]) == 2 == len(seen)
    assert np.array_equal(model.weights[0], seen[0]) and not np.array_equal(seen[0], seen[1])


def test_a_learning_rate_that_a_callback_sets_counts(table: DataFrame) -> None:
    freeze = keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)
    for frequency in ("batch", "epoch"):
        estimator = _estimator(frequency=frequency, epochs=2)
        estimator.set_network(NETWORK)
        model = estimator.set_callbacks([freeze]).fit(table)
        assert np.array_equal(model.weights[0], NETWORK.get_weights()[0])


def test_a_loss_that_is_not_finite_ends_the_run(table: DataFrame) -> None:
    wild = {"class_name": "SGD", "config": {"learning_rate": 1e38}}
    with pytest.raises(TrainingError, match=r"not finite, in epoch \d"):
        _estimator(optimizer_config=wild).fit(table)


@pytest.mark.parametrize("frequency", [pytest.param("batch", marks=with_all), 3])
def test_a_run_that_is_taken_up_again_applies_what_is_left(
    table: DataFrame, tmp_path: Path, frequency: Any
) -> None:
    first = _estimator(epochs=2, frequency=frequency, checkpoint_path=str(tmp_path)).fit(table)
    second = _estimator(epochs=5, frequency=frequency, checkpoint_path=str(tmp_path)).fit(table)
    steps = [-(-rows // 8) for rows in second.record["rows"]]
    per_epoch = [count if frequency == "batch" else -(-count // 3) for count in steps]
    assert first.record["updates"] == 2 * sum(per_epoch)
    assert second.record["updates"] == 3 * sum(per_epoch)
    assert second.history["loss"][:2] == first.history["loss"] and len(second.history["loss"]) == 5
