"""One evaluation of two versions: its table, its numbers against scikit-learn and SciPy, its page in a browser."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from google.protobuf import text_format
from PIL import Image
from pyspark.ml import PipelineModel
from pyspark.sql import functions
from scipy import optimize, special, stats
from sklearn import decomposition, metrics

from seedlings_spark import corpus, files, images
from seedlings_spark.config import EvaluateOptions, ScoreOptions
from seedlings_spark.corpus import decoding
from seedlings_spark.errors import NetworkError, OptionError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.images import corruptions
from seedlings_spark.models import networks, saliency
from seedlings_spark.models.store import RESERVED_KEYS, ModelStore
from seedlings_spark.reports import certainty, fitting, paired, projector, robustness
from seedlings_spark.workflow import calibration, events, jobs, predicting, publication
from tests.browser import MISSING, browser
from tests.conftest import with_all

CLASSES = ['<b id="hostile">', "Fat Hen", "</script><script>document.title='run'</script>"]
HUES = (80, 125, 170)
CAMERAS = ('<b class="hostile">', None)
NUM = 30


@pytest.fixture(scope="module")
def evaluated(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A corpus of three species, whose names are hostile, and two versions that err differently; v0001 is current."""
    folder = tmp_path_factory.mktemp("evaluated")
    draw = np.random.default_rng(0)
    rows = []
    for place, species in enumerate(CLASSES):
        for number in range(NUM):
            file = folder / "images" / f"{place} <i> & {number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((16, 16, 3), HUES[place], np.float64) + draw.normal(0, 20)
            pixels += draw.normal(0, 5, pixels.shape)
            file.write_bytes(images.encode_png(pixels.clip(0, 255).astype(np.uint8)))
            rows.append((str(file), species, CAMERAS[number % 2]))
    table = folder / "images.parquet"
    layout = "path string, species string, `the camera` string"
    spark.createDataFrame(rows, layout).write.parquet(str(table))
    task = decoding.DecodeTask((16, 16), "stretch", images.FORMATS, 10_000, 100_000)
    shares = corpus.SplitRule({"train": 0.2, "validation": 0.2, "test": 0.6}, "stratified")
    path = files.qualify(str(folder / "corpus"))
    kept = corpus.TableFormat(keep_columns=("the camera",))
    prepared = corpus.prepare(spark, files.qualify(str(table)), path, task, shares, table=kept)
    store = ModelStore(files.qualify(str(folder / "store")), "seedlings")
    for offset in (0.0, 20.0):
        network = keras.Sequential(
            [
                keras.Input((16, 16, 3)),
                keras.layers.Conv2D(3, 1),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3, "softmax"),
            ]
        )
        network.layers[0].set_weights([np.eye(3)[None, None], np.zeros(3)])
        hues = np.array(HUES) + offset
        network.layers[-1].set_weights([np.repeat(hues[None] / 3 / 900, 3, axis=0), -(hues**2) / 2 / 900])
        network.save(folder / "net.keras")
        names = sorted(CLASSES)
        order = [CLASSES.index(name) for name in names]
        kernel, bias = network.layers[-1].get_weights()
        network.layers[-1].set_weights([kernel[:, order], bias[order]])
        network.save(folder / "net.keras")
        publication.import_network(
            store, str(folder / "net.keras"), names, aspect="stretch", promote=offset > 0
        )
    report = folder / "report"
    options = EvaluateOptions(
        path,
        store=store.directory,
        report=str(report),
        model_version="v0001",
        saliency=True,
        robustness=True,
        projector=True,
    )
    numbers = jobs.evaluate(spark, options)
    return {
        "means": {
            row.content_hash: np.frombuffer(row.image, np.uint8).mean()
            for row in prepared.images(spark, "test").collect()
        },
        "numbers": numbers,
        "report": report,
        "corpus": prepared,
        "store": store,
        "images": table,
        "rows": pq.read_table(report / "predictions.parquet").to_pylist(),
        "metrics": json.loads((report / "metrics.json").read_text()),
    }


def test_the_table_has_each_picture_of_the_split_once(evaluated: dict[str, Any], spark: Any) -> None:
    expected = {
        (row.path, row.species): bytes(row.image)
        for row in evaluated["corpus"].images(spark, "test").collect()
    }
    rows = evaluated["rows"]
    assert len(rows) == len(expected) == NUM * 3 * 3 // 5
    assert {(row["path"], row["species"]) for row in rows} == set(expected)
    assert {row["current_species"] for row in rows} <= set(CLASSES)
    classes = evaluated["numbers"].classes
    for row in rows:
        pixels = np.frombuffer(expected[row["path"], row["species"]], np.uint8)
        hues = np.array([HUES[CLASSES.index(name)] for name in classes])
        logits = (hues * pixels.mean() - hues**2 / 2) / 900
        probabilities = np.exp(logits - logits.max())
        assert row["probabilities"] == pytest.approx(probabilities / probabilities.sum(), abs=1e-4)
        assert row["confidence"] == max(row["probabilities"])


def test_the_numbers_are_those_of_scikit_learn_and_scipy(evaluated: dict[str, Any]) -> None:
    rows, found = evaluated["rows"], evaluated["metrics"]
    truth = np.array([row["species"] for row in rows])
    assert 0.5 < found["accuracy"] < 1
    assert found["accuracy"] == pytest.approx(
        metrics.accuracy_score(truth, [row["predicted_species"] for row in rows])
    )
    ours, theirs = (
        truth == np.array([row[name] for row in rows]) for name in ("predicted_species", "current_species")
    )
    comparison = found["comparison"]["overall"]
    only = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    assert (comparison["only_this"], comparison["only_other"]) == only and min(sum(only), only[0]) > 0
    assert comparison["p_value"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    confidence = np.array([row["confidence"] for row in rows])
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [
        (bins == each).sum() * abs(ours[bins == each].mean() - confidence[bins == each].mean())
        for each in set(bins)
    ]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / len(rows), abs=1e-6)


def test_the_slices_are_those_of_the_table(evaluated: dict[str, Any], spark: Any) -> None:
    found, rows = evaluated["metrics"]["slices"], evaluated["rows"]
    right = np.array([row["species"] == row["predicted_species"] for row in rows])
    places = np.array([int(Path(row["path"]).stem.split()[-1]) % 2 for row in rows])
    # Of grey pictures the luma is the mean of all values, up to what differs between the channels.
    brightness = np.array([evaluated["means"][row["content_hash"]] for row in rows])
    darkest = brightness <= np.quantile(brightness, 0.25)
    of = {next(iter(each["values"].items())): each for each in found["singles"]}
    names = list(dict.fromkeys(name for name, _ in of))
    assert names == ["the camera", "species", "brightness", "contrast", "sharpness", "size"]
    masks = {("the camera", CAMERAS[0]): places == 0, ("the camera", "(none)"): places == 1}
    for species in CLASSES:
        masks["species", species] = np.array([row["species"] == species for row in rows])
    masks[next(key for key in of if key[0] == "brightness")] = darkest
    for key, chosen in masks.items():
        assert (of[key]["num_images"], of[key]["right"]) == (chosen.sum(), right[chosen].sum())
    train = evaluated["corpus"].described_images(spark, "train").groupBy("the camera").count().collect()
    assert {row[0]: row[1] for row in train} == {
        camera: of["the camera", camera or "(none)"]["train_images"] for camera in CAMERAS
    }
    assert [each["name"] for each in found["beside_train"]] == names
    page = (evaluated["report"] / "index.html").read_text()
    assert "the camera &lt;b class=&#34;hostile&#34;&gt;</th>" in page and CAMERAS[0] not in page
    options = {"store": evaluated["store"].directory, "report": str(evaluated["report"] / "other")}
    refused = EvaluateOptions(evaluated["corpus"].path, slices=("kamera",), **options)
    with pytest.raises(OptionError, match="--slices kamera"):
        jobs.evaluate(spark, refused)
    assert not (evaluated["report"] / "other").exists()


def drawn(num: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(classes)
    truth = draw.integers(0, classes, num)
    logits = draw.normal(0, 2, (num, classes))
    logits[np.arange(num), truth] += 2
    values = np.exp(logits)
    return truth, (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 7])
def test_curves_and_ranks_are_those_of_scikit_learn(classes: int) -> None:
    truth, values = drawn(500, classes)
    parts = [certainty.count(truth[part::3], values[part::3]) for part in range(3)]
    found = certainty.Certainty.from_bytes(parts[0].to_bytes()) + parts[1] + parts[2]
    steps = np.minimum((values.astype(np.float64) * certainty.BINS).astype(int), certainty.BINS - 1)
    for place, (average, area) in enumerate(found.areas()):
        is_own = truth == place
        assert average == pytest.approx(metrics.average_precision_score(is_own, steps[:, place]))
        assert area == pytest.approx(metrics.roc_auc_score(is_own, steps[:, place]))
        for threshold in (20, 100, 170):
            others, own = found.of_species[place][threshold:].sum(axis=0)
            called = values[:, place] >= np.float32(threshold / certainty.BINS)
            assert own / (own + others) == pytest.approx(metrics.precision_score(is_own, called))
            assert own / is_own.sum() == pytest.approx(metrics.recall_score(is_own, called))
    expected = metrics.top_k_accuracy_score(truth, values if classes > 2 else values[:, 1], k=1)
    assert found.top(1) == pytest.approx(expected)
    if classes > 3:
        assert found.top(3) == pytest.approx(metrics.top_k_accuracy_score(truth, values, k=3))


def test_mcnemars_test_is_the_exact_one_and_many_species_are_allowed_for() -> None:
    for pair in [(0, 0), (3, 0), (9, 1), (40, 25), (3000, 2800)]:
        expected = stats.binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1.0
        assert paired.mcnemar(*pair) == pytest.approx(expected, rel=1e-9)
    alone = paired.compare("v1", {"a": (10, 9, 1, 0)})
    assert (alone.overall.verdict, alone.of_species["a"].verdict) == ("better", "better")
    many = paired.compare("v1", {name: (10, 9, 1, 0) if name == "a" else (10, 3, 3, 0) for name in "abcdef"})
    # 0.0215 for one species is 0.129 where six were looked at.
    assert many.of_species["a"].p_value == pytest.approx(6 * stats.binomtest(9, 10).pvalue)
    assert many.of_species["a"].verdict == "not to be told apart"
    assert paired.compare("v1", {"a": (0, 0, 10, 0)}).overall.verdict == "worse"


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ([2.0, 1.0, 0.9, 1.4], "overfits after epoch 3"),
        ([2.0, 1.0, 0.9, 0.8], "still learning"),
        ([2.0, 1.0, 0.9, 0.91], "levelled off"),
        ([2.0, 1.99, 2.0, 1.98], "hardly learnt"),
        ([0.9, 1.2, 1.6, 2.0], "overfits after epoch 1"),
        ([0.9, None, 1.6, 2.0], "overfits after epoch 1"),
        ([2.0, None, float("nan"), 1.0], ""),
        ([2.0, 1.0], ""),
    ],
)
def test_learning_curves_are_put_into_words(validation: list[float], said: str) -> None:
    fell = said != "hardly learnt"
    history = {"loss": [2.0, 1.0 if fell else 2.0, 0.5 if fell else 1.97, None, 0.3][: len(validation)]}
    if len(validation) == 4:
        history["loss"][3] = 0.3 if fell else 1.96
    found = fitting.words({**history, "val_loss": validation}, 3)
    assert said in found and bool(said) == bool(found)


def test_an_epoch_without_one_of_the_losses_says_nothing() -> None:
    history = {"loss": [2.0, None, 1.0, 0.5, 0.3], "val_loss": [2.0, 1.5, None, 1.4, 1.9]}
    assert "overfits after epoch 4" in fitting.words(history, 5)


# --- Calibration


def test_the_temperature_is_the_one_that_scipy_finds_and_is_refused_where_there_is_none() -> None:
    truth, values = drawn(400, 5)
    logits = np.log(values.astype(np.float64)) * 3
    best = optimize.minimize_scalar(
        lambda t: metrics.log_loss(truth, special.softmax(logits / t, axis=1)),
        bounds=(0.1, 10),
        method="bounded",
    )
    found = calibration.temperature(logits, truth)
    assert found == pytest.approx(best.x, rel=1e-3)
    assert calibration.log_loss(logits / found, truth) == pytest.approx(best.fun, rel=1e-6)
    assert calibration.temperature(np.eye(5)[truth], truth) is None  # all are right: the colder the better


@pytest.mark.parametrize("end", ["in the layer", "a layer", "behind it", "no Dense"])
def test_a_temperature_goes_into_the_network_and_all_engines_give_the_same(
    evaluated: dict[str, Any], spark: Any, end: str
) -> None:
    given, labels = evaluated["corpus"], sorted(CLASSES)
    inputs = keras.Input((16, 16, 3))
    values = keras.layers.GlobalAveragePooling2D()(inputs)
    layer = keras.layers.Dense(3, "softmax" if end == "in the layer" else None)
    if end == "no Dense":
        values = keras.layers.Reshape((1, 3))(values)
        values = keras.layers.Reshape((3,))(keras.layers.Conv1D(3, 1)(values))
    else:
        values = layer(values)
    if end in ("a layer", "no Dense"):
        values = keras.layers.Softmax()(values)
    network = keras.Model(inputs, values)
    if end != "no Dense":
        hues = np.array([HUES[CLASSES.index(name)] for name in labels])
        layer.set_weights([np.repeat(hues[None] / 3 / 200, 3, axis=0), -(hues**2) / 2 / 200])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=end == "behind it")
    model = PipelineModel([SeedlingsModel.from_network(network, labels, loss=loss)])
    if end == "no Dense":
        with pytest.raises(NetworkError, match="no softmax of what a Dense layer gives"):
            calibration._scale(model.stages[0], 2.0)
        return
    images_of = given.images(spark, "validation").orderBy("path")
    before = [list(row.probability) for row in model.transform(images_of).collect()]
    about = calibration.calibrate(spark, model, given)
    assert about["temperature"] > 1.2 and about["images"] == given.num_images("validation")
    assert about["after"]["log_loss"] < about["before"]["log_loss"]
    expected = special.softmax(np.log(np.maximum(before, 1e-45)) / about["temperature"], axis=1)
    truth = [labels.index(row.species) for row in images_of.collect()]
    assert about["after"]["log_loss"] == pytest.approx(metrics.log_loss(truth, expected), abs=1e-3)
    model.stages[0].use_onnx()
    for engine in ("tensorflow", "onnxruntime"):
        model.stages[0].set(model.stages[0].engine, engine)
        after = [list(row.probability) for row in model.transform(images_of).collect()]
        assert np.abs(np.array(after) - expected).max() < 1e-4


# --- Decisions


def test_what_is_promised_by_validation_images_is_kept_by_evaluation_and_scores(
    evaluated: dict[str, Any], spark: Any, tmp_path: Path
) -> None:
    given, store, old = evaluated["corpus"], evaluated["store"], evaluated["store"].resolve("v0001")
    model = predicting.load(old)
    forwards = {"float32": model.stages[-1].forward_task(spark, are_pixels=True)}
    found = calibration.decide(spark, forwards, given, old.classes, coverage=0.8, max_unknown=0.2)

    hues = np.array([HUES[CLASSES.index(name)] for name in old.classes])
    rows = given.images(spark, "validation").collect()
    means = np.array([np.frombuffer(row.image, np.uint8).mean() for row in rows])
    values = special.softmax((np.outer(means, hues) - hues**2 / 2) / 900, axis=1)
    own = values[np.arange(len(rows)), [old.classes.index(row.species) for row in rows]]
    third = [np.sort(each)[2] for each in (own, values.max(axis=1))]  # floor(0.2 * (18 + 1))
    assert len(rows) == 18 and found["float32"]["images"] == 18
    thresholds = found["float32"]["set_from"], found["float32"]["unknown_below"]
    assert thresholds == pytest.approx(third, abs=1e-4) and third[0] != pytest.approx(third[1], abs=0.01)

    known = {key: value for key, value in old.manifest.items() if key not in RESERVED_KEYS}
    version = publication.publish(store, model, about={**known, "decisions": found}, promote=False)
    where = {"store": store.directory, "model_version": version.version}
    jobs.evaluate(spark, EvaluateOptions(given.path, report=str(tmp_path / "report"), **where))
    told = json.loads((tmp_path / "report" / "metrics.json").read_text())["decisions"]
    table = pq.read_table(tmp_path / "report" / "predictions.parquet").to_pylist()
    sets = {
        row["content_hash"]: species_set(row["probabilities"], old.classes, thresholds[0]) for row in table
    }
    is_covered = [row["species"] in sets[row["content_hash"]] for row in table]
    assert told["covered"] == np.mean(is_covered) and 0 < told["covered"] < 1
    assert told["mean_set_size"] == pytest.approx(np.mean([len(each) for each in sets.values()]))
    is_unknown = [row["confidence"] < thresholds[1] for row in table]
    assert told["unknown"] == np.mean(is_unknown) and 0 < told["unknown"] < 1
    assert 'id="decisions"' in (tmp_path / "report" / "index.html").read_text()

    run = jobs.score(spark, ScoreOptions(str(evaluated["images"]), output=str(tmp_path / "scores"), **where))
    scored = pq.read_table(files.local_path(run.path) / "predictions").to_pylist()
    assert run.manifest["scored"] == len(scored) == 3 * NUM
    assert run.manifest["unknown"] == sum(row["predicted_species"] is None for row in scored) > 0
    assert sum(run.manifest["images_of_species"].values()) + run.manifest["unknown"] == 3 * NUM
    for row in scored:
        assert row["species_set"] == species_set(row["probabilities"], old.classes, thresholds[0])
        named = old.classes[int(np.argmax(row["probabilities"]))]
        unknown = row["confidence"] < thresholds[1]
        assert (row["predicted_species"], row["reason"]) == ((None, "unknown") if unknown else (named, None))


def species_set(probabilities: list[float], classes: tuple[str, ...], threshold: float) -> list[str]:
    """The most probable species first; that one always."""
    order = np.argsort(-np.array(probabilities), kind="stable")
    return [
        classes[place]
        for number, place in enumerate(order)
        if not number or probabilities[place] >= threshold
    ]


# --- Where in a picture


def seeing(seed: int, end: str = "softmax", times: float = 1.0) -> Any:
    """A convolution, whose values' means are weighed: of such a network Grad-CAM is the weighted sum itself."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((12, 12, 3))
    values = keras.layers.Conv2D(6, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    values = keras.layers.MaxPooling2D(2)(values)
    layer = keras.layers.Dense(3, None if end == "layer" else "softmax")
    outputs = layer(keras.layers.GlobalAveragePooling2D()(values))
    layer.set_weights([layer.get_weights()[0] * times, layer.get_weights()[1]])
    return keras.Model(inputs, keras.layers.Softmax()(outputs) if end == "layer" else outputs)


def maps_of(network: Any, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return saliency.maps_of(networks.from_bytes(networks.to_bytes(network)), pixels, classes)


@pytest.mark.parametrize(("end", "times"), [("softmax", 1), ("layer", 1), ("softmax", 1e4)])
def test_a_map_is_that_of_the_closed_form_also_where_the_network_is_certain(end: str, times: float) -> None:
    network = seeing(1, end, times)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    classes = np.arange(40) % 3
    features = np.asarray(keras.Model(network.inputs, network.layers[2].output)(pixels))
    (kernel,) = (layer.get_weights()[0] for layer in network.layers if type(layer).__name__ == "Dense")
    expected = np.maximum(np.einsum("nhwk,kn->nhw", features, kernel[:, classes]), 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-30)
    assert expected.any(axis=(1, 2)).sum() > 10
    assert np.abs(maps_of(network, pixels, classes) - 255 * expected).max() <= 1


def test_a_map_shows_a_planted_square_and_depends_on_the_weights() -> None:
    pixels = np.random.default_rng(0).integers(0, 80, (8, 12, 12, 3), dtype=np.uint8)
    pixels[:, 6:10, 2:6] += 170
    network = seeing(1)
    for layer in network.layers:
        if type(layer).__name__ == "Conv2D":  # bright
            layer.set_weights([np.full((3, 3, 3, 6), 1 / 27), np.full(6, -0.4)])
        if type(layer).__name__ == "Dense":  # speaks for class 1
            layer.set_weights([np.tile([-1.0, 1.0, 0.0], (6, 1)), np.zeros(3)])
    found = maps_of(network, pixels, np.ones(8, int))
    rows, columns = zip(*(np.unravel_index(each.argmax(), each.shape) for each in found), strict=True)
    # Those of the convolution's values that see nothing but the square; the first one is of rows 0 to 2.
    assert set(rows) <= {6, 7} and set(columns) <= {2, 3}
    assert not maps_of(network, pixels, np.zeros(8, int)).any()  # nothing speaks for class 0
    drawn_anew = [maps_of(seeing(seed), pixels, np.ones(8, int)).astype(float) for seed in (1, 2)]
    assert np.abs(drawn_anew[0] - drawn_anew[1]).max() > 100


def test_a_network_without_a_convolution_has_no_map_and_says_so() -> None:
    inputs = keras.Input((12, 12, 3))
    flat = keras.Model(inputs, keras.layers.Dense(3, "softmax")(keras.layers.Flatten()(inputs)))
    with pytest.raises(NetworkError, match="without a convolution"):
        saliency.require_convolution(flat)


def test_a_current_version_that_gives_no_numbers_does_not_keep_another_from_being_looked_at(
    evaluated: dict[str, Any], spark: Any, tmp_path: Path
) -> None:
    store = ModelStore(files.qualify(str(tmp_path / "store")), "seedlings")
    for huge in (0.0, 1e38):
        # Of pictures that are brighter than any noise is on the average: infinity less infinity.
        inputs = keras.Input((16, 16, 3))
        bright = keras.layers.ReLU(threshold=150.0)(keras.layers.GlobalAveragePooling2D()(inputs))
        outputs = keras.layers.Dense(3, "softmax", kernel_initializer=keras.initializers.Constant(huge))(
            bright
        )
        keras.Model(inputs, outputs).save(tmp_path / "net.keras")
        publication.import_network(
            store, str(tmp_path / "net.keras"), sorted(CLASSES), aspect="stretch", promote=True
        )
    report = tmp_path / "report"
    options = {"store": store.directory, "report": str(report), "model_version": "v0001"}
    numbers = jobs.evaluate(spark, EvaluateOptions(evaluated["corpus"].path, **options))
    assert numbers.num_images == len(evaluated["rows"])
    assert "The current version, v0002, cannot be compared with" in (report / "index.html").read_text()
    assert not list(report.glob("*of-current*"))


# --- Corrupted pictures


def test_accuracy_on_corrupted_pictures_is_that_of_keras_on_one_machine(
    evaluated: dict[str, Any], spark: Any
) -> None:
    classes = list(evaluated["numbers"].classes)
    rows = sorted(evaluated["corpus"].images(spark, "test").collect(), key=lambda row: row.content_hash)
    pixels = [np.frombuffer(row.image, np.uint8).reshape(16, 16, 3) for row in rows]
    truth = np.array([classes.index(row.species) for row in rows])
    network = predicting.network_of(evaluated["store"].resolve("v0001"), "").get_model()
    found = evaluated["metrics"]["robustness"]
    assert (found["images"], found["accuracy"]) == (len(rows), evaluated["metrics"]["accuracy"])
    means = []
    for kind in corruptions.KINDS:
        told = found["kinds"][kind.name]
        for strength, accuracy in enumerate(told["accuracy"], 1):
            corrupted = [
                corruptions.corrupted(each, kind, strength, row.content_hash)
                for row, each in zip(rows, pixels, strict=True)
            ]
            taken = network.predict(np.stack(corrupted), verbose=0).argmax(axis=1)
            assert accuracy == (taken == truth).mean(), (kind.name, strength)
        assert told["mean_accuracy"] == pytest.approx(np.mean(told["accuracy"]))
        means.append(told["mean_accuracy"])
    assert found["mean_corruption_accuracy"] == pytest.approx(np.mean(means))
    # Which a network that looks at the mean of a picture does not see, and which it sees most.
    assert found["kinds"]["jpeg"]["breaks_at"] is None and found["kinds"]["brightness"]["breaks_at"] <= 3


def test_copies_of_a_picture_count_as_in_all_other_numbers(
    evaluated: dict[str, Any], spark: Any, tmp_path: Path
) -> None:
    table = spark.read.parquet(str(evaluated["report"] / "predictions.parquet"))
    pixels, version = evaluated["corpus"].images(spark, "test"), evaluated["store"].resolve("v0001")
    wrong = next(row for row in evaluated["rows"] if row["species"] != row["predicted_species"])
    predictions, more = (
        each.union(
            each.where(functions.col("content_hash") == wrong["content_hash"]).withColumn(
                "path", functions.lit("copy")
            )
        )
        for each in (table, pixels)
    )
    task = predicting.network_of(version, "").forward_task(spark, are_pixels=True)
    found = robustness.robustness(predictions, more, version.classes, robustness.Disturbance(task))
    num, right = len(evaluated["rows"]), evaluated["numbers"].accuracy * len(evaluated["rows"])
    assert (found.num_images, found.right) == (num + 1, pytest.approx(right))


@with_all
def test_accuracy_under_attack_is_that_of_the_closed_form(
    evaluated: dict[str, Any], spark: Any, tmp_path: Path
) -> None:
    pytest.importorskip("art")
    store, report = evaluated["store"], tmp_path / "report"
    options = {"store": store.directory, "report": str(report), "model_version": "v0001", "adversarial": True}
    numbers = jobs.evaluate(spark, EvaluateOptions(evaluated["corpus"].path, **options))
    rows = evaluated["corpus"].images(spark, "test").collect()
    hues = np.array([HUES[CLASSES.index(name)] for name in numbers.classes])
    pixels = np.stack([np.frombuffer(row.image, np.uint8) for row in rows]).astype(float)
    truth = np.array([numbers.classes.index(row.species) for row in rows])

    def slopes_of_loss(values: np.ndarray) -> np.ndarray:
        """By a picture's mean, which is all that this network sees: all values go one way."""
        probabilities = special.softmax((np.outer(values.mean(axis=1), hues) - hues**2 / 2) / 900, axis=1)
        return np.sign(probabilities @ hues - hues[truth])[:, None]

    told = json.loads((report / "metrics.json").read_text())["adversarial"]
    assert (told["images"], told["accuracy"]) == (len(rows), numbers.accuracy)
    for kind, steps in (("FGSM", 1), ("PGD", 10)):
        expected = []
        for bound in told["kinds"][kind]["levels"]:
            values = pixels
            for _ in range(steps):
                step = bound if steps == 1 else 2.5 * bound / steps
                values = values + step * slopes_of_loss(values)
                values = values.clip(pixels - bound, pixels + bound).clip(0, 255)
            means = np.rint(values).mean(axis=1)
            expected.append((np.argmax(np.outer(means, hues) - hues**2 / 2, axis=1) == truth).mean())
        assert told["kinds"][kind]["accuracy"] == pytest.approx(expected)
        assert expected[-1] < numbers.accuracy - 0.1
    page = (report / "index.html").read_text()
    assert 'id="adversarial"' in page and "PGD" in page


# --- TensorBoard


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows a folder."""
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen([*command, "--logdir", str(folder)], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield next(found[0] for line in process.stderr if (found := re.search(r"http://[0-9.:]+", line)))
        finally:
            process.terminate()
            process.communicate()


# What a page of web components shows: its texts, and the width of each picture that has arrived.
_SHOWN = """
    const told = [];
    (function walk(node) {
        if (!node || ["STYLE", "SCRIPT"].includes(node.tagName)) return;
        if (node.nodeType === 3) told.push(node.data.trim());
        if (node.naturalWidth) told.push(`picture of ${node.naturalWidth}`);
        walk(node.shadowRoot);
        walk(node.contentDocument?.body);
        node.childNodes.forEach(walk);
    })(document.body);
    return told.filter(Boolean).join(" ")"""


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_tensorboard_itself_shows_the_points_and_the_pictures_of_an_epoch(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    shutil.copytree(evaluated["report"] / "projector", tmp_path, dirs_exist_ok=True)
    drawn = (evaluated["report"] / "confusion_matrix.png").read_bytes()
    events.write(str(tmp_path), 3, {"val_loss": 0.5}, {"confusion": drawn})
    with _tensorboard(tmp_path) as address, browser() as opened:
        opened.open(f"{address}/#projector")
        opened.wait(f"return /features 54x3[^]*Dimension: 3/.test((() => {{{_SHOWN}}})())")
        opened.open(f"{address}/#images")
        width = Image.open(io.BytesIO(drawn)).width
        opened.wait(f"return /tag: confusion step 3[^]*picture of {width}/.test((() => {{{_SHOWN}}})())")


# --- Pictures as points


def test_the_projector_has_the_features_the_names_and_the_picture_of_each(
    evaluated: dict[str, Any], spark: Any
) -> None:
    config = pytest.importorskip("tensorboard.plugins.projector").ProjectorConfig()
    folder = evaluated["report"] / "projector"
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    lines = (folder / embedding.metadata_path).read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["species", "predicted_species", "confidence", "path"]
    rows = sorted(evaluated["rows"], key=lambda row: row["content_hash"])
    names = ("species", "predicted_species", "path")
    assert [[line.split("\t")[place] for place in (0, 1, 3)] for line in lines[1:]] == [
        [row[name] for name in names] for row in rows
    ]
    pixels = {
        row.content_hash: np.frombuffer(row.image, np.uint8).reshape(16, 16, 3)
        for row in evaluated["corpus"].images(spark, "test").collect()
    }
    means = np.array([pixels[row["content_hash"]].mean(axis=(0, 1)) for row in rows])
    vectors = np.loadtxt(folder / embedding.tensor_path, delimiter="\t")
    assert vectors == pytest.approx(means, rel=1e-4)  # this network tells the species by them
    height, width = embedding.sprite.single_image_dim
    sprite = np.asarray(Image.open(folder / embedding.sprite.image_path)).astype(float)
    assert sprite.shape == (8 * height, 8 * width, 3)  # of 54 pictures
    tiles = sprite.reshape(8, height, 8, width, 3).swapaxes(1, 2).reshape(64, height, width, 3)
    assert tiles[:54].mean(axis=(1, 2)) == pytest.approx(means, abs=3) and not tiles[54:].any()


def test_the_map_has_the_components_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    vectors = (draw.normal(0, 1, (40, 7)) * [1, 5, 1, 1, 3, 1, 1] + 100).astype(np.float32)
    places, shares = projector.principal(vectors)
    expected = decomposition.PCA(2).fit(vectors)
    assert shares == pytest.approx(tuple(expected.explained_variance_ratio_), rel=1e-4)
    assert np.abs(places) == pytest.approx(np.abs(expected.transform(vectors)), abs=1e-3)
    alone, nothing = projector.principal(vectors[:1])
    assert alone.tolist() == [[0, 0]] and nothing == (0, 0)
    assert projector.principal(vectors[:, :1])[0][:, 1].tolist() == [0] * 40


# --- In a browser

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What a person does, and what the page is then; an error anywhere leaves no answer.
_VISIT = """
const answer = {};
const all = (query) => [...document.querySelectorAll(query)];
const visible = () => all("#wrong .cards > li").filter((card) => !card.hidden);
answer.title = document.title;
answer.hostile = document.getElementById("hostile") !== null;
answer.names = all("#species tbody th").map((cell) => cell.textContent);
answer.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
answer.cards = visible().map((card) => card.querySelector(".path").textContent);
answer.loaded = all("img").every((image) => { image.loading = "eager"; return image.src.startsWith("data:"); });
const miss = document.querySelector(".matrix td.miss button");
answer.miss = miss.closest("td").dataset;
answer.count = Number(miss.textContent);
miss.click();
answer.filtered = visible().map((card) => ({ ...card.dataset }));
document.querySelector("#filter select").value = "";
document.querySelector("#filter select").dispatchEvent(new Event("change"));
answer.by_predicted = visible().map((card) => ({ ...card.dataset }));
all("#species thead button")[4].click();
answer.sorted = all("#species tbody tr").map((row) => Number(row.cells[4].textContent));
answer.aria = all("#species th")[4].getAttribute("aria-sort");
const slices = document.querySelector("#slices details table");
slices.closest("details").open = true;
slices.querySelectorAll("thead button")[1].click();
answer.slices = [...slices.tBodies[0].rows].map((row) => [row.cells[0].textContent, Number(row.cells[1].textContent)]);
document.dispatchEvent(new KeyboardEvent("keydown", { key: "g" }));
answer.maps = all("#wrong img.map").filter((image) => getComputedStyle(image).display === "block").length;
const form = document.querySelector("#thresholds form");
answer.whichever = document.getElementById("at-threshold").textContent;
form.elements.species.value = "1";
form.elements.threshold.value = 120;
form.dispatchEvent(new Event("input"));
answer.threshold = document.getElementById("at-threshold").textContent;
answer.curves = all("#robustness-curves polyline.line:not(.faint)").map((curve) => curve.points.length);
answer.accuracies = all("#robustness tbody tr").map((row) =>
  [...row.cells].slice(1, 6).map((cell) => Number(cell.textContent)));
answer.pairs = all("#robustness .pairs li").map((pair) => pair.querySelectorAll("img").length);
answer.points = all("#points circle").length;
const map = document.querySelector("#points svg");
map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
answer.leftmost = document.querySelector("#points figcaption .path").textContent;
answer.tile = getComputedStyle(document.querySelector("#points figure div")).backgroundImage.slice(0, 27);
const middleOf = (circle) => {
  const box = circle.getBoundingClientRect();
  return { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
};
const at = middleOf(all("#points circle").at(-2));
map.dispatchEvent(new PointerEvent("pointermove", at));
const found = middleOf(document.querySelector("#points circle.chosen"));
answer.distance = Math.hypot(found.clientX - at.clientX, found.clientY - at.clientY);
document.querySelector("#highlight select").value = "1";
document.querySelector("#highlight select").dispatchEvent(new Event("change"));
answer.faded = all("#points circle.faded").length;
answer.lines = all("#precision-recall polyline, #roc polyline, #reliability rect").length;
const result = document.createElement("pre");
result.id = "answer";
result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(answer))));
document.body.append(result);
"""


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_in_a_browser(evaluated: dict[str, Any], tmp_path: Path, width: int) -> None:
    page = (evaluated["report"] / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:|//)""", page)
    # The same page with a visitor, whom its policy would not let in.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    visited = tmp_path / "visited.html"
    visited.write_text(page.replace("</body>", f"<script>{_VISIT}</script></body>"), encoding="utf-8")
    said = _browse(visited, tmp_path, f"--window-size={width},900", "--dump-dom")
    assert "CONSOLE" not in said.stderr, said.stderr
    found = re.search(r'<pre id="answer">([^<]*)</pre>', said.stdout)
    assert found, said.stderr
    answer = json.loads(base64.b64decode(found[1]))
    rows, classes = evaluated["rows"], list(evaluated["numbers"].classes)
    wrong = [row for row in rows if row["species"] != row["predicted_species"]]
    wrong.sort(key=lambda row: (-row["confidence"], row["path"]))
    assert not answer["hostile"] and "accuracy" in answer["title"] and answer["names"] == classes
    assert answer["overflow"] <= 0
    assert answer["cards"] == [row["path"] for row in wrong[:18]]
    truth, predicted = (int(answer["miss"][name]) for name in ("truth", "predicted"))
    pairs = [(classes.index(row["species"]), classes.index(row["predicted_species"])) for row in wrong]
    assert answer["count"] == pairs.count((truth, predicted)) > 0
    assert [(int(each["truth"]), int(each["predicted"])) for each in answer["filtered"]] == [
        (truth, predicted)
    ] * min(18, answer["count"])
    assert {each["predicted"] for each in answer["by_predicted"]} == {str(predicted)}
    assert answer["sorted"] == sorted(answer["sorted"], reverse=True) and answer["aria"] == "descending"
    told = evaluated["metrics"]["slices"]["singles"]
    sizes = {
        name: each["num_images"] for each in told for name in [" ".join(next(iter(each["values"].items())))]
    }
    assert dict(answer["slices"]) == sizes and len(answer["slices"]) == len(sizes)
    counts = [count for _, count in answer["slices"]]
    assert counts in (sorted(counts), sorted(counts, reverse=True)) and len(set(counts)) > 1
    own = np.array([row["species"] == classes[1] for row in rows])
    called = np.array([row["probabilities"][1] >= np.float32(0.6) for row in rows])
    assert f"Precision {metrics.precision_score(own, called):.4f}" in answer["threshold"]
    assert f"recall {metrics.recall_score(own, called):.4f}" in answer["threshold"]
    sure = [row["species"] == row["predicted_species"] for row in rows if row["confidence"] >= 0.5]
    assert f"recall {sum(sure) / len(rows):.4f}." in answer["whichever"]
    assert answer["lines"] >= 4 and answer["maps"] == len(wrong)
    assert answer["points"] == len(rows) and answer["tile"] == 'url("data:image/jpeg;base64'
    order = sorted(rows, key=lambda row: row["content_hash"])
    means = [evaluated["means"][row["content_hash"]] for row in order]
    assert answer["leftmost"] in [order[place]["path"] for place in (np.argmin(means), np.argmax(means))]
    assert answer["distance"] < 2
    shown = [row for row in rows if classes[1] in (row["species"], row["predicted_species"])]
    assert answer["faded"] == len(rows) - len(shown)
    told = [each["accuracy"] for each in evaluated["metrics"]["robustness"]["kinds"].values()]
    assert np.array(answer["accuracies"]) == pytest.approx(np.array(told), abs=5e-5)
    assert answer["curves"] == [6] * 9 and answer["pairs"] and set(answer["pairs"]) == {2}


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_the_page_runs_as_it_is_under_its_own_policy(evaluated: dict[str, Any], tmp_path: Path) -> None:
    # By the browser's own clock, which waits for scripts however slow the machine is.
    said = _browse(evaluated["report"] / "index.html", tmp_path, "--virtual-time-budget=5000", "--dump-dom")
    assert "CONSOLE" not in said.stderr, said.stderr
    assert 'class="no-script"' not in said.stdout
    # Precision by recall, and the diagonal of the calibration; the predicted species has no negatives for a ROC curve.
    before = said.stdout.partition('id="robustness-curves"')[0]
    assert before.count("<polyline") == 2 and 'id="roc" role="img" style="display: none;"' in before


def _browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    own = [f"--user-data-dir={folder / 'browser'}", "--enable-logging=stderr", "--v=0", "--no-first-run"]
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [str(_BROWSER), "--headless", "--disable-gpu", "--hide-scrollbars", *root, *own, *options]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=900, check=True)
