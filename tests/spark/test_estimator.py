"""The estimator and its model on a real Spark: exactness, repeatability, lost workers, persistence."""

import copy
import queue
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import keras
import numpy as np
import pyarrow as pa
import pytest
import scipy.special
from elephas.ml_model import ElephasEstimator, ElephasTransformer
from pyspark.errors import PythonException
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import OneVsRest
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import StandardScaler, StringIndexer
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from seedlings_spark import corpus, images, schema
from seedlings_spark.cluster import session
from seedlings_spark.corpus import decoding
from seedlings_spark.errors import ClusterError, CorpusError, NetworkError, OptionError, TrainingError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel
from seedlings_spark.estimator.rows import TrainingColumns, rows_of_workers
from seedlings_spark.problems import Problem
from seedlings_spark.training import stage
from seedlings_spark.training.progress import Silent
from seedlings_spark.training.worker import SUMMARY
from seedlings_spark.workflow import pipeline
from tests.conftest import HANG_SECONDS, with_all
from tests.spark.processes import kill_one_worker, listening_ports

SUM, BY_WEIGHTS = (
    keras.losses.serialize(keras.losses.SparseCategoricalCrossentropy(reduction=each))
    for each in ("sum", "mean_with_sample_weight")
)


@keras.saving.register_keras_serializable("test_estimator")
class Distilled(keras.Sequential):
    """Trains in a way of its own."""

    def train_step(self, data: Any) -> Any:
        raise AssertionError("nobody calls it")


@pytest.fixture(scope="module")
def table(spark: SparkSession) -> DataFrame:
    """Two classes by name, 8 features."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(160, 8))
    names = np.where(values[:, 0] + values[:, 1] > 0, "maize", "charlock")
    rows = [
        (i, Vectors.dense(x), str(name), float(x.sum()))
        for i, (x, name) in enumerate(zip(values, names, strict=True))
    ]
    indexed = StringIndexer(inputCol="species", outputCol="label", stringOrderType="alphabetAsc")
    data = spark.createDataFrame(rows, ["id", "features", "species", "total"]).repartition(3)
    return indexed.fit(data).transform(data).cache()


def _network(outputs: int = 2, activation: str = "softmax") -> Any:
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(outputs, activation=activation),
        ]
    )


def _estimator(**params: Any) -> SeedlingsEstimator:
    return SeedlingsEstimator(
        **{
            "keras_model_config": _network().to_json(),
            "loss": "sparse_categorical_crossentropy",
            "optimizer_config": {"class_name": "Adam", "config": {"learning_rate": 0.02}},
            "num_workers": 2,
            "epochs": 3,
            "batch_size": 16,
            **params,
        }
    )


def _bits(model: SeedlingsModel) -> bytes:
    return b"".join(weight.tobytes() for weight in model.weights)


def test_columns_are_found_by_their_exact_names_whatever_is_in_these(spark: SparkSession) -> None:
    """Dots would mean fields of structs, which lie beside them here with other values."""
    rng = np.random.default_rng(1)
    plain = ("features", "label", "weight", "is_validation")
    odd = ("camera.features", "the `label`", "a.weight", "is.held out")
    rows = [
        (Vectors.dense(values), float(values[0] > 0), 1.0 + abs(float(values[1])), number % 5 == 0)
        for number, values in enumerate(rng.normal(size=(60, 8)))
    ]
    beside = {"camera": "features", "a": "weight", "is": "held out"}
    models = []
    for names, others in ((plain, {}), (odd, beside)):
        data = spark.createDataFrame(rows, plain).toDF(*names)
        data = data.withColumns({name: F.struct(F.lit(-1.0).alias(field)) for name, field in others.items()})
        features, label, weight, held_out = names
        columns = {"featuresCol": features, "labelCol": label, "weightCol": weight}
        outputs = {"outputCol": "the.class", "probabilityCol": "p.of", "predicted_species_col": "a `name`"}
        outputs["rawPredictionCol"] = "logits.of"
        estimator = _estimator(epochs=1, validationIndicatorCol=held_out, **columns, **outputs)
        models.append(estimator.fit(data))
        table = models[-1].transform(data)
        assert table.columns == [*names, *others, *outputs.values()]
        row = table.first()
        assert row["a `name`"] == str(int(row["the.class"])) and abs(sum(row["p.of"]) - 1) < 1e-6
    assert _bits(models[0]) == _bits(models[1])
    assert models[1].record["held_out_rows"] == 12


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"mode": "nonsense"}, OptionError, "mode='nonsense'"),
        ({"frequency": "sometimes"}, OptionError, "frequency='sometimes'"),
        ({"epochs": 0}, OptionError, "epochs=0"),
        ({"batch_size": -1}, OptionError, "batch_size=-1"),
        ({"precision": "int8"}, OptionError, "int8"),
        ({"validation_split": 1.0}, OptionError, "validation_split"),
        ({"class_weight": "unbalanced"}, OptionError, "unbalanced"),
        ({"loss": SUM}, OptionError, "a loss with reduction='sum', of several shards"),
        (
            {"loss": BY_WEIGHTS, "class_weight": "balanced"},
            OptionError,
            "'mean_with_sample_weight', of several",
        ),
        ({"server_port": "http"}, OptionError, "server_port='http'"),
        ({"worker_port": "http"}, OptionError, "worker_port='http'"),
        ({"drop_slow": 0.5}, OptionError, "drop_slow=0\\.5"),
        ({"exchange": "ring"}, OptionError, "exchange='ring'"),
        ({"exchange": "workers", "frequency": "epoch"}, OptionError, "exchange='workers' with"),
        ({"num_workers": "auto"}, OptionError, "num_workers='auto' without shards"),
        ({"server_port": "4110-4100"}, OptionError, "server_port='4110-4100'"),
        ({"server_port": "70000"}, OptionError, "server_port='70000'"),
        ({"num_workers": 3}, ClusterError, "2 free slots .* for 3 workers"),
        ({"featuresCol": "pixels"}, CorpusError, "no column 'pixels'"),
        ({"labelCol": "class"}, CorpusError, "no column 'class'"),
        ({"featuresCol": "species"}, CorpusError, "of type string"),
        ({"keras_model_config": "{}"}, NetworkError, "which holds a dict"),
        ({"keras_model_config": "nonsense"}, NetworkError, "Keras cannot build"),
        ({"keras_model_config": _network(5).to_json()}, NetworkError, "5 outputs for 2 classes"),
    ],
    ids=str,
)
def test_a_wrong_param_is_refused_by_name(
    table: DataFrame, params: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _estimator(**params).fit(table)


def test_a_network_that_trains_in_its_own_way_is_refused(table: DataFrame) -> None:
    network = Distilled([keras.Input((8,)), *_network().layers], name="distilled")
    with pytest.raises(NetworkError, match="distilled, a network of the class Distilled, with a train_step"):
        _estimator().set_network(network).fit(table)
    with pytest.raises(OptionError, match="reduction='sum'"):
        _estimator(loss=keras.losses.deserialize(SUM)).fit(table)


def test_an_optimizer_that_spares_variables_does_so_after_it_was_saved(
    table: DataFrame, tmp_path: Path
) -> None:
    made = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    made.exclude_from_weight_decay(var_names=["kernel"])
    estimator = _estimator(optimizer_config=made, epochs=1)
    estimator.save(str(tmp_path / "estimator"))
    again = SeedlingsEstimator.load(str(tmp_path / "estimator"))
    assert _bits(again.fit(table)) == _bits(estimator.fit(table))
    everything = _estimator(optimizer_config=keras.optimizers.AdamW(0.1, weight_decay=0.5), epochs=1)
    assert _bits(everything.fit(table)) != _bits(again.fit(table))


def test_vectors_are_fed_to_a_network_of_bytes_too(table: DataFrame) -> None:
    values = F.transform(vector_to_array("features"), lambda each: F.floor(each * 20 + 100).cast("double"))
    rows, found = table.withColumn("features", array_to_vector(values)), []
    for dtype in ("uint8", "float32"):
        keras.utils.set_random_seed(1)
        layers = [
            keras.Input((8,), dtype=dtype),
            keras.layers.Rescaling(1 / 128, -1),
            keras.layers.Dense(2, "softmax"),
        ]
        estimator = _estimator(epochs=1).set_network(keras.Sequential(layers))
        found.append(estimator.fit(rows))
    assert _bits(found[0]) == _bits(found[1])


def test_an_unknown_param_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="num_wokers"):
        SeedlingsEstimator(num_wokers=2)


def test_fewer_rows_than_workers_are_refused(table: DataFrame) -> None:
    with pytest.raises(CorpusError, match="1 rows to train on"):
        _estimator().fit(table.limit(1))


_NAN, _INF = float("nan"), float("inf")
_LINEAR = {"loss": "mse", "keras_model_config": _network(1, "linear").to_json()}
_WIDER = keras.Sequential([keras.Input((9,)), keras.layers.Dense(2, activation="softmax")])


def _first_three(table: DataFrame, name: str, value: Any) -> DataFrame:
    """The table with this value in three rows, and without the names of its classes."""
    column = F.when(F.col("id") < 3, F.lit(value)).otherwise(
        F.col(name) if name in table.columns else F.lit(1.0)
    )
    return table.withColumn(name, column.cast("double") if name == "label" else column)


@pytest.mark.parametrize(
    ("name", "value", "params", "words"),
    [
        ("label", None, {}, "3 of 160 rows without a label"),
        ("label", _NAN, {}, "3 of 160 rows without a label"),
        ("label", 0.5, {}, r"3 of 160 rows whose label 'label' is no whole number, such as 0\.5"),
        ("label", -1.0, {}, r"3 of 160 rows whose label 'label' is no class of the network, such as -1\.0"),
        ("label", 2.0, {}, "class numbers 0 to 1"),
        ("label", _INF, {}, "such as Infinity"),
        ("label", _INF, _LINEAR, "whose label 'label' is infinite"),
        (
            "label",
            0.5,
            {"loss": "binary_crossentropy", "keras_model_config": _network(1, "sigmoid").to_json()},
            "whole",
        ),
        (
            "w",
            None,
            {"weightCol": "w"},
            "3 of 160 rows whose weight 'w' is missing, negative or not finite, such as NULL",
        ),
        ("w", -2.0, {"weightCol": "w"}, r"such as -2\.0"),
        ("w", _NAN, {"weightCol": "w"}, "such as NaN"),
        ("held", None, {"validationIndicatorCol": "held"}, "of type double"),
        (
            "id",
            None,
            {"keras_model_config": _WIDER.to_json()},
            r"160 of 160 rows .* such as 8. Expected 9 values",
        ),
    ],
    ids=str,
)
def test_wrong_rows_are_counted_and_shown_before_training(
    table: DataFrame, name: str, value: Any, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(CorpusError, match=words):
        _estimator(**params).fit(_first_three(table, name, value))


def test_other_wrong_columns_are_refused(table: DataFrame) -> None:
    with pytest.raises(CorpusError, match="a label column 'species' of type string"):
        _estimator(labelCol="species").fit(table)
    with pytest.raises(CorpusError, match="weights are all 0"):
        _estimator(weightCol="w").fit(table.withColumn("w", F.lit(0)))
    held_out = table.withColumn("held", F.when(F.col("id") > 4, F.col("id") > 100))
    with pytest.raises(CorpusError, match="5 of 160 rows where 'held' is NULL"):
        _estimator(validationIndicatorCol="held").fit(held_out)
    arrays = table.withColumn("features", vector_to_array("features"))
    damaged = arrays.withColumn(
        "features", F.when(F.col("id") == 9, F.array(*[F.lit(_NAN)] * 8)).otherwise(F.col("features"))
    )
    with pytest.raises(CorpusError, match="1 of 160 rows whose features 'features' hold NULL, NaN"):
        _estimator().fit(damaged)
    with pytest.raises(
        CorpusError, match="160 of 160 rows whose label 'features' has another length, such as 8"
    ):
        _estimator(loss="categorical_crossentropy", labelCol="features").fit(arrays)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({2: 1.0}, "unknown class 2"),
        ({0: -1.0}, r"-1\.0 for class 0"),
        ({"1": _NAN}, "nan for class 1"),
        ('{"0": 1, "maize": 2}', "maize"),
        ({0: 0, 1: 0}, "no weight above 0"),
    ],
    ids=str,
)
def test_wrong_class_weights_are_refused(table: DataFrame, weights: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        _estimator(class_weight=weights).fit(table)
    with pytest.raises(OptionError, match="class_weight with a problem of regression"):
        _estimator(**_LINEAR, labelCol="total", class_weight={0: 1.0}).fit(table)


def test_it_is_an_elephas_estimator_and_takes_its_setters(table: DataFrame) -> None:
    estimator = SeedlingsEstimator()
    assert isinstance(estimator, ElephasEstimator)
    estimator.set_keras_model_config(_network().to_json())
    estimator.set_loss("categorical_crossentropy")
    estimator.set_metrics(["acc"])
    estimator.set_optimizer_config(keras.optimizers.serialize(keras.optimizers.SGD(0.1)))
    estimator.set_mode("synchronous")
    estimator.set_frequency("epoch")
    estimator.set_epochs(2)
    estimator.set_batch_size(8)
    estimator.set_num_workers(2)
    estimator.set_categorical_labels(True)
    estimator.set_nb_classes(2)
    estimator.set_validation_split(0.25)
    model = estimator.fit(table)
    assert isinstance(model, ElephasTransformer)
    assert sorted(model.history) == ["acc", "loss", "val_acc", "val_loss"]
    assert len(model.history["val_acc"]) == 2
    assert 0.1 < model.record["held_out_rows"] / 160 < 0.4


def test_every_row_is_used_and_the_prediction_is_what_spark_expects(table: DataFrame) -> None:
    model = _estimator(epochs=25).fit(table)
    assert sum(model.record["rows"]) == 160
    assert sum(worker["images"] for worker in model.record["workers"]) == 25 * 160
    predictions = model.transform(table)
    added = ["prediction", "probability", "predicted_species", "rawPrediction"]
    assert predictions.columns == [*table.columns, *added]
    assert dict(predictions.dtypes)["prediction"] == "double"
    assert dict(predictions.dtypes)["probability"] == "vector"
    assert MulticlassClassificationEvaluator(metricName="accuracy").evaluate(predictions) > 0.9
    outputs = model.get_model().predict(
        np.array([row.features.toArray() for row in table.collect()]), verbose=0
    )
    for row, expected in zip(predictions.collect(), outputs, strict=True):
        assert np.abs(row.probability.toArray() - expected).max() < 1e-6
        assert row.prediction == np.argmax(expected)
        assert row.predicted_species == ["charlock", "maize"][int(np.argmax(expected))]


@pytest.fixture(scope="module")
def first_run(table: DataFrame) -> SeedlingsModel:
    return _estimator().fit(table)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda table: table,
        lambda table: table.repartition(1),
        lambda table: table.repartition(7),
        lambda table: table.orderBy(F.desc("id")),
    ],
    ids=["again", "one partition", "seven partitions", "another order"],
)
def test_the_same_rows_give_the_same_weights_bit_for_bit(
    table: DataFrame, first_run: SeedlingsModel, arrange: Callable[[DataFrame], DataFrame]
) -> None:
    assert _bits(_estimator().fit(arrange(table))) == _bits(first_run)


def test_another_seed_gives_other_weights(table: DataFrame, first_run: SeedlingsModel) -> None:
    assert _bits(_estimator(seed=1).fit(table)) != _bits(first_run)


def test_a_shard_on_disk_gives_the_same_weights_as_one_in_memory(
    table: DataFrame, first_run: SeedlingsModel
) -> None:
    wide = table.withColumn(
        "features", F.expr("transform(sequence(1, 20000), i -> cast(i % 7 as double) + id)")
    )
    network = keras.Sequential([keras.Input((20000,)), keras.layers.Dense(2, activation="softmax")])
    fits = [
        _estimator(keras_model_config=network.to_json(), memory_budget_mb=budget, epochs=1).fit(wide)
        for budget in (1, 512)
    ]
    assert _bits(fits[0]) == _bits(fits[1])


class KillWorkers(Silent):
    """Kills a worker at these rounds of a run."""

    def __init__(self, rounds: set[int]) -> None:
        self._rounds, self._round = rounds, 0

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        self._round += 1
        if self._round in self._rounds:
            kill_one_worker()


@pytest.mark.parametrize(
    ("frequency", "exchange", "rounds"),
    [
        pytest.param("batch", "driver", {2, 3, 6, 9, 14}, marks=with_all),  # as on the standalone cluster
        pytest.param("epoch", "driver", {1, 2}, marks=with_all),
        ("batch", "workers", {2, 4}),
    ],
)
def test_killed_workers_change_no_bit(
    table: DataFrame, frequency: str, exchange: str, rounds: set[int]
) -> None:
    calm = _estimator(frequency=frequency).fit(table)
    killed = _estimator(frequency=frequency, exchange=exchange).set_progress(KillWorkers(rounds)).fit(table)
    assert killed.record["stage_failures"] == len(rounds)
    assert _bits(killed) == _bits(calm)
    assert killed.history == calm.history


def test_a_workers_own_error_is_not_tried_again(table: DataFrame) -> None:
    text = _network().to_json().replace('"noise_shape": null', '"noise_shape": [5, 7]')
    with pytest.raises(TrainingError, match=r"exception in worker \d"):
        _estimator(keras_model_config=text).fit(table)


def test_after_a_failed_fit_the_next_one_works_and_no_port_stays_open(
    table: DataFrame, first_run: SeedlingsModel
) -> None:
    before = listening_ports()
    broken = _network().to_json().replace('"noise_shape": null', '"noise_shape": [5, 7]')
    with pytest.raises(TrainingError, match="exception in worker"):
        _estimator(keras_model_config=broken).fit(table)
    assert _bits(_estimator().fit(table)) == _bits(first_run)
    assert listening_ports() == before


def test_regression_and_binary_losses(table: DataFrame) -> None:
    regression = _estimator(
        keras_model_config=_network(1, "linear").to_json(),
        loss="mse",
        metrics=["mae"],
        labelCol="total",
        epochs=30,
    ).fit(table)
    predicted = regression.transform(table)
    assert "probability" not in predicted.columns
    assert RegressionEvaluator(labelCol="total", metricName="r2").evaluate(predicted) > 0.8
    binary = _estimator(
        keras_model_config=_network(1, "sigmoid").to_json(), loss="binary_crossentropy", epochs=25
    ).fit(table)
    predicted = binary.transform(table)
    assert MulticlassClassificationEvaluator(metricName="accuracy").evaluate(predicted) > 0.9
    assert predicted.first().probability.size == 2


def _matrix(table: DataFrame, name: str) -> np.ndarray:
    return np.array([np.asarray(row[name]) for row in table.orderBy("id").select(name).collect()])


@pytest.mark.parametrize("outputs", [1, 3])
def test_outputs_that_are_logits_become_probabilities(table: DataFrame, tmp_path: Path, outputs: int) -> None:
    loss = keras.losses.BinaryCrossentropy if outputs == 1 else keras.losses.SparseCategoricalCrossentropy
    given = loss(from_logits=True)
    plain = table.withColumn("label", F.col("label").cast("long"))  # no names: three outputs, two classes
    estimator = _estimator(keras_model_config=_network(outputs, None).to_json(), loss=given, metrics=[])
    estimator.save(str(tmp_path / "estimator"))
    model = SeedlingsEstimator.load(str(tmp_path / "estimator")).fit(plain)
    model.save(str(tmp_path / "model"))
    found = SeedlingsModel.load(str(tmp_path / "model")).transform(plain)
    logits = model.get_model().predict(_matrix(plain, "features"), verbose=0).astype(np.float64)
    if outputs == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    expected = scipy.special.softmax(logits, axis=1)
    np.testing.assert_allclose(_matrix(found, "probability"), expected, atol=1e-6)
    np.testing.assert_array_equal(_matrix(found, "prediction"), expected.argmax(axis=1))
    raw = _matrix(found, "rawPrediction")
    np.testing.assert_allclose(
        raw[:, 1] - raw[:, 0], (logits[:, 1] - logits[:, 0]) * (2 if outputs == 1 else 1), atol=1e-5
    )
    published = keras.saving.load_model(tmp_path / "model" / "network.keras", compile=False)
    np.testing.assert_allclose(
        published.predict(_matrix(plain, "features"), verbose=0), expected[:, -outputs:], atol=1e-6
    )
    assert (model.numClasses, model.numFeatures) == (max(2, outputs), 8)


def test_sparks_evaluators_and_one_vs_rest_work_with_their_defaults(table: DataFrame) -> None:
    binary = _estimator(
        keras_model_config=_network(1, "sigmoid").to_json(),
        loss="bce",
        epochs=np.int64(6),
        batch_size=np.int32(16),
    )
    found = binary.fit(table).setProbabilityCol("").transform(table)
    assert "probability" not in found.columns
    area = keras.metrics.AUC(num_thresholds=10_000)
    area.update_state(_matrix(table, "label"), scipy.special.expit(_matrix(found, "rawPrediction")[:, 1]))
    assert abs(BinaryClassificationEvaluator().evaluate(found) - float(area.result())) < 1e-3
    three = table.withColumn("label", F.when(F.col("total") > 2, 2.0).otherwise(F.col("label")))
    rest = OneVsRest(classifier=binary.setPredictionCol("guess"), predictionCol="chosen")
    predicted = rest.fit(three).transform(three)
    assert MulticlassClassificationEvaluator(predictionCol="chosen").evaluate(predicted) > 0.7


def test_labels_with_an_element_for_each_output(table: DataFrame) -> None:
    pair = table.withColumn("pair", array_to_vector(F.array(F.col("total"), 2 * F.col("total") + 1)))
    regression = _estimator(
        keras_model_config=_network(2, None).to_json(), loss="mse", metrics=["mae"], labelCol="pair", epochs=1
    ).fit(pair)
    expected = regression.get_model().predict(_matrix(pair, "features"), verbose=0)
    np.testing.assert_allclose(_matrix(regression.transform(pair), "prediction"), expected, atol=1e-5)
    several = table.withColumn(
        "set", F.array(F.col("label"), 1 - F.col("label"), (F.col("total") > 0).cast("int"))
    )
    multilabel = _estimator(
        keras_model_config=_network(3, "sigmoid").to_json(), loss="bce", labelCol="set", epochs=20
    ).fit(several)
    found = multilabel.transform(several)
    expected = multilabel.get_model().predict(_matrix(several, "features"), verbose=0)
    np.testing.assert_allclose(_matrix(found, "probability"), expected, atol=1e-6)
    for row, outputs in zip(found.orderBy("id").collect(), expected, strict=True):
        assert row.prediction == np.flatnonzero(outputs >= 0.5).tolist()
    assert ((expected > 0.5) == _matrix(several, "set")).mean() > 0.8
    # One-hot vectors are the class numbers that they are made of.
    one_hot = table.withColumn("hot", F.array(1 - F.col("label"), F.col("label")))
    # Hashes of their rows would differ by the label: marked ones decide the shards instead.
    key = schema.with_content_hash(
        one_hot.withColumn("content_hash", F.sha2(F.col("id").cast("string"), 256))
    )
    by_vector, by_number = (
        _estimator(loss="categorical_crossentropy", labelCol=name, class_weight={0: 1, 1: np.float64(3)}).fit(
            key
        )
        for name in ("hot", "label")
    )
    assert _bits(by_vector) == _bits(by_number)


def _own_crossentropy(labels: Any, outputs: Any) -> Any:
    return keras.losses.sparse_categorical_crossentropy(labels, outputs)


def test_a_loss_of_ones_own_is_asked_what_it_is_for(table: DataFrame, first_run: SeedlingsModel) -> None:
    with pytest.raises(OptionError, match="set problem to 'classification'"):
        _estimator(loss=_own_crossentropy).fit(table)
    with pytest.raises(OptionError, match="set problem to 'classification'"):
        _estimator(loss="mean_squared_error").fit(table)
    told = _estimator(loss=_own_crossentropy, problem="classification").fit(table)
    for weight, expected in zip(told.weights, first_run.weights, strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)
    assert told.transform(table).first().probability.size == 2


def test_balanced_weights_count_in_a_binary_problem_too(table: DataFrame) -> None:
    few = table.where((F.col("label") == 0) | (F.col("id") % 4 == 0))
    counts = [few.where(F.col("label") == number).count() for number in (0, 1)]
    weights = {number: sum(counts) / (2 * count) for number, count in enumerate(counts)}
    params = {"keras_model_config": _network(1, "sigmoid").to_json(), "loss": "bce", "epochs": 1}
    balanced, given, none = (
        _estimator(class_weight=value, **params).fit(few) for value in ("balanced", weights, "")
    )
    assert _bits(balanced) == _bits(given) != _bits(none)


class _Largest(keras.metrics.Metric):
    """Keeps a maximum, which no sum over workers gives."""

    def __init__(self, name: str = "largest", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.largest = self.add_weight(name="value", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(y_pred)))

    def result(self) -> Any:
        return self.largest


def test_metrics_are_those_of_keras_also_if_they_are_arrays(table: DataFrame) -> None:
    metrics = [
        keras.metrics.F1Score(average=None),
        {"class_name": "AUC", "config": {"name": "area"}},
        "auc",
        keras.metrics.Precision(thresholds=[0.3, 0.6], name="precisions"),
        keras.metrics.TruePositives(name="hits"),
        keras.metrics.R2Score(class_aggregation=None, name="r2"),
        "categorical_accuracy",
    ]
    held = table.withColumn("held", F.col("id") % 3 == 0)
    told: list[dict[str, Any]] = []
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: told.append(dict(logs)))
    estimator = _estimator(
        loss="categorical_crossentropy", metrics=metrics, validationIndicatorCol="held", epochs=2
    )
    model = estimator.set_callbacks([record]).fit(held)
    reference = model.get_model()
    metrics[2] = keras.metrics.AUC(name="auc")
    reference.compile(
        loss="categorical_crossentropy", metrics=[keras.metrics.get(metric) for metric in metrics]
    )
    rows = held.where("held")
    labels = np.eye(2, dtype="float32")[_matrix(rows, "label").astype(int)]
    expected = reference.evaluate(_matrix(rows, "features"), labels, return_dict=True, verbose=0)
    assert np.shape(model.history["val_f1_score"]) == (2, 2)
    for name, value in expected.items():
        np.testing.assert_allclose(
            model.history[f"val_{name}"][-1], value, rtol=1e-5, atol=1e-6, err_msg=name
        )
        np.testing.assert_allclose(told[-1][f"val_{name}"], value, rtol=1e-5, atol=1e-6)
    with pytest.raises(OptionError, match="metric 'largest'"):
        _estimator(metrics=[_Largest()]).fit(table)


def test_a_saved_model_predicts_what_it_did_bit_for_bit(
    table: DataFrame, first_run: SeedlingsModel, tmp_path: Path
) -> None:
    path = str(tmp_path / "a model")
    first_run.save(path)
    loaded = SeedlingsModel.load(path)
    assert loaded.history == first_run.history and loaded.uid == first_run.uid
    before, after = (
        [row.probability.toArray().tobytes() for row in model.transform(table).orderBy("id").collect()]
        for model in (first_run, loaded)
    )
    assert before == after


def test_pipelines_are_saved_loaded_and_searched_over(table: DataFrame, tmp_path: Path) -> None:
    plain = table.select("id", "features", "species")
    stages = [
        StringIndexer(inputCol="species", outputCol="label", stringOrderType="alphabetAsc"),
        StandardScaler(inputCol="features", outputCol="scaled", withMean=True),
        _estimator(featuresCol="scaled", epochs=2),
    ]
    Pipeline(stages=stages).save(str(tmp_path / "pipeline"))
    loaded = Pipeline.load(str(tmp_path / "pipeline"))
    model = loaded.fit(plain)
    assert _bits(model.stages[-1]) == _bits(Pipeline(stages=stages).fit(plain).stages[-1])
    model.write().overwrite().save(str(tmp_path / "model"))
    model.write().overwrite().save(str(tmp_path / "model"))
    again = PipelineModel.load(str(tmp_path / "model"))
    before, after = (
        [row.probability for row in one.transform(plain).orderBy("id").collect()] for one in (model, again)
    )
    assert before == after

    estimator = loaded.getStages()[-1]
    grid = ParamGridBuilder().addGrid(estimator.epochs, [1, 12]).build()
    search = CrossValidator(
        estimator=loaded,
        estimatorParamMaps=grid,
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        numFolds=2,
        seed=1,
    ).fit(plain)
    assert search.avgMetrics[1] > search.avgMetrics[0]
    assert len(search.bestModel.stages[-1].history["loss"]) == 12


def test_a_network_is_saved_with_its_estimator_and_trained_on_with_all_that_it_has_adapted(
    table: DataFrame, tmp_path: Path
) -> None:
    """Nothing of the user's is changed by a fit either."""
    features = np.array([row.features.toArray() for row in table.select("features").collect()])
    normalization = keras.layers.Normalization()
    normalization.adapt(features * 7 + 100)
    network = keras.Sequential([keras.Input((8,)), normalization, *_network().layers])
    before = [weight.copy() for weight in network.get_weights()]
    config = keras.optimizers.serialize(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    )
    given = copy.deepcopy(config)
    estimator = _estimator(optimizer_config=config, metrics=["accuracy"], epochs=1).set_network(network)
    first = estimator.fit(table)
    assert config == given
    assert all(np.array_equal(*pair) for pair in zip(before, network.get_weights(), strict=True))
    estimator.save(str(tmp_path / "estimator"))
    again = SeedlingsEstimator.load(str(tmp_path / "estimator")).fit(table)
    assert _bits(again) == _bits(first)
    trained = first.get_model().layers[0]
    np.testing.assert_allclose(np.ravel(trained.mean), (features * 7 + 100).mean(0), rtol=1e-4)
    assert _bits(estimator.copy({estimator.keras_model_config: _network().to_json()}).fit(table)) == _bits(
        _estimator(optimizer_config=config, epochs=1).fit(table)
    )


def test_weights_and_callbacks_that_are_given_are_used(table: DataFrame) -> None:
    network = _network()
    network.set_weights([np.zeros_like(weight) for weight in network.get_weights()])
    epochs: list[int] = []
    estimator = _estimator(optimizer_config={"class_name": "SGD", "config": {"learning_rate": 0.0}})
    estimator.set_network(network)
    estimator.set_callbacks(
        [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))]
    )
    model = estimator.fit(table)
    assert epochs == [0, 1, 2] and not any(weight.any() for weight in model.weights)


def test_rows_that_the_network_has_no_numbers_for_are_refused(spark: SparkSession) -> None:
    network = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3, "softmax", kernel_initializer="ones")]
    )
    model = SeedlingsModel.from_network(network, ["a", "b", "c"], features_col="features")
    rows = [(Vectors.dense(1.0, 2.0),), (Vectors.dense(float("nan"), 2.0),)]
    table = spark.createDataFrame(rows, ["features"]).coalesce(1)
    with pytest.raises(PythonException, match=r"no numbers \(NaN\) from the network for 1 of 2 rows"):
        model.transform(table).collect()


@pytest.fixture(scope="module")
def prepared(
    spark: SparkSession, drawn_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> corpus.Corpus:
    task = decoding.DecodeTask((32, 32), "crop", images.FORMATS, 10**6, 10**7)
    return corpus.prepare(
        spark,
        drawn_images.as_uri(),
        (tmp_path_factory.mktemp("prepared") / "corpus").as_uri(),
        task,
        corpus.SplitRule({"train": 0.7, "validation": 0.15, "test": 0.15}, "stratified"),
    )


def test_images_train_with_their_mean_and_std_folded_in(spark: SparkSession, prepared: corpus.Corpus) -> None:
    table = pipeline.training_images(spark, prepared)
    estimator = SeedlingsEstimator(
        loss="sparse_categorical_crossentropy",
        num_workers=2,
        epochs=1,
        batch_size=16,
        class_weight="balanced",
    )
    pipeline.set_network(estimator, "plain", prepared)
    model = pipeline.pipeline(prepared, estimator, scaler="channel", scaler_images=0).fit(table)
    assert model.stages[-1].record["held_out_rows"] == prepared.num_images("validation")
    network = model.stages[-1].get_model()
    rows = prepared.images(spark, schema.TRAIN).collect()
    pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(32, 32, 3) for row in rows]).astype(
        np.float64
    )
    standardised = network.get_layer("standardization")(pixels.astype("float32")).numpy()
    assert np.abs(standardised.mean(axis=(0, 1, 2))).max() < 1e-3
    assert np.abs(standardised.std(axis=(0, 1, 2)) - 1).max() < 1e-2
    predicted = model.transform(prepared.images(spark, schema.TEST).drop("species"))
    outputs = network.predict(
        np.stack([np.frombuffer(row.image, np.uint8).reshape(32, 32, 3) for row in predicted.collect()]),
        verbose=0,
    )
    found = np.stack([row.probability.toArray() for row in predicted.collect()])
    assert np.abs(found - outputs).max() < 1e-5
    assert predicted.select("predicted_species").distinct().count() >= 1


def test_images_that_prepare_has_written_are_not_read_to_look_at_them(
    spark: SparkSession, prepared: corpus.Corpus
) -> None:
    table = prepared.images(spark, schema.TRAIN).withColumn("label", F.lit(0.0))
    unread = table.withColumn(schema.IMAGE, F.raise_error(F.lit("this image was read")).cast("binary"))
    chosen = TrainingColumns(schema.IMAGE, "label")
    problem = Problem("classification", "index", 2, 2)
    recipe: Any = SimpleNamespace(row_shape=(32, 32, 3), row_dtype="uint8")
    chosen.check(unread, recipe, problem)
    recipe.row_shape = (33, 33, 3)
    with pytest.raises(CorpusError, match=r"another number of values, such as 3072. Expected 3,267"):
        chosen.check(table, recipe, problem)
    # Cut short since, they are refused by the worker that is given them.
    cut = table.withColumn(schema.IMAGE, F.substring(schema.IMAGE, 1, 100))
    network = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    )
    estimator = _estimator(keras_model_config=network.to_json(), featuresCol=schema.IMAGE, num_workers=1)
    with pytest.raises(CorpusError, match=r"worker 0: a row whose features have 100 values"):
        estimator.fit(cut)


def test_quarters_of_difficulty_are_those_of_each_class_and_of_rows_to_train_on(spark: SparkSession) -> None:
    draw = np.random.default_rng(0)
    values = np.round(draw.normal(size=200), 1)  # some are equal
    labels, held_out = draw.integers(0, 3, 200), draw.uniform(size=200) < 0.2
    rows = [
        (float(label), [float(number)], bool(held), float(value))
        for number, (label, held, value) in enumerate(zip(labels, held_out, values, strict=True))
    ]
    table = spark.createDataFrame(rows, "label double, features array<double>, held boolean, hard double")
    chosen = TrainingColumns("features", "label", held_out="held", difficulty="hard")
    for are_classes in (True, False):
        dealt = chosen.deal(table, 2, 0.0, are_classes=are_classes)
        levels = {int(row.features[0]): row.level for row in rows_of_workers(dealt, 2, 1).collect()}
        for number in np.flatnonzero(~held_out):
            alike = ~held_out & ((labels == labels[number]) | (not are_classes))
            edges = np.percentile(values[alike], [25, 50, 75])
            assert levels[int(number)] == (values[number] > edges).sum()
        assert {levels[int(number)] for number in np.flatnonzero(held_out)} == {0}
    with pytest.raises(OptionError, match="curriculum_epochs=2 with epochs=2"):
        _estimator(curriculum="hard", num_workers=1, epochs=2, curriculum_epochs=2).fit(table)
    for column, words in (("nothing", "no column"), ("features", "of type array<double> as curriculum")):
        with pytest.raises(CorpusError, match=words):
            _estimator(curriculum=column, num_workers=1).fit(table)
    with pytest.raises(CorpusError, match="whose difficulty 'hard' is missing or not finite, such as NULL"):
        _estimator(curriculum="hard", num_workers=1).fit(
            table.withColumns({"label": F.lit(0.0), "hard": F.nullif("hard", F.lit(0.1))})
        )


def test_augmentation_and_dropout_repeat_bit_for_bit(spark: SparkSession, prepared: corpus.Corpus) -> None:
    from seedlings_spark.choices import AUGMENTATIONS
    from seedlings_spark.models import networks

    table = pipeline.training_images(spark, prepared).withColumn(
        "label", F.pmod(F.hash("species"), F.lit(12))
    )
    network = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(4, 5, strides=4, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="softmax"),
        ]
    )
    runs = [
        SeedlingsEstimator(
            keras_model_config=network.to_json(),
            loss="sparse_categorical_crossentropy",
            featuresCol="image",
            augmentation=networks.augmentation(AUGMENTATIONS, (32, 32)),
            epochs=1,
            batch_size=8,
            seed=seed,
        ).fit(table)
        for seed in (3, 3)
    ]
    assert _bits(runs[0]) == _bits(runs[1])


@pytest.mark.parametrize("frequency", ["batch", "epoch"])
def test_a_run_that_is_taken_up_again_ends_with_the_same_bits(
    table: DataFrame, tmp_path: Path, frequency: str
) -> None:
    def run(epochs: int, path: str) -> SeedlingsModel:
        stop = keras.callbacks.EarlyStopping(
            "val_loss", patience=3, restore_best_weights=True, min_delta=0.01
        )
        plateau = keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=0.2, factor=0.5)
        estimator = _estimator(epochs=epochs, validation_split=0.2, frequency=frequency, checkpoint_path=path)
        return estimator.set_callbacks([stop, plateau]).fit(table)

    straight = run(5, str(tmp_path / "straight"))
    run(2, str(tmp_path / "taken up"))
    resumed = run(5, str(tmp_path / "taken up"))
    assert _bits(resumed) == _bits(straight)
    assert resumed.history == straight.history
    assert straight.history["learning_rate"][-1] < straight.history["learning_rate"][0]
    # A damaged newest checkpoint: the one before it counts, and the end is the same.
    newest = sorted((tmp_path / "taken up").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert _bits(run(5, str(tmp_path / "taken up"))) == _bits(straight)


class _Dies(keras.callbacks.Callback):  # type: ignore[misc]
    """Makes the network worse after two epochs, and ends the run in the third one where it is told to."""

    checkpointed = ()

    def __init__(self, dies: bool) -> None:
        super().__init__()
        self._dies = dies

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.02 if epoch < 2 else -0.2

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._dies and epoch == 2:
            raise InterruptedError("killed")


def test_a_run_that_dies_after_its_best_epoch_keeps_that_one_all_the_same(
    table: DataFrame, tmp_path: Path
) -> None:
    def run(path: str, *, dies: bool = False) -> SeedlingsModel:
        estimator = _estimator(epochs=4, validation_split=0.2, checkpoint_path=str(tmp_path / path))
        kept = pipeline.KeptWeights("val_loss", patience=4, restore_best_weights=True)
        return estimator.set_callbacks([kept, _Dies(dies)]).fit(table)

    straight = run("straight")
    losses = straight.history["val_loss"]
    assert len(losses) == 4 and min(losses) == losses[1] < losses[2] < losses[3]
    with pytest.raises(Exception, match="killed"):
        run("killed", dies=True)
    resumed = run("killed")
    assert resumed.history == straight.history
    assert _bits(resumed) == _bits(straight)
    two = _estimator(epochs=2, validation_split=0.2).fit(table)
    assert _bits(straight) == _bits(two)  # the weights that the second epoch ended with


def test_a_checkpoint_of_other_options_or_rows_is_refused(table: DataFrame, tmp_path: Path) -> None:
    _estimator(epochs=1, checkpoint_path=str(tmp_path)).fit(table)
    with pytest.raises(OptionError, match="other options"):
        _estimator(epochs=1, seed=1, checkpoint_path=str(tmp_path)).fit(table)
    one_label = F.when(F.col("id") == 7, 1.0 - F.col("label")).otherwise(F.col("label"))
    with pytest.raises(OptionError, match="other rows"):
        _estimator(epochs=2, checkpoint_path=str(tmp_path)).fit(table.withColumn("label", one_label))
    # The same rows in another order and number of partitions are the same.
    again = table.orderBy(F.col("id").desc()).repartition(5)
    assert len(_estimator(epochs=2, checkpoint_path=str(tmp_path)).fit(again).history["loss"]) == 2


def test_a_column_that_is_called_content_hash_and_is_not_ours_decides_nothing(table: DataFrame) -> None:
    """Neither numbers nor short texts are dealt evenly by their last digits, which were those of a hash."""
    options = {"epochs": 1, "validation_split": 0.3}
    expected = _estimator(**options).fit(table)
    for other in (F.col("id"), F.lit("ab"), F.lit(None).cast("string")):
        found = _estimator(**options).fit(table.withColumn("content_hash", other))
        assert _bits(found) == _bits(expected)
        assert found.record["held_out_rows"] == expected.record["held_out_rows"] > 30


def test_the_server_takes_a_free_port_of_the_range_that_a_firewall_lets_through(
    table: DataFrame, free_port: int
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen(1)
        with pytest.raises(ClusterError, match=f"no port of {free_port} on"):
            _estimator(server_port=str(free_port)).fit(table)
        _estimator(server_port=f"{free_port}-{free_port + 20}", epochs=1).fit(table)


def test_a_network_with_a_layer_of_ones_own_trains_and_predicts(table: DataFrame) -> None:
    class Doubling(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return 2.0 * inputs

    network = keras.Sequential([keras.Input((8,)), Doubling(), keras.layers.Dense(2, activation="softmax")])
    estimator = _estimator(keras_model_config=network.to_json(), epochs=1)
    estimator.set_custom_objects({"Doubling": Doubling})
    model = estimator.fit(table)
    kernel, bias = model.weights
    for row in model.transform(table).limit(5).collect():
        logits = 2.0 * row.features.toArray() @ kernel + bias
        expected = np.exp(logits) / np.exp(logits).sum()
        assert np.abs(row.probability.toArray() - expected).max() < 1e-5


def _longest_batch(task: Any, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """A worker that only looks at what it is fed; the rows of the longest batch stand for the images."""
    numbers = [field.split()[0] for field in SUMMARY.split(",")]
    longest = max(batch.num_rows for batch in batches)
    yield pa.RecordBatch.from_pydict(
        {name: [longest if name in ("rank", "images") else 0.0] for name in numbers}
    )


def test_workers_are_fed_by_megabytes_whatever_number_of_rows_that_is(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "run", _longest_batch)
    rows = spark.range(400).selectExpr("unhex(repeat('00', 65536)) AS features").repartition(1)
    recipe = SimpleNamespace(row_shape=(128, 512), row_dtype="uint8", threads=1)
    task = SimpleNamespace(recipe=recipe, num_workers=1, is_barrier=False)
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before, ended = spark.conf.get(name), queue.SimpleQueue[Any]()
    launcher = stage.StageLauncher(lambda num_workers: rows, spark, "feeds")
    with session.arrow_batches(spark, 8):  # somebody else's, of small rows, at the same time
        attempt = launcher.launch(cast(Any, task), lambda *found: ended.put(found))
        found, error = ended.get()
        assert attempt.join(HANG_SECONDS)
        assert spark.conf.get(name) == "10000"
    assert error is None
    assert found[0]["images"] == session.ARROW_BATCH_BYTES // 65536 == 128
    assert spark.conf.get(name) == before


def test_any_number_of_workers_trains_the_same_bits_and_takes_up_what_others_left(
    table: DataFrame, tmp_path: Path
) -> None:
    def fit(num_workers: int | str, epochs: int, folder: str, **given: Any) -> Any:
        given = {"shards": 3, "validation_split": 0.2, "checkpoint_path": folder, **given}
        return _estimator(num_workers=num_workers, epochs=epochs, **given).fit(table)

    folder = str(tmp_path / "checkpoints")
    whole = fit("auto", 3, "")  # there is room for two
    fit(1, 2, folder)
    with pytest.raises(OptionError, match=r"other options: shards 3 instead of 2\. "):
        fit(2, 3, folder, shards=2)
    taken_up = fit(2, 3, folder)
    assert _bits(taken_up) == _bits(whole)
    assert taken_up.history == whole.history
    assert taken_up.record["rows"] == whole.record["rows"] and len(whole.record["rows"]) == 3
    assert len(whole.record["workers"]) == 2


def test_two_runs_at_once_do_not_meet(table: DataFrame) -> None:
    """Each of them listens in this process, and has one of the two slots."""

    def fit(seed: int) -> bytes:
        return _bits(_estimator(num_workers=1, seed=seed, epochs=4).fit(table))

    alone = [fit(seed) for seed in (1, 2)]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fit, (1, 2))) == alone


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
def test_a_run_without_encryption_trains_alike(table: DataFrame, mode: str) -> None:
    models = [
        _estimator(mode=mode, num_workers=1, encrypt=encrypt, epochs=2).fit(table)
        for encrypt in (True, False)
    ]
    assert _bits(models[0]) == _bits(models[1])
