"""From a corpus to a version: options of a run, imported networks, what is published, what is refused."""

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from pyspark.ml import Pipeline, PipelineModel, feature
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812

from seedlings_spark import config, corpus, features, files, fingerprint, images, schema, scoring
from seedlings_spark.corpus import Corpus, decoding
from seedlings_spark.errors import (
    CorpusError,
    NetworkError,
    OptionError,
    OutputInUseError,
    SeedlingsError,
    StoreError,
)
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel
from seedlings_spark.models.stages import SPARK_STAGES
from seedlings_spark.models.store import ModelStore, ModelVersion, table
from seedlings_spark.reports import drift, plots
from seedlings_spark.reports.evaluation import evaluate
from seedlings_spark.training.network import from_bytes
from seedlings_spark.training.optimizer import from_config
from seedlings_spark.workflow import curriculum, exploring, jobs, pipeline, predicting, publication
from tests.pictures import png, write

SIZE = (8, 8)
CLASSES = ["Charlock", "Fat Hen", "Maize"]


def network(size: tuple[int, ...] = (*SIZE, 3), outputs: int = 3, activation: str = "softmax") -> Any:
    return keras.Sequential(
        [keras.Input(size), layers.Flatten(), layers.Dense(outputs, activation=activation)], name="tiny"
    )


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """3 species with 12 images each."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    for species in CLASSES:
        for number in range(12):
            file = folder / "images" / species / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(images.encode_png(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)))
    task = decoding.DecodeTask(SIZE, "stretch", images.FORMATS, 10_000, 100_000)
    return corpus.prepare(
        spark,
        files.qualify(str(folder / "images")),
        files.qualify(str(folder / "corpus")),
        task,
        corpus.SplitRule({"train": 0.5, "validation": 0.25, "test": 0.25}, "stratified"),
    )


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(files.qualify(str(tmp_path / "a store")), "seedlings")


def imported(
    store: ModelStore, folder: Path, *, promote: bool = True, classes: Any = CLASSES
) -> ModelVersion:
    network().save(folder / "tiny.keras")
    return publication.import_network(
        store, str(folder / "tiny.keras"), classes, aspect="pad", promote=promote
    )


ALWAYS = publication.Promotion(True, "")


def edited(prepared: Corpus, **changes: Any) -> Corpus:
    return dataclasses.replace(prepared, manifest={**prepared.manifest, **changes})


# --- Importing a network


@pytest.mark.parametrize("classes", [CLASSES[:2], [*CLASSES, "Scentless Mayweed"], ["one"]])
def test_another_number_of_classes_is_refused(
    spark: SparkSession, store: ModelStore, tmp_path: Path, classes: list[str]
) -> None:
    with pytest.raises(NetworkError, match=rf"gives \(3,\), for {len(classes)} class names"):
        imported(store, tmp_path, classes=classes)
    assert not files.exists(store.directory)


@pytest.mark.parametrize("classes", [["Maize", "Maize", "Charlock"], ["Maize", "", "Charlock"]])
def test_class_names_that_are_not_different_names_are_refused(
    spark: SparkSession, store: ModelStore, tmp_path: Path, classes: list[str]
) -> None:
    with pytest.raises(OptionError, match="--classes 'Maize'"):
        imported(store, tmp_path, classes=classes)


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda: network((8, 8, 1)), r"takes \(8, 8, 1\)"),
        (lambda: network((192,)), r"takes \(192,\)"),
        (lambda: network((2, 8, 8, 3)), r"takes \(2, 8, 8, 3\)"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Dense(3, activation="softmax")]),
            r"\(8, 8, 3\), for",
        ),
        (lambda: network(activation="linear"), "outputs are from"),
        (lambda: network(activation="sigmoid"), "add up to"),
    ],
    ids=["grey", "vector", "video", "a mask", "no softmax", "sigmoid"],
)
def test_a_network_that_is_no_image_classifier_is_refused(
    spark: SparkSession, store: ModelStore, tmp_path: Path, made: Any, found: str
) -> None:
    made().save(tmp_path / "other.keras")
    with pytest.raises(NetworkError, match=found) as caught:
        publication.import_network(store, str(tmp_path / "other.keras"), CLASSES, aspect="pad", promote=True)
    assert str(tmp_path / "other.keras") in caught.value.found  # its own name, not that of a copy
    assert not files.exists(store.directory)


def test_a_network_whose_weights_are_not_finite_is_refused(
    spark: SparkSession, store: ModelStore, tmp_path: Path
) -> None:
    broken = network()
    broken.layers[-1].bias.assign([0.0, math.nan, 0.0])
    broken.save(tmp_path / "broken.keras")
    with pytest.raises(NetworkError, match="add up to nan"):
        publication.import_network(store, str(tmp_path / "broken.keras"), CLASSES, aspect="pad", promote=True)


@pytest.mark.parametrize(
    ("name", "found"),
    [("absent.keras", "no file"), ("text.keras", r"no \.keras file"), ("text.json", "does not end in")],
)
def test_what_is_no_network_file_is_refused_by_its_name(
    spark: SparkSession, store: ModelStore, tmp_path: Path, name: str, found: str
) -> None:
    for text in ("text.keras", "text.json"):
        (tmp_path / text).write_text("{}")
    with pytest.raises(NetworkError, match=found) as caught:
        publication.import_network(store, str(tmp_path / name), CLASSES, aspect="pad", promote=True)
    assert str(tmp_path / name) in caught.value.found


def test_an_imported_network_predicts_what_it_did(
    spark: SparkSession, store: ModelStore, tmp_path: Path
) -> None:
    version = imported(store, tmp_path)
    assert version.classes == tuple(CLASSES)
    assert version.image_size == SIZE
    assert version.manifest["aspect"] == "pad"
    assert version.manifest["precision"] == "float32"
    assert version.manifest["imported_from"] == str(tmp_path / "tiny.keras")
    assert set(version.manifest["versions"]) >= {"keras", "tensorflow", "numpy"}
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SIZE, 3), dtype=np.uint8)
    rows = spark.createDataFrame(
        [(place, bytearray(each.tobytes())) for place, each in enumerate(pixels)], "place int, image binary"
    )
    model = PipelineModel.load(version.pipeline_path)
    found = model.transform(rows).orderBy("place").collect()
    expected = keras.saving.load_model(tmp_path / "tiny.keras").predict(pixels.astype("float32"), verbose=0)
    np.testing.assert_allclose([row.probability.toArray() for row in found], expected, atol=1e-6)
    assert [row.predicted_species for row in found] == [CLASSES[place] for place in expected.argmax(axis=1)]


def test_a_version_holds_its_network_once_and_what_is_saved_from_it_is_whole(
    spark: SparkSession, store: ModelStore, tmp_path: Path
) -> None:
    version = imported(store, tmp_path)
    once = [each.path for each in files.walk(version.path) if each.path.endswith(".keras")]
    assert once == [version.network_path]
    content = files.read_bytes(version.network_path)
    PipelineModel.load(version.pipeline_path).write().save(str(tmp_path / "own"))
    assert PipelineModel.load(str(tmp_path / "own")).stages[0].network_bytes == content
    # As earlier releases wrote it: a network in the stage, and no hash.
    (stage,) = files.list_names(files.join(version.pipeline_path, "stages"))
    old = tmp_path / "old"
    shutil.copytree(files.local_path(version.pipeline_path), old)
    for part in (old / "stages" / stage / "metadata").glob("part-*"):
        metadata = json.loads(part.read_text())
        del metadata["network_sha256"], metadata["onnx_sha256"]
        part.write_text(json.dumps(metadata) + "\n")
        (part.parent / f".{part.name}.crc").unlink(missing_ok=True)
    with pytest.raises(NetworkError, match=r"no .*network\.keras"):
        PipelineModel.load(str(old))
    (old / "stages" / stage / "network.keras").write_bytes(content)
    assert PipelineModel.load(str(old)).stages[0].network_bytes == content
    files.write_bytes(version.network_path, content[:-1] + b"?")
    with pytest.raises(NetworkError, match="SHA-256"):
        PipelineModel.load(version.pipeline_path)


@pytest.mark.parametrize("is_told", [True, False], ids=["by an option", "by its loss"])
def test_a_network_of_logits_is_published_as_one_of_probabilities(
    spark: SparkSession, store: ModelStore, tmp_path: Path, is_told: bool
) -> None:
    made = network(activation="linear")
    if not is_told:
        made.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    made.save(tmp_path / "logits.keras")
    version = publication.import_network(
        store,
        str(tmp_path / "logits.keras"),
        CLASSES,
        aspect="pad",
        promote=True,
        outputs="logits" if is_told else "auto",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SIZE, 3)).astype("float32")
    files.get(version.network_path, tmp_path / "published.keras")
    found = keras.saving.load_model(tmp_path / "published.keras").predict(pixels, verbose=0)
    logits = made.predict(pixels, verbose=0).astype("float64")
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, shares / shares.sum(axis=1, keepdims=True), atol=1e-6)


def test_versions_are_imported_promoted_and_rolled_back(
    spark: SparkSession, store: ModelStore, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="no store"):
        table(store)
    first = imported(store, tmp_path, promote=False)
    with pytest.raises(StoreError, match=r"no version of seedlings .* is promoted"):
        store.resolve()
    store.promote(first.version)
    second = imported(store, tmp_path)
    assert store.resolve().version == second.version == "v0002"
    lines = table(store).splitlines()
    assert lines[0].split() == ["version", "created", "validation", "test", "network", "corpus"]
    assert [line.split() for line in lines[1:]] == [
        ["v0001", first.manifest["created"][:10], "-", "-", "tiny.keras", "-"],
        ["*", "v0002", second.manifest["created"][:10], "-", "-", "tiny.keras", "-"],
    ]
    assert store.rollback().version == "v0001"
    assert [line[0] for line in table(store).splitlines()[1:]] == ["*", " "]
    assert store.verify("v0002").version == "v0002"


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"val_accuracy": 0.87654}, "0.8765"),
        ({"val_accuracy": None}, "-"),
        ({}, "-"),
        (None, "-"),
        ({"val_accuracy": 1.0}, "1.0000"),
    ],
)
def test_the_table_of_versions_shows_the_validation_accuracy(
    store: ModelStore, metrics: Any, shown: str
) -> None:
    manifest = {"classes": CLASSES, "metrics": metrics}
    store.publish(lambda folder: files.write_bytes(f"{folder}/network.keras", b"x"), manifest)
    header, line = table(store).splitlines()
    assert line.split() == ["*", "v0001", store.resolve().manifest["created"][:10], shown, "-", "-", "-"]
    assert line[header.index("validation") :].startswith(shown)


# --- Publishing what was trained


def published(store: ModelStore, history: dict[str, list[float]], **options: Any) -> ModelVersion:
    last = SeedlingsModel.from_network(network(), CLASSES)
    last._take(last.network_bytes, history, {"rows": [3, 4], "loss": math.inf})
    about = {"image_size": list(SIZE), "aspect": "crop", "options": options}
    return publication.publish(store, PipelineModel([last]), about=about, promote=True)


def test_metrics_that_are_not_finite_are_published_as_null(spark: SparkSession, store: ModelStore) -> None:
    history = {"loss": [1.5, math.nan], "accuracy": [0.25, math.inf], "val_accuracy": [0.5, math.nan]}
    version = published(store, history)
    manifest = json.loads(files.read_text(version.manifest_path), parse_constant=pytest.fail)
    assert manifest["metrics"] == {"loss": None, "accuracy": None, "val_accuracy": None}
    assert manifest["history"]["loss"] == [1.5, None]
    assert manifest["training"] == {"rows": [3, 4], "loss": None}
    written = files.read_text(files.join(version.report_path, "history.json"))
    assert json.loads(written, parse_constant=pytest.fail) == manifest["history"]
    assert files.read_bytes(files.join(version.report_path, "learning_curves.png")).startswith(b"\x89PNG")
    assert ("val_accuracy", "not finite") in publication.summary(version, "file:///run", ALWAYS)
    assert table(store).splitlines()[1].split()[-2] == "-"


@pytest.mark.parametrize(
    ("keep", "patience", "losses", "kept"),
    [
        ("last", 0, [3.0, 1.0, 2.0], 2),
        ("best", 0, [3.0, 1.0, 2.0, 5.0, 4.0], 1),
        ("best", 0, [3.0, 2.0, 1.0], 2),
        ("best", 2, [3.0, 1.0, 2.0, 4.0], 1),
        ("best", 2, [3.0, 1.0, 1.0], 1),
        ("last", 1, [3.0, 1.0, 2.0], 2),
        ("best", 0, [math.nan, 4.0, 5.0], 1),
        ("best", 0, [math.nan, math.inf, 5.0, math.nan], 2),
        ("best", 3, [math.nan, math.nan, math.nan], 0),
    ],
)
def test_the_published_metrics_and_weights_are_those_of_the_kept_epoch(
    spark: SparkSession,
    store: ModelStore,
    prepared: Corpus,
    keep: str,
    patience: int,
    losses: list[float],
    kept: int,
) -> None:
    model = network()
    made = pipeline.callbacks(prepared, keep=keep, patience=patience, epochs=len(losses))
    calls = keras.callbacks.CallbackList(made, model=model)
    model.stop_training = False
    calls.on_train_begin()
    for epoch, loss in enumerate(losses):
        assert not model.stop_training  # before the last of these epochs
        model.layers[-1].bias.assign(np.full(3, epoch, "float32"))
        calls.on_epoch_end(epoch, {"val_loss": loss})
    calls.on_train_end()
    assert np.asarray(model.layers[-1].bias).tolist() == [kept] * 3
    history = {"val_loss": losses, "val_accuracy": [0.1 * epoch for epoch in range(len(losses))]}
    manifest = published(store, history, keep=keep, patience=patience).manifest
    assert manifest["metrics"]["val_accuracy"] == history["val_accuracy"][kept]
    assert manifest["kept"] == {"keep": keep, "epoch": kept + 1}


def test_without_validation_images_the_last_epoch_is_kept(
    prepared: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    without = edited(prepared, images_of_split={"train": 36})
    made = pipeline.callbacks(without, keep="best", patience=3, epochs=9)
    assert made == []
    assert "no validation images" in caplog.text


def test_nothing_is_kept_or_stopped_where_nobody_asks_for_it(prepared: Corpus) -> None:
    made = pipeline.callbacks(prepared, keep="last", patience=0, epochs=9)
    assert made == []


# --- Promotion


def naming(species: str, classes: list[str] = CLASSES, size: tuple[int, int] = SIZE) -> PipelineModel:
    """A model that takes every image for one species."""
    made = network((*size, 3), outputs=len(classes))
    made.layers[-1].set_weights(
        [np.zeros((size[0] * size[1] * 3, len(classes))), np.eye(len(classes))[classes.index(species)]]
    )
    return PipelineModel([SeedlingsModel.from_network(made, classes)])


def knowing(spark: SparkSession, prepared: Corpus) -> PipelineModel:
    """A model that is right about all validation images: noise, to which linear equations have a solution."""
    rows = prepared.images(spark, "validation").collect()
    pixels = np.stack([np.frombuffer(row.image, np.uint8) for row in rows]).astype(np.float64)
    wanted = 10 * np.eye(3)[[CLASSES.index(row.species) for row in rows]]
    made = network()
    made.layers[-1].set_weights([np.linalg.pinv(pixels) @ wanted, np.zeros(3)])
    return PipelineModel([SeedlingsModel.from_network(made, CLASSES)])


def test_a_better_version_is_promoted_and_no_equal_one(
    spark: SparkSession, store: ModelStore, prepared: Corpus
) -> None:
    """9 validation images, 3 of each species."""

    def decided(model: PipelineModel, when: str = "better", of: Corpus = prepared) -> publication.Promotion:
        return publication.promotion(spark, store, model, of, when)

    about = {"image_size": list(SIZE), "aspect": "crop"}
    assert decided(naming("Maize")) == publication.Promotion(True, "there was no current version")
    publication.publish(store, naming("Maize"), about=about, promote=True)
    equal = decided(naming("Charlock"))
    assert not equal.is_due and "accuracy 0.3333" in equal.reason and "0.3333 of v0001" in equal.reason
    assert decided(naming("Charlock"), "always").is_due
    assert not decided(naming("Charlock"), "never").is_due
    better = decided(knowing(spark, prepared))
    assert better == publication.Promotion(True, "accuracy 1.0000 on the validation images, 0.3333 of v0001")
    without = edited(prepared, images_of_split={**prepared.manifest["images_of_split"], "validation": 0})
    assert "no validation images" in decided(naming("Maize"), of=without).reason
    other = decided(naming("Rye", ["Charlock", "Fat Hen", "Rye"]))
    assert not other.is_due and "Maize, Rye" in other.reason


@pytest.mark.parametrize("current", ["of another size", "damaged"])
def test_nothing_is_promoted_where_the_current_version_cannot_be_compared_with(
    spark: SparkSession, store: ModelStore, prepared: Corpus, current: str
) -> None:
    size = (9, 9) if current == "of another size" else SIZE
    version = publication.publish(
        store, naming("Maize", size=size), about={"image_size": list(size), "aspect": "crop"}, promote=True
    )
    if current == "damaged":
        files.write_bytes(version.network_path, b"damaged")
    decided = publication.promotion(spark, store, naming("Maize"), prepared, "better")
    assert not decided.is_due and "cannot be compared with" in decided.reason


# --- Drift


def test_a_profile_is_of_all_images_and_of_what_the_network_says_about_some(
    spark: SparkSession, prepared: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for split in ("train", "validation") for row in prepared.images(spark, split).collect()]
    pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(*SIZE, 3) for row in rows])
    values = drift.statistics(pixels, np.array([row.length for row in rows]))
    expected = {
        name: np.bincount(drift.bins(name, each), minlength=drift.NUM_BINS) for name, each in values.items()
    }
    for most in (2_000, 5):
        monkeypatch.setattr(publication, "_PREDICTED_IMAGES", most)
        monkeypatch.setattr(publication, "_PREDICTED_OF_SPECIES", 0)
        profile = publication.profile(spark, naming("Maize"), prepared)
        assert {name: profile.histograms[name] for name in expected} == {
            name: tuple(counts) for name, counts in expected.items()
        }
        share = min(1.0, most / 9)  # by digits of its content's hash
        chosen = [row for row in rows[-9:] if int(row.content_hash[8:16], 16) <= int(share * 0xFFFFFFFF)]
        assert profile.species == {"Maize": len(chosen)} and 0 < len(chosen) <= 9
        assert sum(profile.histograms["confidence"]) == len(chosen)
    assert len(chosen) < 9


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (None, "no profile of a corpus"),
        ('{"format": 1, "species": {}, "histograms": {}}', "an empty profile"),
        ("{", "no JSON"),
        ('{"format": 99}', "format 99"),
    ],
)
def test_a_version_without_a_profile_guards_against_no_drift_and_says_so(
    spark: SparkSession, store: ModelStore, tmp_path: Path, profile: str | None, said: str
) -> None:
    version = imported(store, tmp_path)
    if profile is not None:
        files.write_text(version.profile_path, profile)
    with pytest.raises(SeedlingsError, match=said):
        scoring.require_profile(version)


# --- A run


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_number_of_steps_is_that_of_the_largest_shard(
    spark: SparkSession, num_workers: int, batch_size: int
) -> None:
    hashes = [hashlib.sha256(bytes([place])).hexdigest() for place in range(150)]
    splits = ["validation" if place % 5 == 0 else "train" for place in range(150)]
    rows = spark.createDataFrame(list(zip(hashes, splits, strict=True)), "content_hash string, split string")
    shards = [
        fingerprint.shard_of(each, num_workers)
        for each, split in zip(hashes, splits, strict=True)
        if split == "train"
    ]
    largest = max(shards.count(rank) for rank in range(num_workers))
    expected = 3 * math.ceil(largest / batch_size)
    assert pipeline.num_steps(rows, num_workers, batch_size, 3) == expected
    shared = 3 * sum(math.ceil(shards.count(rank) / batch_size) for rank in range(num_workers))
    assert pipeline.num_steps(rows, num_workers, batch_size, 3, is_shared=True) == shared


def test_without_images_there_are_no_steps(spark: SparkSession) -> None:
    empty = spark.createDataFrame([], "content_hash string, split string")
    assert pipeline.num_steps(empty, 2, 8, 5) == 0


def rates(
    num_steps: int, learning_rate: float = 0.5, schedule: str = "cosine", name: str = "sgd"
) -> list[float]:
    rate = pipeline.learning_rate(learning_rate, schedule, num_steps)
    made = keras.optimizers.deserialize(pipeline.optimizer(name, rate))
    found = []
    for step in range(num_steps + 1):
        made.iterations.assign(step)
        found.append(float(np.asarray(made.learning_rate)))
    return found


@pytest.mark.parametrize("num_steps", [40, 200, 1000])
def test_the_cosine_rises_and_then_falls_to_zero_at_the_end(num_steps: int) -> None:
    found = rates(num_steps)
    warm_up = round(0.05 * num_steps)
    expected = [
        0.5 / warm_up + (0.5 - 0.5 / warm_up) * step / warm_up
        if step < warm_up
        else 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (num_steps - warm_up))) / 2
        for step in range(num_steps + 1)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert max(found) == found[warm_up] == 0.5
    assert found[-1] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_the_first_step_of_a_short_run_is_not_lost(num_steps: int) -> None:
    assert rates(num_steps)[0] == 0.5
    assert all(rate > 0 for rate in rates(num_steps)[:-1])


def test_one_cycle_rises_for_thirty_percent_and_steps_fall_tenfold() -> None:
    found = rates(100, schedule="one-cycle")
    assert found[0] == pytest.approx(0.5 / 25) and found[30] == max(found) == 0.5
    assert found[15] == pytest.approx((0.5 / 25 + 0.5) / 2) and found[65] == pytest.approx(0.25)
    assert rates(100, schedule="step")[:100] == pytest.approx([0.5] * 50 + [0.05] * 25 + [0.005] * 25)


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_a_rate_without_a_slope_warms_up_by_stairs(schedule: str) -> None:
    rate = pipeline.learning_rate(1.1, schedule, 100, warm_up=0.2)
    made = keras.optimizers.deserialize(pipeline.optimizer("sgd", rate))
    found = []
    for step in range(50):
        made.iterations.assign(step)
        found.append(round(float(np.asarray(made.learning_rate)), 6))
    assert found == [round(0.1 * (1 + step // 2), 6) for step in range(20)] + [1.1] * 30


def test_kernels_alone_decay_and_the_average_is_of_all_steps() -> None:
    made = from_config(pipeline.optimizer("adam", 0.1, weight_decay=0.5, ema=0.75))
    kernel, bias = keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")
    made.build([kernel, bias])
    for _ in range(2):
        made.apply([keras.ops.zeros(1), keras.ops.zeros(1)], [kernel, bias])
    assert float(kernel[0]) == pytest.approx(0.95**2) and float(bias[0]) == 1
    made.finalize_variable_values([kernel, bias])
    # It begins with the weights after the first step.
    assert float(kernel[0]) == pytest.approx(0.75 * 0.95 + 0.25 * 0.95**2)


def test_the_decay_that_adamw_has_of_its_own_is_of_kernels_alone() -> None:
    made = from_config(pipeline.optimizer("adamw", 0.1))
    kernel, bias = keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")
    made.build([kernel, bias])
    made.apply([keras.ops.zeros(1), keras.ops.zeros(1)], [kernel, bias])
    assert float(kernel[0]) == pytest.approx(1 - 0.1 * 0.004) and float(bias[0]) == 1


@pytest.mark.parametrize(("rule", "is_own"), [("aeasgd", True), ("dynsgd", False)])
def test_a_schedule_ends_with_the_steps_of_the_optimizer_that_takes_them(
    spark: SparkSession, prepared: Corpus, tmp_path: Path, rule: str, is_own: bool
) -> None:
    network().save(tmp_path / "tiny.keras")
    rows = pipeline.training_images(spark, prepared)
    options = config.TrainOptions(
        corpus=prepared.path,
        store=str(tmp_path),
        network=str(tmp_path / "tiny.keras"),
        mode="asynchronous",
        rule=rule,
        num_workers=3,
        batch_size=1,
        epochs=4,
    )
    made = jobs.estimator(spark, options, prepared, str(tmp_path), rows)
    hashes = [row.content_hash for row in rows.where(~F.col(pipeline.HELD_OUT)).collect()]
    shards = [fingerprint.shard_of(each, 3) for each in hashes]
    steps = 4 * (max(shards.count(rank) for rank in range(3)) if is_own else len(hashes))
    optimizer = keras.optimizers.deserialize(made.get_optimizer_config())
    optimizer.iterations.assign(steps)
    assert float(np.asarray(optimizer.learning_rate)) < 1e-9
    optimizer.iterations.assign(steps - 2)
    assert float(np.asarray(optimizer.learning_rate)) > 1e-9


def test_copies_of_a_picture_are_no_more_rows_with_their_losses_or_predictions(
    spark: SparkSession, tmp_path: Path
) -> None:
    for number in range(6):
        write(tmp_path, f"images/{'Maize' if number % 2 else 'Rye'}/{number}.png", png(number, 16, 16))
    for number in range(3):
        write(tmp_path, f"images/Rye/copy {number}.png", png(0, 16, 16))
    task = decoding.DecodeTask((16, 16), "stretch", images.FORMATS, 10**6, 10**6)
    rule = corpus.SplitRule({"train": 1.0, "validation": 0.0, "test": 0.0})
    made = corpus.prepare(spark, str(tmp_path / "images"), str(tmp_path / "corpus"), task, rule)
    assert made.manifest["duplicates"] == 3
    indexer = feature.StringIndexerModel.from_labels(["Maize", "Rye"], schema.SPECIES, schema.LABEL)
    last = SeedlingsModel.from_network(
        network((16, 16, 3), 2), ["Maize", "Rye"], loss="categorical_crossentropy"
    )
    model, rows = PipelineModel([indexer, last]), pipeline.training_images(spark, made)
    run = files.qualify(str(tmp_path / "run"))
    with_loss = curriculum.with_loss(rows, run, lambda *_: model)
    paths = [row.path for row in rows.collect()]
    assert sorted(row.path for row in with_loss.collect()) == sorted(paths) and len(paths) == 9
    predictions = model.transform(rows).select(
        *(schema.PATH, schema.CONTENT_HASH, schema.SPECIES, F.lit("Rye").alias(schema.PREDICTED_SPECIES)),
        F.lit(0.5).cast("float").alias(schema.CONFIDENCE),
        vector_to_array(schema.PROBABILITY, "float32").alias(schema.PROBABILITIES),
        F.lit(0).alias(schema.FOLD),
    )
    folds = f"{run}/folds/predictions"
    predictions.select(*schema.OUT_OF_FOLD.names).write.parquet(folds)
    judged = exploring._of_folds(spark, made, folds)
    assert sorted(row.path for row in judged.table.collect()) == sorted(paths) and judged.looked_at == 9


def test_a_long_gradient_is_shortened_as_one_vector() -> None:
    made = from_config(pipeline.optimizer("sgd", 1.0, clip_norm=1.0))
    first, second = keras.Variable([0.0]), keras.Variable([0.0])
    made.build([first, second])
    made.apply([keras.ops.array([3.0]), keras.ops.array([4.0])], [first, second])
    np.testing.assert_allclose([first[0], second[0]], [-0.6, -0.8], rtol=1e-6)


def test_on_a_plateau_of_the_validation_loss_the_rate_falls(prepared: Corpus) -> None:
    given = {"keep": "last", "patience": 0, "epochs": 9, "schedule": "plateau"}
    (callback,) = pipeline.callbacks(prepared, **given)
    model = network()
    model.compile(optimizer=from_config(pipeline.optimizer("sgd", pipeline.learning_rate(0.5, "plateau", 9))))
    callback.set_model(model)
    callback.on_train_begin()
    found = []
    for epoch, loss in enumerate([3.0, 2.0, 2.0, 2.5, 2.0, 1.0, 1.5]):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        found.append(float(np.asarray(model.optimizer.learning_rate)))
    assert found == pytest.approx([0.5] * 4 + [0.15] * 3)


def test_smoothed_labels_are_those_of_keras(prepared: Corpus) -> None:
    assert (
        pipeline.loss("sparse_categorical_crossentropy", 0.0, prepared) == "sparse_categorical_crossentropy"
    )
    loss = keras.losses.deserialize(pipeline.loss("sparse_categorical_crossentropy", 0.2, prepared))
    expected = -(0.85 * math.log(0.7) + 0.05 * 3 * math.log(0.1))
    assert float(loss([[1.0, 0, 0, 0]], [[0.7, 0.1, 0.1, 0.1]])) == pytest.approx(expected)


def test_a_constant_rate_is_constant() -> None:
    assert set(rates(10, 0.25, "constant")) == {0.25}
    config_ = pipeline.optimizer("adam", pipeline.learning_rate(0.25, "constant", 10))
    assert config_["class_name"] == "Adam"
    assert config_["config"]["learning_rate"] == 0.25


@pytest.mark.parametrize("name", ["adam", "Adam", "sgd", "rmsprop", "adamw", "nadam", "lion"])
@pytest.mark.parametrize("schedule", pipeline.SCHEDULES)
def test_an_optimizers_configuration_survives_json(name: str, schedule: str) -> None:
    made = pipeline.optimizer(name, pipeline.learning_rate(0.125, schedule, 100))
    again = keras.optimizers.deserialize(json.loads(json.dumps(made)))
    assert type(again).__name__.lower() == name.lower()
    again.iterations.assign(5 if schedule != "one-cycle" else 30)
    assert float(np.asarray(again.learning_rate)) == 0.125


@pytest.mark.parametrize("name", ["", "nonsense", "Optimizer", "LossScaleOptimizer", "keras.optimizers.Adam"])
def test_an_unknown_optimizer_is_refused_by_name(name: str) -> None:
    with pytest.raises(OptionError, match="--optimizer") as caught:
        pipeline.optimizer(name, 0.1)
    assert name in caught.value.found


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="--schedule linear"):
        pipeline.learning_rate(0.1, "linear", 10)


def test_the_schedules_are_those_of_the_options() -> None:
    choices = next(
        field.metadata for field in dataclasses.fields(config.TrainOptions) if field.name == "schedule"
    )
    assert set(choices["choices"]) == set(pipeline.SCHEDULES)


def test_the_metrics_of_each_epoch_are_a_line_of_json(tmp_path: Path) -> None:
    path = files.qualify(str(tmp_path / "run" / "metrics.jsonl"))
    record = pipeline.RunRecord(path)
    record.on_epoch_end(0, {"loss": 0.5})
    record.on_epoch_end(1, {"loss": math.nan})
    record.on_epoch_end(2)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in files.read_text(path).splitlines()]
    assert [(line["epoch"], line.get("loss", "absent")) for line in lines] == [
        (1, 0.5),
        (2, None),
        (3, "absent"),
    ]


def test_tensorboard_reads_each_epoch_once_also_where_one_was_trained_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = files.qualify(str(tmp_path / "a run" / "metrics.jsonl"))
    for epochs in ([0, 1, 2], [1, 2, 3]):  # it was killed before the checkpoint of the second epoch
        record = pipeline.RunRecord(path)
        record.on_train_begin()
        for epoch in epochs:
            numbers = {"loss": 1 / (epoch + epochs[0] + 1), "val_loss": math.nan if epoch == 2 else epoch}
            record.on_epoch_end(epoch, {**numbers, "learning_rate": 0.1})
    for folder, name, expected in [
        ("train", "loss", [1, 1 / 3, 1 / 4, 1 / 5]),
        ("train", "learning_rate", [0.1] * 4),
        ("validation", "loss", [0, 1, math.nan, 3]),
    ]:
        told = accumulator.EventAccumulator(str(tmp_path / "a run" / "events" / folder)).Reload()
        assert [(each.step, each.value) for each in told.Scalars(name)] == [
            (step, pytest.approx(value, nan_ok=True)) for step, value in enumerate(expected, 1)
        ]


def test_tensorboard_shows_what_an_epoch_makes_of_validation_images(
    tmp_path: Path, spark: SparkSession, prepared: Corpus
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watched, record = pipeline.records(spark, prepared, str(tmp_path), lambda: None, lambda lines: None)
    seconds = iter([0.0, 2.0, 101.0, 103.0, 104.0, 150.0, 151.0])  # the last epoch is always shown
    watched._clock = lambda: next(seconds)
    calls = keras.callbacks.CallbackList([watched, record], model=network(), epochs=4)
    calls.on_train_begin()
    counts = np.array([[2, 0, 0], [0, 1, 1], [0, 0, 2]])
    for epoch in range(4):
        calls.on_epoch_begin(epoch)
        watched.on_confusion(epoch, counts)
        calls.on_epoch_end(epoch, {"loss": 1.0, "val_loss": 1.0})
    told = accumulator.EventAccumulator(str(tmp_path / "events" / "validation")).Reload()
    for name in ("confusion", "pictures"):
        shown = told.Images(name)
        assert [each.step for each in shown] == [1, 3, 4]
        pixels = images.decode(shown[0].encoded_image_string, (256, 256))
        assert (shown[0].width > 256) and len(np.unique(pixels)) > 10
    expected = plots.confusion_matrix(evaluate(counts, prepared.classes))
    assert told.Images("confusion")[-1].encoded_image_string == expected


def test_augmentation_is_shown_in_the_folder_of_the_run(
    tmp_path: Path, spark: SparkSession, prepared: Corpus
) -> None:
    pipeline.show_augmentation(spark, prepared, str(tmp_path), ("flip", "turn"), (0.2, 0.0))
    drawn = images.decode((tmp_path / "augmentation.png").read_bytes(), (600, 900), aspect="stretch")
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


def test_no_metrics_are_written_into_the_folder_of_another_run(tmp_path: Path) -> None:
    def check() -> None:
        raise OutputInUseError("the run", "one at a time", "Wait")

    record = pipeline.RunRecord(str(tmp_path / "metrics.jsonl"), check)
    with pytest.raises(OutputInUseError):
        record.on_epoch_end(0, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


# --- The corpus of a run


def test_a_species_without_a_training_image_is_refused_by_name(spark: SparkSession, prepared: Corpus) -> None:
    counts = {
        **prepared.manifest["images_of_species"],
        "Black-grass": {"train": 0, "validation": 2, "test": 1},
    }
    with pytest.raises(CorpusError, match="no training image of Black-grass") as caught:
        pipeline.training_images(spark, edited(prepared, images_of_species=counts))
    assert "stratified" in caught.value.remedy


def test_train_and_validation_images_are_given_and_the_latter_marked(
    spark: SparkSession, prepared: Corpus
) -> None:
    rows = pipeline.training_images(spark, prepared)
    assert rows.columns == [*schema.CORPUS.names, pipeline.HELD_OUT]
    counts = {
        tuple(row)[:2]: row["count"] for row in rows.groupBy("split", pipeline.HELD_OUT).count().collect()
    }
    assert counts == {("train", False): 18, ("validation", True): 9}


@pytest.mark.parametrize("scaler", ["none", "channel", "pixel"])
def test_the_pipeline_is_indexer_standardiser_and_estimator(prepared: Corpus, scaler: str) -> None:
    estimator = SeedlingsEstimator()
    stages = pipeline.pipeline(prepared, estimator, scaler=scaler, scaler_images=5).getStages()
    assert stages[-1] is estimator
    assert stages[0].getOrDefault("stringOrderType") == "alphabetAsc"
    assert estimator.getOrDefault("validationIndicatorCol") == pipeline.HELD_OUT
    assert estimator.getOrDefault("labelCol") == schema.LABEL
    if scaler == "none":
        assert len(stages) == 2
        assert estimator.getOrDefault("featuresCol") == schema.IMAGE
        return
    _, standardizer, _ = stages
    assert isinstance(standardizer, features.ImageStandardizer)
    assert estimator.getOrDefault("featuresCol") == standardizer.getOrDefault("outputCol")
    found = {
        name: standardizer.getOrDefault(name) for name in ("poolBy", "maxImages", "imageSize", "heldOutCol")
    }
    assert found == {"poolBy": scaler, "maxImages": 5, "imageSize": [8, 8], "heldOutCol": pipeline.HELD_OUT}


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_a_named_network_for_too_small_images_is_refused(prepared: Corpus, name: str) -> None:
    with pytest.raises(OptionError, match="images of 8x8 pixels"):
        pipeline.set_network(SeedlingsEstimator(), name, prepared)


@pytest.mark.parametrize("suffix", [".keras", ".json"])
@pytest.mark.parametrize(("size", "outputs"), [((9, 8, 3), 3), ((8, 8, 1), 3), ((8, 8, 3), 4)])
def test_a_network_file_that_does_not_fit_the_corpus_is_refused(
    prepared: Corpus, tmp_path: Path, size: tuple[int, ...], outputs: int, suffix: str
) -> None:
    file = tmp_path / f"other{suffix}"
    other = network(size, outputs)
    if suffix == ".keras":
        other.save(file)
    else:
        file.write_text(other.to_json())
    with pytest.raises(NetworkError, match=rf"other\{suffix}, which takes") as caught:
        pipeline.set_network(SeedlingsEstimator(), str(file), prepared)
    assert "(8, 8, 3) and gives 3 outputs" in caught.value.expected


def test_a_network_file_is_taken_with_its_weights_and_json_without(prepared: Corpus, tmp_path: Path) -> None:
    made = network()
    made.save(tmp_path / "tiny.keras")
    (tmp_path / "tiny.json").write_text(made.to_json())
    for name in ("tiny.keras", f"file://{tmp_path}/tiny.keras"):
        path = name if name.startswith("file:") else str(tmp_path / name)
        estimator = SeedlingsEstimator()
        pipeline.set_network(estimator, path, prepared)
        taken = from_bytes(estimator._network_content)
        assert all(
            np.array_equal(*pair) for pair in zip(taken.get_weights(), made.get_weights(), strict=True)
        )
    estimator = SeedlingsEstimator()
    pipeline.set_network(estimator, str(tmp_path / "tiny.json"), prepared)
    assert not estimator._network_content
    assert json.loads(estimator.get_keras_model_config())["config"]["name"] == "tiny"


def test_a_missing_network_file_is_said_to_be_missing(prepared: Corpus, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"no file .*absent\.keras"):
        pipeline.set_network(SeedlingsEstimator(), str(tmp_path / "absent.keras"), prepared)


# --- Evaluating


@pytest.fixture(scope="module")
def version(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    folder = tmp_path_factory.mktemp("evaluated")
    return imported(ModelStore(files.qualify(str(folder / "store")), "seedlings"), folder)


def test_a_corpus_of_another_image_size_is_refused_with_both(
    spark: SparkSession, prepared: Corpus, version: ModelVersion
) -> None:
    with pytest.raises(CorpusError, match="images of 16x8 pixels") as caught:
        predicting.predictions(spark, version, edited(prepared, image_size=[16, 8]), "test")
    assert caught.value.expected.startswith("images of 8x8")
    assert "--image-size 8" in caught.value.remedy


def test_a_split_without_images_is_refused(
    spark: SparkSession, prepared: Corpus, version: ModelVersion
) -> None:
    counts = {**prepared.manifest["images_of_split"], "test": 0}
    with pytest.raises(CorpusError, match="no image in the split 'test'"):
        predicting.predictions(spark, version, edited(prepared, images_of_split=counts), "test")


def test_species_that_the_model_does_not_know_are_refused_by_name(
    spark: SparkSession, prepared: Corpus, version: ModelVersion
) -> None:
    counts = {
        **prepared.manifest["images_of_species"],
        "Black-grass": {"train": 5, "validation": 1, "test": 0},
    }
    strange = edited(prepared, images_of_species={"M\u0430ize": {"test": 1}})
    with pytest.raises(CorpusError, match=r"\(.*Maize.* only look alike\)"):
        predicting.predictions(spark, version, strange, "test")
    strange = edited(prepared, images_of_species=counts)
    with pytest.raises(CorpusError, match="images of Black-grass in the split 'validation'") as caught:
        predicting.predictions(spark, version, strange, "validation")
    assert "Charlock, Fat Hen, Maize" in caught.value.expected
    assert predicting.predictions(spark, version, strange, "test").count() == 9  # none of them there


def test_predictions_stand_beside_the_true_species(
    spark: SparkSession, prepared: Corpus, version: ModelVersion
) -> None:
    rows = predicting.predictions(spark, version, prepared, "test")
    assert {schema.SPECIES, schema.PREDICTED_SPECIES, schema.PROBABILITY} <= set(rows.columns)
    found = rows.collect()
    assert len(found) == 9
    assert {row.predicted_species for row in found} <= set(CLASSES)
    about = predicting.about_evaluation(version, prepared, "test")
    assert about["corpus_fingerprint"] == prepared.fingerprint
    assert about["trained_on_this_corpus"] is False


def test_each_image_of_a_split_counts_once_or_nothing_is_said(
    spark: SparkSession, prepared: Corpus, version: ModelVersion
) -> None:
    predicted = predicting.predictions(spark, version, prepared, "test").cache()
    rows = predicted.collect()
    right = sum(row.species == row.predicted_species for row in rows)
    numbers = predicting.evaluated(predicted, prepared, "test", version.classes)
    assert (numbers.num_images, numbers.accuracy) == (9, pytest.approx(right / 9))
    # As a stage of somebody's own leaves them that skips what it does not know, or doubles them.
    for other in (predicted.where(F.col("path") != rows[0].path), predicted.union(predicted)):
        with pytest.raises(SeedlingsError, match="one for each of the 9 in the split 'test'"):
            predicting.evaluated(other, prepared, "test", version.classes)
    predicted.unpersist()


def test_every_refusal_has_three_parts(prepared: Corpus, tmp_path: Path) -> None:
    (tmp_path / "text.keras").write_text("no network")
    calls: list[Any] = [
        lambda: pipeline.optimizer("none", 1),
        lambda: pipeline.set_network(SeedlingsEstimator(), "vgg", prepared),
        lambda: pipeline.set_network(SeedlingsEstimator(), str(tmp_path / "text.keras"), prepared),
    ]
    for call in calls:
        with pytest.raises(SeedlingsError) as caught:
            call()
        assert caught.value.found
        assert caught.value.expected
        assert caught.value.remedy


def test_a_version_with_spark_stages_of_its_own_is_published_and_loaded(
    spark: SparkSession, store: ModelStore
) -> None:
    texts = spark.createDataFrame([("a b",), ("c",)], "text string")
    stages = [
        feature.Tokenizer(inputCol="text", outputCol="words"),
        feature.CountVectorizer(inputCol="words", outputCol="counts"),
        feature.StandardScaler(inputCol="counts", outputCol="scaled"),
        feature.ElementwiseProduct(
            inputCol="scaled", outputCol="weighed", scalingVec=Vectors.dense([1, 2, 3])
        ),
        Pipeline(stages=[feature.StringIndexer(inputCol="text", outputCol="index")]),
        feature.Bucketizer(inputCol="index", outputCol="bucket", splits=[-math.inf, 0.5, math.inf]),
    ]
    fitted = Pipeline(stages=stages).fit(texts)
    last = SeedlingsModel.from_network(network(), ["a", "b", "c"])
    version = publication.publish(store, PipelineModel([*fitted.stages, last]), about={}, promote=True)
    again = predicting.load(store.resolve())
    assert [stage.uid for stage in again.stages[:-1]] == [stage.uid for stage in fitted.stages]
    before, after = fitted.transform(texts), PipelineModel(again.stages[:-1]).transform(texts)
    assert before.collect() == after.collect()
    with pytest.raises(StoreError, match="SQLTransformer"):
        runs_sql = feature.SQLTransformer(statement="SELECT * FROM __THIS__")
        publication.publish(store, PipelineModel([runs_sql, last]), about={}, promote=True)
    assert [each.version for each in store.versions()] == [version.version]


def test_the_known_params_of_sparks_stages_are_those_that_spark_has(spark: SparkSession) -> None:
    found = {name: sorted(param.name for param in getattr(feature, name)().params) for name in SPARK_STAGES}
    assert found == {name: sorted(params) for name, params in SPARK_STAGES.items()}
