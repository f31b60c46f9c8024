"""The drop-in beside Elephas itself: conventions, files, predictions; and accuracy beside plain Keras.

As a script it makes the full comparison with plain Keras on the Otto products (62 thousand rows, some minutes):

    python tests/spark/test_elephas.py --seeds 3
"""

import argparse
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import h5py  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pyarrow as pa  # noqa: E402
import pytest  # noqa: E402
from elephas import ml_model as stock  # noqa: E402
from elephas.utils.model_utils import LossModelTypeMapper, ModelType  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from pyspark.ml import Pipeline, PipelineModel  # noqa: E402
from pyspark.ml.feature import StandardScaler, StringIndexer  # noqa: E402
from pyspark.ml.functions import array_to_vector, vector_to_array  # noqa: E402
from pyspark.ml.linalg import Vectors  # noqa: E402
from pyspark.mllib.linalg import Vectors as OldVectors  # noqa: E402
from pyspark.sql import DataFrame, SparkSession  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402, N812
from pyspark.sql.types import ArrayType, DoubleType, StructField  # noqa: E402

from seedlings_spark import elephas as ours  # noqa: E402
from seedlings_spark.cluster import session  # noqa: E402
from seedlings_spark.errors import CorpusError, NetworkError, OptionError  # noqa: E402
from tests.conftest import shared_data  # noqa: E402

LIBRARIES = ["elephas.ml_model", "seedlings_spark.elephas"]


@pytest.fixture(scope="module")
def table(spark: SparkSession) -> DataFrame:
    """Three classes by name, 8 features."""
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 3.0, size=(192, 8))
    names = np.array(["charlock", "cleavers", "maize"])[np.argmax(values[:, :3], axis=1)]
    rows = [
        (i, Vectors.dense(x), str(name), float(x.sum()))
        for i, (x, name) in enumerate(zip(values, names, strict=True))
    ]
    return spark.createDataFrame(rows, ["id", "features", "species", "total"]).repartition(3).cache()


def _network(outputs: int = 3, activation: Any = "softmax", hidden: Any = "relu") -> Any:
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation=hidden),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(outputs, activation=activation),
        ],
        name="small",
    )


def _with_label(table: DataFrame) -> DataFrame:
    indexer = StringIndexer(inputCol="species", outputCol="label", stringOrderType="alphabetAsc")
    return indexer.fit(table).transform(table)


def _documented_pipeline(library: ModuleType) -> Pipeline:
    """As in the documentation of Elephas, with its setters."""
    optimizer = keras.optimizers.Adam(learning_rate=0.02)
    estimator = library.ElephasEstimator()
    estimator.setFeaturesCol("scaled_features")
    estimator.setLabelCol("index_category")
    estimator.set_keras_model_config(_network().to_json())
    estimator.set_categorical_labels(True)
    estimator.set_nb_classes(3)
    estimator.set_num_workers(2)
    estimator.set_epochs(4)
    estimator.set_batch_size(16)
    estimator.set_validation_split(0.15)
    estimator.set_verbosity(0)
    estimator.set_optimizer_config(keras.optimizers.serialize(optimizer))
    estimator.set_mode("synchronous")
    estimator.set_loss("categorical_crossentropy")
    estimator.set_metrics(["acc"])
    return Pipeline(
        stages=[
            StringIndexer(inputCol="species", outputCol="index_category", stringOrderType="alphabetAsc"),
            StandardScaler(inputCol="features", outputCol="scaled_features", withStd=True, withMean=True),
            estimator,
        ]
    )


@pytest.fixture(scope="module")
def fitted(table: DataFrame) -> dict[str, PipelineModel]:
    """The documented pipeline, fitted by each library; only the import differs."""
    return {name: _documented_pipeline(importlib.import_module(name)).fit(table) for name in LIBRARIES}


@pytest.fixture(scope="module")
def model(fitted: dict[str, PipelineModel]) -> ours.ElephasTransformer:
    transformer: ours.ElephasTransformer = fitted["seedlings_spark.elephas"].stages[-1]
    return transformer


@pytest.fixture(scope="module")
def scaled(table: DataFrame, fitted: dict[str, PipelineModel]) -> DataFrame:
    """The table as the transformer is given it."""
    for stage in fitted["seedlings_spark.elephas"].stages[:-1]:
        table = stage.transform(table)
    return table.cache()


def _matrix(table: DataFrame, column: str = "scaled_features") -> NDArray[np.float64]:
    return np.array([row[0].toArray() for row in table.orderBy("id").select(column).collect()])


def _predictions(table: DataFrame) -> NDArray[np.float64]:
    return np.array([row.prediction for row in table.orderBy("id").collect()])


# Conventions, beside those of Elephas.


def test_the_defaults_are_those_of_elephas_param_by_param() -> None:
    for own, other in (
        (ours.ElephasEstimator(), stock.ElephasEstimator()),
        (ours.ElephasTransformer(), stock.ElephasTransformer(labelCol="label")),
    ):
        for param in other.params:
            if other.hasDefault(param) and param.name != "outputCol":
                assert own.getOrDefault(param.name) == other.getOrDefault(param.name), param.name
    assert ours.ElephasEstimator().getOutputCol() == stock.ElephasEstimator().getOutputCol()


def test_every_public_name_of_elephas_is_there() -> None:
    for name in ours.__all__:
        assert hasattr(stock, name)
    for name in ("ElephasEstimator", "ElephasTransformer"):
        public = {each for each in dir(getattr(stock, name)) if not each.startswith("_")}
        assert public <= set(dir(getattr(ours, name)))
        assert issubclass(getattr(ours, name), getattr(stock, name))


def test_the_documented_pipeline_has_the_same_conventions_in_both(
    table: DataFrame, fitted: dict[str, PipelineModel]
) -> None:
    theirs, own = (fitted[name] for name in LIBRARIES)
    expected, found = theirs.transform(table), own.transform(table)
    assert [field.jsonValue() for field in found.schema] == [field.jsonValue() for field in expected.schema]
    assert found.schema["prediction"] == StructField("prediction", ArrayType(DoubleType()), True)
    assert np.allclose(_predictions(found).sum(axis=1), 1, atol=1e-5)
    before, after = (one.stages[-1] for one in (theirs, own))
    assert isinstance(after, stock.ElephasTransformer) and isinstance(after, ours.ElephasTransformer)
    assert list(after.get_config()) == list(before.get_config())
    assert {name: type(value) for name, value in after.get_config().items()} == {
        name: type(value) for name, value in before.get_config().items()
    }
    assert [weight.shape for weight in after.weights] == [weight.shape for weight in before.weights]
    assert after.model_type == before.model_type == ModelType.CLASSIFICATION
    # Elephas has an entry an epoch and worker, None for one without rows.
    assert isinstance(before.history, list) and isinstance(after.history, list)
    assert len(before.history) == 4 * 2 and len(after.history) == 4
    assert set(after.history[0]) == set(before.history[0]) == {"acc", "loss", "val_acc", "val_loss"}
    assert all(isinstance(value, list) and len(value) == 1 for value in after.history[-1].values())
    assert after.history[-1]["acc"][0] > after.history[0]["acc"][0]


def test_the_estimators_config_has_the_same_keys_and_values(table: DataFrame) -> None:
    configs = [
        _documented_pipeline(importlib.import_module(name)).getStages()[-1].get_config() for name in LIBRARIES
    ]
    assert list(configs[0]) == list(configs[1])
    theirs, own = ({**config, "keras_model_config": None} for config in configs)
    assert own == theirs
    again = ours.ElephasEstimator(**configs[1])
    assert again.get_config() == configs[1]


def test_set_params_and_the_old_setters_work() -> None:
    estimator = ours.ElephasEstimator()
    assert estimator.set_params(epochs=3, labelCol="y") is estimator
    assert estimator.get_epochs() == 3 and estimator.getLabelCol() == "y"
    with pytest.warns(DeprecationWarning, match="setOutputCol"):
        estimator.setOutputCol("scores")
    assert estimator.getOutputCol() == "scores"
    estimator.set_keras_model_config(_network().to_json())
    assert estimator.get_model().output_shape == (None, 3)
    with pytest.raises(OptionError, match="num_wokers"):
        ours.ElephasEstimator(num_wokers=2)


# Predictions.


def test_the_weights_predict_the_same_in_plain_keras(
    model: ours.ElephasTransformer, scaled: DataFrame
) -> None:
    network = keras.models.model_from_json(model.get_keras_model_config())
    network.set_weights(model.weights)
    expected = network.predict(_matrix(scaled), verbose=0)
    found = model.transform(scaled)
    assert found.columns == [*scaled.columns, "prediction"]
    assert np.abs(_predictions(found) - expected).max() < 1e-6
    assert np.abs(model.get_model().predict(_matrix(scaled), verbose=0) - expected).max() == 0
    kept = found.drop("prediction").orderBy("id").collect()
    assert kept == scaled.orderBy("id").collect()


def test_transform_is_lazy_and_reads_its_source_once(
    spark: SparkSession, model: ours.ElephasTransformer, scaled: DataFrame
) -> None:
    counter = spark.sparkContext.accumulator(0)

    def count(parts: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for part in parts:
            counter.add(len(part))
            yield part

    values = scaled.select("id", vector_to_array("scaled_features").alias("values"))
    counted = values.mapInPandas(count, values.schema)
    predicted = model.transform(counted.select("id", array_to_vector("values").alias("scaled_features")))
    assert counter.value == 0
    assert len(predicted.collect()) == 192
    assert counter.value == 192


def test_empty_partitions_and_any_inference_batch_size_change_nothing(
    model: ours.ElephasTransformer, scaled: DataFrame
) -> None:
    expected = _predictions(model.transform(scaled))
    few = scaled.filter("id < 3").repartition(4)
    for size in (None, 2):
        found = model.copy().set_inference_batch_size(size).transform(few)
        assert np.abs(_predictions(found) - expected[:3]).max() < 1e-6
    assert model.transform(scaled.filter("id < 0")).collect() == []


def test_a_transformer_is_made_from_weights_as_in_elephas(
    model: ours.ElephasTransformer, scaled: DataFrame
) -> None:
    made = ours.ElephasTransformer(
        labelCol="index_category",
        outputCol="scores",
        featuresCol="scaled_features",
        keras_model_config=model.get_keras_model_config(),
        weights=model.weights,
        custom_objects={},
        model_type=ModelType.CLASSIFICATION,
        history=model.history,
    )
    assert made.history == model.history
    found = made.transform(scaled).withColumnRenamed("scores", "prediction")
    assert np.array_equal(_predictions(found), _predictions(model.transform(scaled)))
    made.weights = [np.zeros_like(weight) for weight in model.weights]
    zeroed = made.transform(scaled).withColumnRenamed("scores", "prediction")
    assert np.allclose(_predictions(zeroed), 1 / 3)
    with pytest.raises(NetworkError, match="without weights"):
        ours.ElephasTransformer(keras_model_config=_network().to_json()).transform(
            scaled.withColumnRenamed("scaled_features", "features")
        )


# Labels and losses.


def _fit(table: DataFrame, **params: Any) -> ours.ElephasTransformer:
    defaults = {
        "keras_model_config": _network().to_json(),
        "loss": "categorical_crossentropy",
        "optimizer_config": {"class_name": "Adam", "config": {"learning_rate": 0.02}},
        "mode": "synchronous",
        "num_workers": 2,
        "nb_classes": 3,
        "epochs": 2,
        "batch_size": 16,
        "validation_split": 0.0,
    }
    made: ours.ElephasTransformer = ours.ElephasEstimator(**{**defaults, **params}).fit(_with_label(table))
    return made


def test_one_hot_and_sparse_losses_train_alike(table: DataFrame) -> None:
    one_hot = _fit(table)
    for categorical in (True, False):  # Elephas fails with the former
        sparse = _fit(table, loss="sparse_categorical_crossentropy", categorical=categorical, nb_classes=10)
        for before, after in zip(one_hot.weights, sparse.weights, strict=True):
            assert np.abs(before - after).max() < 1e-5


def test_other_losses_get_one_hot_labels_where_labels_are_categorical(table: DataFrame) -> None:
    model = _fit(
        table,
        keras_model_config=_network(3, "sigmoid").to_json(),
        loss="binary_crossentropy",
        metrics=["acc", keras.metrics.AUC.__name__],
        epochs=8,
    )
    found = _predictions(model.transform(table))
    labels = np.array([row.label for row in _with_label(table).orderBy("id").collect()])
    assert found.shape == (192, 3)
    assert (found.argmax(axis=1) == labels).mean() > 0.6


def test_a_network_of_more_outputs_than_classes_trains_as_in_elephas(table: DataFrame) -> None:
    model = _fit(table, keras_model_config=_network(10).to_json(), nb_classes=10, epochs=1)
    assert _predictions(model.transform(table)).shape == (192, 10)


def test_one_hot_labels_of_another_size_than_the_output_are_refused(table: DataFrame) -> None:
    with pytest.raises(NetworkError, match="nb_classes=10 for a network of 3 outputs"):
        _fit(table, nb_classes=10)
    with pytest.raises(NetworkError, match="nb_classes=3 for a network of 1 output"):
        _fit(table, keras_model_config=_network(1, "linear").to_json(), loss="mse")


def test_one_number_is_not_compared_with_several_outputs(table: DataFrame) -> None:
    several = {"keras_model_config": _network(3, "linear").to_json(), "loss": "mse", "categorical": False}
    with pytest.raises(NetworkError, match="would be compared with all of them"):
        _fit(table, labelCol="total", **several)
    with pytest.raises(CorpusError, match="whose label 'label' is no class of the network"):
        _fit(table.withColumn("species", F.concat("species", (F.col("id") % 2).cast("string"))))


def test_regression_gives_a_double_and_a_binary_network_an_array_of_one(table: DataFrame) -> None:
    regression = _fit(
        table,
        keras_model_config=_network(1, "linear").to_json(),
        loss="mae",
        metrics=["mae"],
        labelCol="total",
        categorical=False,
        epochs=20,
    )
    assert regression.model_type == ModelType.REGRESSION
    found = regression.transform(table)
    assert found.schema["prediction"] == StructField("prediction", DoubleType(), True)
    totals = np.array([row.total for row in table.orderBy("id").collect()])
    assert np.abs(_predictions(found) - totals).mean() < 0.5 * np.abs(totals).mean()
    # Of several numbers all stay.
    several = _fit(
        table.withColumn("both", F.array("total", F.col("total") * 2)),
        keras_model_config=_network(2, "linear").to_json(),
        loss="mse",
        labelCol="both",
        categorical=False,
        epochs=1,
    )
    assert _predictions(several.transform(table)).shape == (192, 2)
    binary = _fit(
        table.withColumn("y", (F.col("species") == "maize").cast("double")),
        keras_model_config=_network(1, "sigmoid").to_json(),
        loss="binary_crossentropy",
        labelCol="y",
        categorical=False,
    )
    assert _predictions(binary.transform(table)).shape == (192, 1)


def _half_squared_error(labels: Any, outputs: Any) -> Any:
    return keras.ops.mean(keras.ops.square(labels - outputs), axis=-1) / 2


def test_a_loss_of_ones_own_has_the_type_that_it_was_registered_with(table: DataFrame) -> None:
    params = {
        "keras_model_config": _network(1, "linear").to_json(),
        "loss": _half_squared_error,
        "metrics": ["mae"],
        "labelCol": "total",
        "categorical": False,
        "epochs": 1,
    }
    unknown = _fit(table, **params)
    assert unknown.model_type is None
    assert unknown.transform(table).schema["prediction"].dataType == ArrayType(DoubleType())
    LossModelTypeMapper().register_loss(_half_squared_error, ModelType.REGRESSION)
    known = _fit(table, **params)
    assert known.model_type == ModelType.REGRESSION
    assert known.transform(table).schema["prediction"].dataType == DoubleType()
    with pytest.raises(OptionError, match="cannot hold"):
        ours.ElephasEstimator(**params).save("never.h5")
    assert not Path("never.h5").exists()


def test_columns_are_found_by_their_exact_names(table: DataFrame) -> None:
    odd = _with_label(table).withColumnsRenamed({"features": "camera.features", "label": "the.label"})
    estimator = ours.ElephasEstimator(
        keras_model_config=_network().to_json(),
        loss="categorical_crossentropy",
        nb_classes=3,
        mode="synchronous",
        num_workers=1,
        epochs=1,
        featuresCol="camera.features",
        labelCol="the.label",
        outputCol="an.output",
    )
    assert len(estimator.fit(odd).transform(odd).first()["an.output"]) == 3


def test_vectors_of_the_old_mllib_are_taken(spark: SparkSession, table: DataFrame) -> None:
    rows = [
        (row.id, OldVectors.dense(row.features.toArray()), row.label) for row in _with_label(table).collect()
    ]
    old = spark.createDataFrame(rows, ["id", "features", "label"])
    found = ours.ElephasEstimator(
        keras_model_config=_network().to_json(),
        loss="categorical_crossentropy",
        mode="synchronous",
        num_workers=2,
        nb_classes=3,
        epochs=2,
        batch_size=16,
        validation_split=0.0,
        optimizer_config={"class_name": "Adam", "config": {"learning_rate": 0.02}},
    ).fit(old)
    assert all(np.array_equal(a, b) for a, b in zip(found.weights, _fit(table).weights, strict=True))
    assert dict(found.transform(old).dtypes)["features"] == dict(old.dtypes)["features"]
    assert np.array_equal(_predictions(found.transform(old)), _predictions(found.transform(table)))


# Workers and modes.


def test_more_workers_than_slots_are_cut_to_the_slots_with_a_warning(
    table: DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = ours.ElephasEstimator(
        keras_model_config=_network().to_json(),
        loss="categorical_crossentropy",
        mode="synchronous",
        nb_classes=3,
        epochs=1,
    )
    with caplog.at_level(logging.WARNING, logger="seedlings_spark"):
        model = estimator.fit(_with_label(table))
    assert "num_workers=8, but the cluster has 2 slots" in caplog.text
    assert len(model.record["rows"]) == 2
    assert estimator.get_num_workers() == 8


@pytest.mark.parametrize("frequency", ["epoch", "batch"])
def test_the_default_mode_is_asynchronous_and_learns(
    table: DataFrame, tmp_path: Path, frequency: str
) -> None:
    model = _fit(table, mode="asynchronous", frequency=frequency, epochs=12)
    assert model.record["mode"] == "asynchronous"
    labels = np.array([row.label for row in _with_label(table).orderBy("id").collect()])
    assert (_predictions(model.transform(table)).argmax(axis=1) == labels).mean() > 0.6
    model.save(str(tmp_path / "model.h5"))
    model.write().save(str(tmp_path / "model"))
    assert len(ours.load_ml_transformer(str(tmp_path / "model.h5")).history) == 12


def test_an_unknown_mode_is_refused(table: DataFrame) -> None:
    with pytest.raises(OptionError, match="mode='nonsense'"):
        _fit(table, mode="nonsense")


# Optimizers.


def _schedule() -> Any:
    return keras.optimizers.schedules.ExponentialDecay(0.02, 10, 0.9)


# Made in the test: an optimizer starts TensorFlow, which must not happen where a worker imports this module.
OPTIMIZERS: dict[str, tuple[Callable[[], Any], float]] = {
    "Keras 3": (lambda: keras.optimizers.serialize(keras.optimizers.SGD(0.03, momentum=0.5)), 0.03),
    "schedule": (lambda: keras.optimizers.serialize(keras.optimizers.SGD(_schedule())), 0.02),
    "old": (lambda: {"class_name": "SGD", "config": {"learning_rate": 0.03, "momentum": 0.5}}, 0.03),
    "older": (lambda: {"class_name": "SGD", "config": {"lr": 0.03, "momentum": 0.5, "decay": 1e-6}}, 0.03),
    "Keras 2.11": (
        lambda: {"class_name": "Adam", "config": {"learning_rate": 0.03, "is_legacy_optimizer": False}},
        0.03,
    ),
    "object": (lambda: keras.optimizers.SGD(0.03), 0.03),
    "name": (lambda: "sgd", 0.01),
    "none": (lambda: None, 0.001),
}


@pytest.mark.parametrize("style", OPTIMIZERS)
def test_optimizers_of_every_style_are_read_and_kept(table: DataFrame, tmp_path: Path, style: str) -> None:
    make, learning_rate = OPTIMIZERS[style]
    config = make()
    before = json.dumps(config) if isinstance(config, dict) else config
    estimator = ours.ElephasEstimator(
        keras_model_config=_network().to_json(),
        loss="categorical_crossentropy",
        nb_classes=3,
        optimizer_config=config,
    )
    estimator.save(str(tmp_path / "estimator.h5"))
    for one in (estimator, ours.load_ml_estimator(str(tmp_path / "estimator.h5"))):
        engine, data = one._for_engine(2), _with_label(table)
        network = engine._network(data, engine._options(data))
        assert abs(float(np.asarray(network.optimizer.learning_rate)) - learning_rate) < 1e-7
    assert (json.dumps(config) if isinstance(config, dict) else config) == before


# Files.


def test_an_estimator_goes_through_files_of_both_libraries(tmp_path: Path, table: DataFrame) -> None:
    params = {
        "keras_model_config": _network().to_json(),
        "loss": "categorical_crossentropy",
        "mode": "synchronous",
        "nb_classes": 3,
        "epochs": 2,
        "labelCol": "index_category",
        "optimizer_config": keras.optimizers.serialize(keras.optimizers.Adam(_schedule())),
    }
    own = ours.ElephasEstimator(**params, seed=7)
    theirs = stock.ElephasEstimator(**params)
    own.save(str(tmp_path / "ours.h5"))
    theirs.save(str(tmp_path / "theirs.h5"))
    again = ours.load_ml_estimator(str(tmp_path / "ours.h5"))
    assert isinstance(again, ours.ElephasEstimator)
    assert again.get_config() == own.get_config() and again.getOrDefault("seed") == 7
    assert again.get_optimizer_config() == params["optimizer_config"]
    read_by_elephas = stock.load_ml_estimator(str(tmp_path / "ours.h5"))
    assert type(read_by_elephas) is stock.ElephasEstimator
    assert read_by_elephas.get_config() == theirs.get_config()
    assert read_by_elephas.get_optimizer_config() == params["optimizer_config"]
    from_elephas = ours.load_ml_estimator(str(tmp_path / "theirs.h5"))
    assert from_elephas.get_config() == theirs.get_config()
    layouts = []
    for name in ("ours.h5", "theirs.h5"):
        with h5py.File(tmp_path / name) as file:
            assert list(file) == [] and list(file.attrs) == ["distributed_config"]
            layouts.append(json.loads(file.attrs["distributed_config"]))
    assert layouts[0]["class_name"] == layouts[1]["class_name"]
    assert set(layouts[0]["config"]) == {*layouts[1]["config"], "optimizer_config"}


def test_a_transformer_goes_through_files_of_both_libraries(
    spark: SparkSession,
    tmp_path: Path,
    fitted: dict[str, PipelineModel],
    model: ours.ElephasTransformer,
    scaled: DataFrame,
) -> None:
    theirs = fitted["elephas.ml_model"].stages[-1]
    model.save(str(tmp_path / "ours.h5"))
    theirs.save(str(tmp_path / "theirs.h5"))
    expected = _predictions(model.transform(scaled))

    again = ours.load_ml_transformer(str(tmp_path / "ours.h5"))
    assert isinstance(again, ours.ElephasTransformer)
    assert all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(again.weights, model.weights, strict=True)
    )
    assert again.get_config() == model.get_config()
    assert again.history == model.history and again.record == model.record
    assert np.array_equal(_predictions(again.transform(scaled)), expected)

    read_by_elephas = stock.load_ml_transformer(str(tmp_path / "ours.h5"))
    assert type(read_by_elephas) is stock.ElephasTransformer
    assert read_by_elephas.get_config() == model.get_config()
    assert np.abs(_predictions(read_by_elephas.transform(scaled)) - expected).max() < 1e-6

    from_elephas = ours.load_ml_transformer(str(tmp_path / "theirs.h5"))
    assert from_elephas.get_config() == theirs.get_config()
    assert from_elephas.history == []
    difference = _predictions(from_elephas.transform(scaled)) - _predictions(theirs.transform(scaled))
    assert np.abs(difference).max() < 1e-6


def test_spark_mls_own_files_keep_everything(
    tmp_path: Path, table: DataFrame, fitted: dict[str, PipelineModel], model: ours.ElephasTransformer
) -> None:
    pipeline = _documented_pipeline(ours)
    pipeline.save(str(tmp_path / "pipeline"))
    loaded = Pipeline.load(str(tmp_path / "pipeline")).getStages()[-1]
    assert type(loaded) is ours.ElephasEstimator
    assert loaded.get_config() == pipeline.getStages()[-1].get_config()
    assert loaded.get_optimizer_config() == pipeline.getStages()[-1].get_optimizer_config()

    whole = fitted["seedlings_spark.elephas"]
    whole.save(str(tmp_path / "model"))
    again = PipelineModel.load(str(tmp_path / "model"))
    assert type(again.stages[-1]) is ours.ElephasTransformer
    assert again.stages[-1].history == model.history and again.stages[-1].model_type == model.model_type
    assert again.stages[-1].get_config() == model.get_config()
    assert np.array_equal(_predictions(again.transform(table)), _predictions(whole.transform(table)))


def test_a_large_network_goes_through_a_file(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((400,)), keras.layers.Dense(500), keras.layers.Dense(3)])
    model = ours.ElephasTransformer(
        keras_model_config=network.to_json(),
        weights=network.get_weights(),
        model_type=ModelType.CLASSIFICATION,
    )
    file = tmp_path / "large.h5"
    model.save(str(file))
    assert 10 < file.stat().st_size / network.count_params() < 30
    again = stock.load_ml_transformer(str(file))
    assert all(np.array_equal(a, b) for a, b in zip(again.weights, model.weights, strict=True))


def test_files_that_are_none_are_refused_by_name(tmp_path: Path, model: ours.ElephasTransformer) -> None:
    text, empty, other, newer = (tmp_path / f"{name}.h5" for name in ("text", "empty", "other", "newer"))
    text.write_text("no HDF5")
    h5py.File(empty, "w").close()
    model.save(str(other))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        content = {"class_name": "ElephasEstimator", "config": {}, "seedlings_spark": {"format": 2}}
        file.attrs["distributed_config"] = json.dumps(content)
    newer.write_bytes(buffer.getvalue())
    for file_name, words in (
        (tmp_path / "missing.h5", "no file .*missing.h5"),
        (text, "text.h5, which cannot be read"),
        (empty, "empty.h5, which cannot be read"),
        (other, "an Elephas transformer.*load_ml_transformer"),
        (newer, "of format 2"),
    ):
        with pytest.raises(NetworkError, match=words):
            ours.load_ml_estimator(str(file_name))


# Custom objects.


def _bent(x: Any) -> Any:
    return keras.ops.maximum(x, 0.1 * x)


class _Doubled(keras.layers.Layer):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return inputs * 2.0


def test_custom_objects_train_predict_and_go_through_files(tmp_path: Path, table: DataFrame) -> None:
    network = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, activation=_bent),
            _Doubled(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    objects = {"_bent": _bent, "_Doubled": _Doubled}
    model = _fit(table, keras_model_config=network.to_json(), custom_objects=objects)
    network.set_weights(model.weights)
    expected = network.predict(_matrix(table, "features"), verbose=0)
    assert np.abs(_predictions(model.transform(table)) - expected).max() < 1e-6

    model.save(str(tmp_path / "model.h5"))
    model.write().save(str(tmp_path / "model"))
    for loaded in (
        ours.load_ml_transformer(str(tmp_path / "model.h5")),
        ours.ElephasTransformer.load(str(tmp_path / "model")),
    ):
        assert loaded.get_custom_objects() == {}
        loaded.set_custom_objects(objects)
        assert np.abs(_predictions(loaded.transform(table)) - expected).max() < 1e-6
    doubled = model.copy().set_custom_objects({**objects, "_bent": keras.activations.tanh})
    assert np.abs(_predictions(doubled.transform(table)) - expected).max() > 1e-3


# Accuracy beside plain Keras.

EPOCHS, BATCH_SIZE, VALIDATION_SPLIT, TEST_SPLIT = 5, 128, 0.15, 0.15


@dataclass(frozen=True)
class Comparison:
    """One way to train and its accuracy on the test rows, for each seed."""

    way: str
    accuracies: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))


def _otto_network(num_features: int, num_classes: int) -> Any:
    layers = [keras.Input((num_features,))]
    for _ in range(3):
        layers += [keras.layers.Dense(512, activation="relu"), keras.layers.Dropout(0.5)]
    return keras.Sequential([*layers, keras.layers.Dense(num_classes, activation="softmax")])


def _plain_accuracy(
    train: tuple[NDArray[Any], NDArray[Any]], test: tuple[NDArray[Any], NDArray[Any]], seed: int
) -> float:
    """Of plain Keras, which is given a new order in every epoch: under one seed its own would be the same in all."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train[0]))
    order = order[int(len(order) * VALIDATION_SPLIT) :]
    num_classes = int(train[1].max()) + 1
    network = _otto_network(train[0].shape[1], num_classes)
    network.compile(
        optimizer=keras.optimizers.Adam(0.001), loss="sparse_categorical_crossentropy", metrics=["acc"]
    )
    for _ in range(EPOCHS):
        order = rng.permutation(order)
        network.fit(train[0][order], train[1][order], batch_size=BATCH_SIZE, shuffle=False, verbose=0)
    outputs = network.predict(test[0], batch_size=1024, verbose=0)
    return float((outputs.argmax(axis=1) == test[1]).mean())


def compare(
    spark: SparkSession,
    path: Path,
    rows: int | None,
    seeds: Sequence[int],
    modes: Sequence[tuple[str, str]],
    workers: Sequence[int],
) -> list[Comparison]:
    """Accuracy of plain Keras and of the drop-in on the Otto products, all trained on the same rows.

    Args:
        path: The zipped CSV.
        rows: How many, drawn at random; None for all. A part of `TEST_SPLIT` of them is only predicted.
        seeds: A training each.
        modes: Mode and frequency. At synchronous/batch the batch is shared by the workers, so that a step is
            one of plain Keras; else every worker takes batches of that size.
        workers: Numbers of workers.
    """
    frame = pd.read_csv(path)
    rng = np.random.default_rng(0)
    frame = frame.iloc[rng.permutation(len(frame))[: rows or len(frame)]]
    names = [name for name in frame.columns if name.startswith("feat_")]
    data = spark.createDataFrame(
        pa.table(
            {
                "id": frame["id"].to_numpy(),
                "values": pa.array(list(frame[names].to_numpy(np.float64))),
                "category": frame["target"].to_list(),
                "held_back": np.arange(len(frame)) < len(frame) * TEST_SPLIT,
            }
        )
    ).select("id", array_to_vector("values").alias("features"), "category", "held_back")
    train, test = data.filter("not held_back").cache(), data.filter("held_back").cache()
    indexer = StringIndexer(inputCol="category", outputCol="index_category", stringOrderType="alphabetAsc")
    scaler = StandardScaler(inputCol="features", outputCol="scaled_features", withStd=True, withMean=True)
    prepared = Pipeline(stages=[indexer, scaler]).fit(train)

    def arrays(table: DataFrame) -> tuple[NDArray[Any], NDArray[Any]]:
        found = prepared.transform(table).select("scaled_features", "index_category").collect()
        features = np.array([row[0].toArray() for row in found], np.float32)
        return features, np.array([row[1] for row in found], np.int64)

    train_arrays, test_arrays = arrays(train), arrays(test)
    num_classes = int(train_arrays[1].max()) + 1
    done = [Comparison("plain Keras", [_plain_accuracy(train_arrays, test_arrays, seed) for seed in seeds])]
    for mode, frequency in modes:
        for num_workers in workers:
            accuracies = []
            for seed in seeds:
                shared = num_workers if (mode, frequency) == ("synchronous", "batch") else 1
                estimator = ours.ElephasEstimator(
                    featuresCol="scaled_features",
                    labelCol="index_category",
                    keras_model_config=_otto_network(len(names), num_classes).to_json(),
                    optimizer_config=keras.optimizers.serialize(keras.optimizers.Adam(0.001)),
                    loss="categorical_crossentropy",
                    metrics=["acc"],
                    categorical=True,
                    nb_classes=num_classes,
                    mode=mode,
                    frequency=frequency,
                    num_workers=num_workers,
                    batch_size=BATCH_SIZE // shared,
                    epochs=EPOCHS,
                    validation_split=VALIDATION_SPLIT,
                    seed=seed,
                )
                predicted = Pipeline(stages=[indexer, scaler, estimator]).fit(train).transform(test)
                best = (F.array_position("prediction", F.array_max("prediction")) - 1).cast("double")
                right = predicted.select((best == F.col("index_category")).cast("double").alias("right"))
                accuracies.append(float(right.agg(F.avg("right")).first()[0]))
            done.append(
                Comparison(f"{mode}, {frequency}, {num_workers} worker{'s' * (num_workers != 1)}", accuracies)
            )
    return done


def test_accuracy_on_the_otto_products_is_near_that_of_plain_keras(spark: SparkSession) -> None:
    plain, own = compare(
        spark, shared_data("otto_train.csv.zip"), 8_000, [0], [("synchronous", "batch")], [2]
    )
    assert plain.mean > 0.65
    assert own.mean > plain.mean - 0.03


def main() -> None:
    """The full comparison, as a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=None, help="default: all")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["synchronous/batch", "asynchronous/epoch", "asynchronous/batch"],
        help="mode/frequency",
    )
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    spark = session.build(
        "otto",
        {
            "spark.master": f"local[{max(options.workers)}]",
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2",
            "spark.ui.showConsoleProgress": "false",
        },
    )
    spark.sparkContext.setLogLevel("ERROR")
    done = compare(
        spark,
        shared_data("otto_train.csv.zip"),
        options.rows,
        range(options.seeds),
        [tuple(mode.split("/")) for mode in options.modes],
        options.workers,
    )
    spark.stop()
    print(f"{'':34}{'mean':>8}{'to Keras':>10}   each seed")
    for one in done:
        each = " ".join(f"{accuracy:.4f}" for accuracy in one.accuracies)
        print(f"{one.way:34}{one.mean:8.4f}{one.mean - done[0].mean:+10.4f}   {each}")


if __name__ == "__main__":
    main()
