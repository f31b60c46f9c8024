"""Which engine scores, what it leaves behind, and that no worker loads TensorFlow where ONNX Runtime can."""

import json
import uuid
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from seedlings_spark import corpus as corpora
from seedlings_spark import exports, files, images, scoring, workflow
from seedlings_spark.cluster import session
from seedlings_spark.config import EvaluateOptions, ModelsOptions, ScoringOptions
from seedlings_spark.corpus import Corpus, decoding
from seedlings_spark.errors import NetworkError, OptionError, StoreError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.models import export
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.scoring import tasks
from seedlings_spark.workflow import predicting, publication
from tests import pictures
from tests.conftest import with_all
from tests.spark.test_scoring import SIZE, tiny_network

CLASSES = ["Maize", "Charlock", "Cleavers"]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, *SIZE, 3), dtype=np.uint8)


def imported(store: ModelStore, folder: Path, made: Any) -> ModelVersion:
    made.save(folder / "made.keras")
    return publication.import_network(
        store, str(folder / "made.keras"), CLASSES, aspect="stretch", promote=True, outputs="auto"
    )


@pytest.fixture(scope="module")
def store(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("engines")
    made = ModelStore(files.qualify(str(folder / "store")), "imported")
    imported(made, folder, tiny_network(3))
    return made


@pytest.fixture(scope="module")
def version(store: ModelStore) -> ModelVersion:
    return store.resolve("v0001")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(PIXELS):
        pictures.write(folder, f"{number:02d}.png", images.encode_png(pixels))
    return folder


def score(
    spark: SparkSession,
    version: ModelVersion,
    folder: Path,
    output: Path,
    engine: str,
    precision: str = "auto",
) -> Any:
    options = ScoringOptions(
        files.qualify(str(folder)),
        output=files.qualify(str(output)),
        engine=engine,
        precision=precision,
        review=0,
    )
    run = scoring.score(spark, version, options)
    rows = spark.read.parquet(f"{run.tables_path}/predictions").orderBy("path").collect()
    return run.manifest, np.array([row.probabilities for row in rows], "float32")


def rows_of(spark: SparkSession) -> Any:
    made = [(place, bytearray(each.tobytes())) for place, each in enumerate(PIXELS)]
    return spark.createDataFrame(made, "place int, image binary")


def libraries_of(variable: str) -> str:
    """What the Python processes with this environment variable have mapped."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and variable.encode() in (process / "environ").read_bytes():
                found.append((process / "maps").read_text())
        except OSError:  # it has ended, or is another's
            continue
    assert found
    return "\n".join(found)


def test_a_version_has_its_network_for_onnx_runtime_too(version: ModelVersion) -> None:
    assert version.has_onnx and version.onnx_path.endswith("/v0001/network.onnx")
    assert version.manifest["onnx"]["compared_on"] == "drawn"
    assert version.manifest["onnx"]["largest_difference"] <= 1e-5
    version.check_files()
    assert files.list_names(version.path) == ["manifest.json", "model", "network.keras", "network.onnx"]


def test_no_worker_that_scores_loads_tensorflow(
    spark: SparkSession,
    store: ModelStore,
    version: ModelVersion,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "FEW_BYTES", 0)  # which the driver would score itself
    name = f"engines_{uuid.uuid4().hex}"
    content = spark.read.format("binaryFile").load(files.qualify(str(folder)))
    with session.python_environment(spark, {"SEEDLINGS_TEST": name}):
        score(spark, version, folder, tmp_path / "scores", "auto")
        scoring.register(spark, name, store.directory, "v0001", model=store.name)
        model = predicting.load(version)
        transformed = model.transform(rows_of(spark))
    assert content.selectExpr(f"{name}(content) AS species").where("species IS NOT NULL").count() == 40
    assert len(transformed.collect()) == 40
    loaded = libraries_of(f"SEEDLINGS_TEST={name}")
    assert "/onnxruntime/" in loaded and "libtensorflow" not in loaded
    with session.python_environment(spark, {"SEEDLINGS_TEST": name}):
        score(spark, version, folder, tmp_path / "others", "tensorflow")
    assert "libtensorflow" in libraries_of(f"SEEDLINGS_TEST={name}")


def test_each_engine_gives_keras_predictions_and_says_who_it_is(
    spark: SparkSession, version: ModelVersion, folder: Path, tmp_path: Path
) -> None:
    expected = tiny_network(3).predict(PIXELS.astype("float32"), verbose=0)
    for engine, name in (("auto", "onnxruntime"), ("tensorflow", "tensorflow"), ("openvino", "openvino")):
        manifest, found = score(spark, version, folder, tmp_path / engine, engine)
        assert manifest["engine"]["name"] == name and manifest["engine"]["version"][0].isdigit()
        assert manifest["precision"] == "float32"
        np.testing.assert_allclose(found, expected, atol=1e-5)
    _, same = score(spark, version, folder, tmp_path / "again", "onnxruntime")
    _, auto = score(spark, version, folder, tmp_path / "and again", "auto")
    assert np.array_equal(same, auto)


def test_sql_and_a_loaded_pipeline_give_the_bits_of_score(
    spark: SparkSession, store: ModelStore, version: ModelVersion, folder: Path, tmp_path: Path
) -> None:
    _, scored = score(spark, version, folder, tmp_path / "scores", "auto")
    scoring.register(spark, "bits", store.directory, "v0001", model=store.name)
    content = spark.read.format("binaryFile").load(files.qualify(str(folder))).orderBy("path")
    rows = content.selectExpr("bits_details(content).probabilities AS found").collect()
    assert np.array_equal(np.array([row.found for row in rows], "float32"), scored)
    found = predicting.load(version).transform(rows_of(spark)).orderBy("place").collect()
    assert np.array_equal(np.array([row.probability.toArray() for row in found], "float32"), scored)


def test_a_model_uses_onnx_runtime_once_it_is_told_to_and_what_is_saved_predicts_the_same_bits(
    spark: SparkSession, tmp_path: Path
) -> None:
    made, rows = tiny_network(3, None), rows_of(spark)
    model = SeedlingsModel.from_network(made, CLASSES)

    def predicted(model: Any) -> Any:
        found = model.transform(rows).orderBy("place").collect()
        return np.array([[*row.probability.toArray(), *row.rawPrediction.toArray()] for row in found])

    with_tensorflow = predicted(model)
    assert model.use_onnx(PIXELS)["compared_on"] == "given"
    with_onnx = predicted(model)
    assert not np.array_equal(with_onnx, with_tensorflow)
    np.testing.assert_allclose(with_onnx, with_tensorflow, atol=1e-5)
    np.testing.assert_allclose(with_onnx[:, 3:], made.predict(PIXELS.astype("float32"), verbose=0), atol=1e-5)
    PipelineModel([model]).write().save(str(tmp_path / "saved"))
    predicting.check_stages(files.qualify(str(tmp_path / "saved")))
    loaded = PipelineModel.load(str(tmp_path / "saved")).stages[0]
    assert loaded.onnx_bytes == model.onnx_bytes and np.array_equal(predicted(loaded), with_onnx)
    loaded.set(loaded.engine, "tensorflow")
    assert np.array_equal(predicted(loaded), with_tensorflow)
    # Numbers that are no pixels are TensorFlow's, whose network takes them.
    numbers = spark.createDataFrame([(PIXELS[0].ravel() / 7).tolist() for _ in "a"], "array<double>")
    (row,) = loaded.copy({loaded.engine: "auto"}).transform(numbers.toDF("image")).collect()
    assert np.abs(row.rawPrediction.toArray() - with_onnx[0, 3:]).max() > 1e-3
    (file,) = (tmp_path / "saved").rglob("network.onnx")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(NetworkError, match=r"network\.onnx, whose SHA-256"):
        PipelineModel.load(str(tmp_path / "saved"))


def test_a_network_without_an_onnx_form_is_published_and_scored_by_tensorflow(
    spark: SparkSession, store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    made = keras.Sequential(
        [*tiny_network(3).layers[:-1], layers.Discretization(bin_boundaries=[-0.5, 0.0, 0.5])]
    )
    made = keras.Sequential(
        [keras.Input((*SIZE, 3)), *made.layers, layers.Rescaling(0.01), layers.Dense(3, activation="softmax")]
    )
    version = imported(store, tmp_path, made)
    try:
        assert not version.has_onnx
        reason = version.manifest["onnx"]["missing"]
        assert reason.startswith("a network that has no ONNX form at its layer 'discretization")
        assert reason.endswith("(Discretization): it uses Bucketize, which ONNX does not have")
        manifest, found = score(spark, version, folder, tmp_path / "scores", "auto")
        assert manifest["engine"]["name"] == "tensorflow"
        np.testing.assert_allclose(found, made.predict(PIXELS.astype("float32"), verbose=0), atol=1e-5)
        with pytest.raises(NetworkError, match="without an ONNX file"):
            score(spark, version, folder, tmp_path / "refused", "onnxruntime")
        model = predicting.load(version).stages[-1]
        model.set(model.engine, "tensorrt")
        with pytest.raises(OptionError, match="engine 'tensorrt'"):
            model.transform(rows_of(spark))
    finally:
        store.promote("v0001")
        store.delete(version.version)


def test_an_onnx_file_that_is_not_the_published_one_is_refused(
    spark: SparkSession, store: ModelStore, version: ModelVersion, folder: Path, tmp_path: Path
) -> None:
    other = imported(store, tmp_path, tiny_network(3))
    try:
        content = files.read_bytes(other.onnx_path)
        files.write_bytes(other.onnx_path, content[:-1] + b"\x01")
        with pytest.raises(StoreError, match=r"network\.onnx, whose SHA-256"):
            score(spark, other, folder, tmp_path / "scores", "auto")
        manifest = json.loads(files.read_text(other.manifest_path))
        assert manifest["files"]["network.onnx"]["bytes"] == len(content)
    finally:
        store.promote("v0001")
        store.delete(other.version)


@pytest.fixture(scope="module")
def corpus(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    for number, pixels in enumerate(np.random.default_rng(1).integers(0, 256, (60, *SIZE, 3), "uint8")):
        pictures.write(folder / "images", f"{CLASSES[number % 3]}/{number}.png", images.encode_png(pixels))
    where = (files.qualify(str(folder / name)) for name in ("images", "corpus"))
    task = decoding.DecodeTask(SIZE, "stretch", images.FORMATS, 10_000, 100_000)
    shares = {"train": 0.5, "validation": 0.25, "test": 0.25}
    return corpora.prepare(spark, *where, task, corpora.SplitRule(shares, "stratified"))


@with_all
@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # of MLflow's own models
def test_mlflow_on_spark_gives_the_probabilities_of_score(
    spark: SparkSession, version: ModelVersion, folder: Path, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny, which brings thirty packages, is not here")
    _, scored = score(spark, version, folder, tmp_path / "scores", "auto")
    exports.export(version, "mlflow", str(tmp_path / "out"))
    of_mlflow = "predicted_species string, probabilities array<double>"
    model = (tmp_path / "out" / "model").as_uri()
    species = mlflow.pyfunc.spark_udf(spark, model, result_type=of_mlflow)
    content = spark.read.format("binaryFile").load(files.qualify(str(folder))).orderBy("path")
    rows = content.select(species("content").alias("found")).collect()
    np.testing.assert_allclose([row.found.probabilities for row in rows], scored, atol=1e-6)
    assert [row.found.predicted_species for row in rows] == [CLASSES[each] for each in scored.argmax(1)]


def check_evaluation(
    spark: SparkSession, store: ModelStore, version: ModelVersion, corpus: Corpus, report: Path
) -> None:
    """Of a quantised version `evaluate` gives the numbers of the network that it is told to take."""
    rows = corpus.images(spark, "test").orderBy("path").collect()
    pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(*SIZE, 3) for row in rows])
    for precision, name in (("float32", "network.onnx"), ("auto", "network.int8.onnx")):
        content = files.read_bytes(files.join(version.path, name))
        (plain,) = onnxruntime.InferenceSession(content).run(["probabilities"], {"features": pixels})
        options = EvaluateOptions(
            corpus.path,
            store.directory,
            files.qualify(str(report)),
            name=store.name,
            model_version=version.version,
            precision=precision,
        )
        numbers = workflow.evaluate(spark, options)
        kept = spark.read.parquet(f"{report}/predictions.parquet").orderBy("path").collect()
        np.testing.assert_allclose([row.probabilities for row in kept], plain, atol=1e-6)
        right = [CLASSES[place] == row.species for place, row in zip(plain.argmax(1), rows, strict=True)]
        assert numbers.accuracy == pytest.approx(np.mean(right))
        recorded = store.evaluation(version.version)
        assert (recorded or {}).get("accuracy") == (numbers.accuracy if precision == "auto" else None)


def test_a_version_is_quantised_if_it_stays_as_good_and_is_then_scored_so(
    spark: SparkSession,
    store: ModelStore,
    corpus: Corpus,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as context:
        context.setattr(export, "MOST_LOST", -1.0)
        with pytest.raises(NetworkError, match=r"falls from \d\.\d{4} to \d\.\d{4} in int8"):
            publication.quantize(store, "v0001", corpus, promote=False)
    options = {"model_version": "v0001", "corpus": corpus.path, "name": store.name}
    told = workflow.models(ModelsOptions("quantize", store=store.directory, **options))
    version = store.verify(told.split()[1])
    try:
        about = version.manifest["int8"]
        assert version.has_int8 and version.manifest["quantized_from"] == "v0001"
        rows = corpus.images(spark, "validation").collect()
        pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(*SIZE, 3) for row in rows])
        plain = tiny_network(3).predict(pixels.astype("float32"), verbose=0).argmax(axis=1)
        right = np.mean([CLASSES[place] == row.species for place, row in zip(plain, rows, strict=True)])
        assert about["accuracy"]["float32"] == pytest.approx(right) and about["compared_on"] == len(rows)
        manifest, found = score(spark, version, folder, tmp_path / "int8", "auto")
        assert (manifest["precision"], manifest["engine"]["name"]) == ("int8", "onnxruntime")
        _, by_name = score(spark, version, folder, tmp_path / "float32", "auto", precision="float32")
        expected = tiny_network(3).predict(PIXELS.astype("float32"), verbose=0)
        np.testing.assert_allclose(by_name, expected, atol=1e-5)
        assert 1e-5 < np.abs(found - expected).max() < 0.1
        with pytest.raises(NetworkError, match="--precision int8 for imported v0001 by onnxruntime"):
            score(spark, store.resolve("v0001"), folder, tmp_path / "none", "auto", precision="int8")
        with pytest.raises(StoreError, match=r"with network\.int8\.onnx"):
            publication.quantize(store, version.version, corpus, promote=False)
        check_evaluation(spark, store, version, corpus, tmp_path / "report")
    finally:
        store.promote("v0001")
        store.delete(version.version)
