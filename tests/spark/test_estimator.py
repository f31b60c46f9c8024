"""The estimator and its model on a real Spark: exactness, repeatability, lost workers, persistence."""

import copy
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from elephas.ml_model import ElephasEstimator, ElephasTransformer
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import StandardScaler, StringIndexer
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from seedlings_spark import corpus, images, pipeline, reading, schema
from seedlings_spark.errors import ClusterError, CorpusError, NetworkError, OptionError, TrainingError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel, uneven_shares
from seedlings_spark.training.progress import Silent
from tests.spark.processes import kill_one_worker, listening_ports


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
        ({"server_port": "http"}, OptionError, "server_port='http'"),
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


def test_an_unknown_param_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="num_wokers"):
        SeedlingsEstimator(num_wokers=2)


def test_fewer_rows_than_workers_are_refused(table: DataFrame) -> None:
    with pytest.raises(CorpusError, match="1 rows to train on"):
        _estimator().fit(table.limit(1))


def test_rows_without_a_label_are_refused(table: DataFrame) -> None:
    broken = table.withColumn("label", F.when(F.col("id") != 7, F.col("label")))
    with pytest.raises(TrainingError, match=r"worker \d: a row without a label"):
        _estimator().fit(broken)


def test_features_of_another_size_are_refused(table: DataFrame) -> None:
    wider = keras.Sequential([keras.Input((9,)), keras.layers.Dense(2, activation="softmax")])
    with pytest.raises(TrainingError, match=r"8 values.*9 values"):
        _estimator(keras_model_config=wider.to_json()).fit(table)


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
    assert predictions.columns == [*table.columns, "prediction", "probability", "predicted_species"]
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


@pytest.mark.parametrize(("frequency", "rounds"), [("batch", {2, 3, 6, 9, 14}), ("epoch", {1, 2})])
def test_killed_workers_change_no_bit(table: DataFrame, frequency: str, rounds: set[int]) -> None:
    calm = _estimator(frequency=frequency).fit(table)
    killed = _estimator(frequency=frequency).set_progress(KillWorkers(rounds)).fit(table)
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
    broken = table.withColumn("label", F.lit(9.0))
    with pytest.raises(TrainingError, match="labels from 9 to 9"):
        _estimator().fit(broken)
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


@pytest.fixture(scope="module")
def prepared(
    spark: SparkSession, drawn_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> corpus.Corpus:
    task = reading.DecodeTask((32, 32), "crop", images.FORMATS, 10**6, 10**7)
    return corpus.prepare(
        spark,
        drawn_images.as_uri(),
        (tmp_path_factory.mktemp("prepared") / "corpus").as_uri(),
        task,
        split_policy="stratified",
        shares={"train": 0.7, "validation": 0.15, "test": 0.15},
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


def test_augmentation_and_dropout_repeat_bit_for_bit(spark: SparkSession, prepared: corpus.Corpus) -> None:
    from seedlings_spark import networks

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
            augmentation=networks.augmentation(["flip", "turn", "zoom", "contrast"], (32, 32)),
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


def test_shares_far_from_what_was_asked_are_said_with_their_numbers() -> None:
    assert uneven_shares([350, 360], [140, 150], 0.3) == []
    assert uneven_shares([7, 0], [0, 0], 0.0) == []  # chance
    (held_out,) = uneven_shares([250, 250], [0, 500], 0.3)
    assert "500 of 1,000 rows are held out, 50.0% where 30.0% were asked for" in held_out
    (workers,) = uneven_shares([750, 250], [0, 0], 0.0)
    assert "750, 250 rows" in workers


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
