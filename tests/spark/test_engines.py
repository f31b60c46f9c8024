"""Which engine scores, what it leaves behind, and that no worker loads TensorFlow where ONNX Runtime can."""

import json
import uuid
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from seedlings_spark import files, images, scoring
from seedlings_spark.cluster import session
from seedlings_spark.config import ScoringOptions
from seedlings_spark.errors import NetworkError, OptionError, StoreError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.workflow import predicting, publication
from tests import pictures
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


def score(spark: SparkSession, version: ModelVersion, folder: Path, output: Path, engine: str) -> Any:
    options = ScoringOptions(
        files.qualify(str(folder)), output=files.qualify(str(output)), engine=engine, review=0
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
    spark: SparkSession, store: ModelStore, version: ModelVersion, folder: Path, tmp_path: Path
) -> None:
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
    for engine, name in (("auto", "onnxruntime"), ("tensorflow", "tensorflow")):
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
        reason = "a network that has no ONNX form: it uses Bucketize, which ONNX does not have"
        assert version.manifest["onnx"] == {"missing": reason}
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
