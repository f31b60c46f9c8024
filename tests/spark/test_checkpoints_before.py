"""Checkpoints of 0.1.0, of four kinds of run: this release goes on from them."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml.feature import StringIndexer
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from seedlings_spark.estimator import SeedlingsEstimator

SAVED = Path(__file__).parents[1] / "data" / "checkpoints_of_0.1.0"
RUNS: dict[str, dict[str, Any]] = {
    "batch": {},
    "2": {"frequency": 2},
    "async-batch": {"mode": "asynchronous"},
    "async-2": {"mode": "asynchronous", "frequency": 2},
}


@pytest.fixture(scope="module")
def table(spark: SparkSession) -> DataFrame:
    values = np.random.default_rng(0).normal(size=(80, 4)).round(3)
    rows = [(Vectors.dense(x), "Maize" if x[0] + x[1] > 0 else "Charlock") for x in values]
    data = spark.createDataFrame(rows, ["features", "species"])
    indexer = StringIndexer(inputCol="species", outputCol="label", stringOrderType="alphabetAsc")
    return indexer.fit(data).transform(data).cache()


def _estimator(folder: Path, **params: Any) -> SeedlingsEstimator:
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.2, name="drop"),
            layers.Dense(2, activation="softmax", name="out"),
        ],
        name="small",
    )
    return SeedlingsEstimator(
        **{
            "keras_model_config": network.to_json(),
            "loss": "sparse_categorical_crossentropy",
            "optimizer_config": {"class_name": "Adam", "config": {"learning_rate": 0.01}},
            "num_workers": 2,
            "epochs": 4,
            "batch_size": 8,
            "validation_split": 0.2,
            "seed": 3,
            "threads": 1,
            "class_weight": "balanced",
            "verbose": 0,
            "checkpoint_path": str(folder),
            **params,
        }
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_a_checkpoint(table: DataFrame, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(SAVED / f"{name}.npz", folder / "epoch-000002.npz")
    with np.load(folder / "epoch-000002.npz") as stored:
        before = json.loads(stored["meta"].tobytes())["history"]
    model = _estimator(folder, **RUNS[name]).fit(table)
    assert {metric: values[:2] for metric, values in model.history.items()} == before
    assert all(len(values) == 4 for values in model.history.values())
    assert sum(worker["images"] for worker in model.record["workers"]) < 4 * sum(model.record["rows"])
    assert sorted(file.name for file in folder.iterdir()) == ["epoch-000003.npz", "epoch-000004.npz"]
