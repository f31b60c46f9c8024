"""Pictures with a number each: from a table with a column of numbers to a corpus, a version, its errors and scores."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from keras import layers
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812
from sklearn import metrics

import seedlings_spark as ss
from seedlings_spark import config, corpus, images, schema, scoring
from seedlings_spark.corpus import Corpus
from seedlings_spark.errors import CorpusError, InputError, NetworkError, OptionError, SeedlingsError
from seedlings_spark.models.store import ModelStore
from seedlings_spark.reports import numbers
from seedlings_spark.workflow import forgetting, late_labels, pipeline, predicting
from tests.conftest import with_all
from tests.spark.test_multilabel import JOBS, TRAIN, Place

SIZE, NUMBER = 16, 160
COLUMN = "diameter.um"  # a dot, which in Spark's SQL would mean a field of a struct
# What a table may say in place of a number.
BAD = {"bad0": "NaN", "bad1": "wide", "bad2": "", "bad3": "-Infinity", "bad4": "1e39"}


def disc(number: int) -> tuple[np.ndarray[Any, Any], float]:
    """A green disc on soil, and its diameter in micrometres: far from 0, and from 1."""
    draw = np.random.default_rng(number)
    radius, centre = draw.uniform(2, 7), draw.uniform(7, 9, 2)
    pixels = np.clip(draw.normal((96, 74, 56), 12, (SIZE, SIZE, 3)), 0, 255)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    pixels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = (60, 150, 50)
    return pixels.astype(np.uint8), 5000 + 200 * radius


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures with numbers")
    (made / "pictures").mkdir()
    rows = []
    for number in range(NUMBER):
        pixels, value = disc(number)
        (made / f"pictures/{number:03d}.png").write_bytes(images.encode_png(pixels))
        rows.append((f"pictures/{number:03d}.png", repr(value)))
    for place, (name, text) in enumerate(BAD.items()):
        (made / f"pictures/{name}.png").write_bytes(images.encode_png(disc(1000 + place)[0]))
        rows.append((f"pictures/{name}.png", text))
    with (made / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", COLUMN), *rows])
    return made


def prepared_from(spark: SparkSession, folder: Path, target: Path, **given: Any) -> Corpus:
    options = {"number_column": COLUMN, "image_size": SIZE, "split_shares": (0.5, 0.25, 0.25), **given}
    options = {"images": str(folder / "table.csv"), "corpus": str(target), **options}
    return ss.prepare(spark, ss.PrepareOptions(**options))


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, folder: Path) -> Corpus:
    return prepared_from(spark, folder, folder / "corpus")


def test_a_corpus_has_a_number_for_each_picture_and_rejects_what_has_none(
    spark: SparkSession, prepared: Corpus
) -> None:
    manifest = prepared.manifest
    assert prepared.kind == "regression" and manifest["format"] == 3 and prepared.classes == ()
    assert manifest["number_column"] == COLUMN
    assert manifest["rejected_by_reason"] == {"no_number": len(BAD)}
    details = {Path(row.path).stem: row.detail for row in prepared.rejects(spark).collect()}
    assert details == {name: f"the table says {text or 'nothing'}" for name, text in BAD.items()}
    rows = prepared.images(spark).select(
        schema.PATH, schema.SPLIT, schema.number_in(F.col(schema.SPECIES)).alias("value")
    )
    found = {Path(row.path).stem: row.value for row in rows.collect()}
    assert found == {f"{number:03d}": disc(number)[1] for number in range(NUMBER)}
    for split in schema.SPLITS:
        values = np.array([row.value for row in rows.collect() if row.split == split])
        assert len(values) == prepared.num_images(split) > 0
        told = {"mean": values.mean(), "deviation": values.std(), "least": values.min(), "most": values.max()}
        assert manifest["numbers"][split] == pytest.approx(told, rel=1e-9)


def test_errors_are_those_of_scikit_learn_and_intervals_hold_what_they_say(spark: SparkSession) -> None:
    draw = np.random.default_rng(0)
    true = draw.gamma(2.0, 300.0, 800) + 1e4
    predicted = (true + draw.normal(20, 100, 800)).astype(np.float32)
    rows = [("p", "h", float(one), float(other)) for one, other in zip(true, predicted, strict=True)]
    found = numbers.evaluate(spark.createDataFrame(rows, schema.EVALUATED_NUMBERS))
    measured = {
        "mae": metrics.mean_absolute_error,
        "rmse": metrics.root_mean_squared_error,
        "r2": metrics.r2_score,
        "median_absolute_error": metrics.median_absolute_error,
        "mean_error": lambda true, predicted: (predicted - true).mean(),
    }
    assert {name: getattr(found, name) for name in measured} == pytest.approx(
        {name: measure(true, predicted) for name, measure in measured.items()}
    )
    assert (found.mean, found.deviation) == pytest.approx((true.mean(), true.std()))
    chosen = draw.integers(0, 800, (2000, 800))  # a bootstrap
    for name, measure in measured.items():
        again = np.array([measure(true[each], predicted[each]) for each in chosen])
        low, high = getattr(found, f"{name}_interval")
        wide = np.quantile(again, 0.975) - np.quantile(again, 0.025)
        assert high - low == pytest.approx(wide, rel=0.15), name
        assert low < getattr(found, name) < high
    same = numbers.evaluate(spark.createDataFrame([("p", "h", 2.0, 1.0)] * 3, schema.EVALUATED_NUMBERS))
    assert np.isnan(same.r2) and same.to_dict()["r2"] is None and same.mae == 1
    with pytest.raises(SeedlingsError, match="1 of 2 images with a prediction that is not a finite number"):
        rows = [("p", "h", 2.0, float("nan")), ("p", "h", 2.0, 1.0)]
        numbers.evaluate(spark.createDataFrame(rows, schema.EVALUATED_NUMBERS))


@pytest.fixture(scope="module")
def place(spark: SparkSession, folder: Path, prepared: Corpus) -> Place:
    network = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(16, activation="relu"),
            layers.Dense(1),
        ]
    )
    network.save(folder / "tiny.keras")
    where = {"corpus": prepared.path, "store": str(folder / "store")}
    trained = ss.train(
        spark,
        ss.TrainOptions(
            **where,
            network=str(folder / "tiny.keras"),
            run=str(folder / "run"),
            epochs=40,
            batch_size=10,
            learning_rate=0.01,
            augment=("flip",),
            precision="float32",
        ),
    )
    assert trained.published is not None
    found: Any = ss.evaluate(spark, ss.EvaluateOptions(**where, report=str(folder / "report")))
    return Place(folder, {}, prepared, trained.published, found)


def outputs_of(place: Place, spark: SparkSession, split: str) -> dict[str, tuple[float, float]]:
    """Name of a picture -> the true number, and that of the published network by Keras alone."""
    rows = place.prepared.images(spark, split).collect()
    pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(SIZE, SIZE, 3) for row in rows])
    network = keras.saving.load_model(place.folder / "store/seedlings/v0001/network.keras", compile=False)
    outputs = network.predict(pixels, verbose=0)[:, 0]
    return {
        Path(row.path).name: (float(row.species), float(output))
        for row, output in zip(rows, outputs, strict=True)
    }


@with_all
def test_a_version_is_trained_and_measured_in_the_unit_of_its_labels(
    spark: SparkSession, place: Place
) -> None:
    manifest, told = place.version.manifest, place.prepared.manifest["numbers"]["train"]
    assert place.version.kind == "regression" and manifest["format"] == 3 and place.version.classes == ()
    assert manifest["numbers"] == {"column": COLUMN, "mean": told["mean"], "deviation": told["deviation"]}
    true, output = np.array(list(outputs_of(place, spark, "validation").values())).T
    kept = manifest["metrics"]
    assert kept["val_mean_absolute_error"] == pytest.approx(np.abs(output - true).mean(), rel=1e-3)
    assert kept["val_root_mean_squared_error"] == pytest.approx(
        np.sqrt(np.square(output - true).mean()), rel=1e-3
    )
    # The loss is that of standardised labels, whose size learning rates are made for.
    assert kept["val_loss"] == pytest.approx(np.square((output - true) / told["deviation"]).mean(), rel=1e-3)
    losses = manifest["history"]["val_loss"]
    assert manifest["kept"]["epoch"] == int(np.argmin(losses)) + 1 and losses[0] < 5

    table = pq.read_table(place.report / "predictions.parquet").to_pylist()
    expected = outputs_of(place, spark, "test")
    assert {Path(row["path"]).name: row["value"] for row in table} == {
        name: true for name, (true, _) in expected.items()
    }
    true = np.array([row["value"] for row in table])
    predicted = np.array([row["predicted_value"] for row in table])
    np.testing.assert_allclose(predicted, [expected[Path(row["path"]).name][1] for row in table], rtol=1e-5)
    found = json.loads((place.report / "metrics.json").read_text())
    assert found["kind"] == "regression" and found["about"]["number"] == COLUMN
    assert found["r2"] == pytest.approx(metrics.r2_score(true, predicted)) and found["r2"] > 0.8
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(true, predicted))
    page = (place.report / "index.html").read_text()
    assert "Furthest from the truth" in page and f"{found['rmse']:.4g}" in page
    assert page.count("data:image/jpeg") == len(table)
    assert (place.report / "predicted_against_true.png").read_bytes()[:4] == b"\x89PNG"


@with_all
def test_any_number_of_workers_gives_the_same_bits(
    spark: SparkSession, folder: Path, place: Place, tmp_path: Path
) -> None:
    # The same pictures in another order, as numbers and not as text: the same corpus, and so the same scale.
    rows = [(f"{folder}/pictures/{number:03d}.png", disc(number)[1]) for number in reversed(range(NUMBER))]
    table = spark.createDataFrame(rows, "path string, number double").repartition(5)
    table.write.parquet(str(tmp_path / "table.parquet"))
    given = {"images": str(tmp_path / "table.parquet"), "number_column": "number"}
    again = prepared_from(spark, folder, tmp_path / "corpus", **given)
    assert again.fingerprint == place.prepared.fingerprint and again.scale == place.prepared.scale
    weights = []
    for workers, prepared in ((1, place.prepared), (2, again)):
        options = ss.TrainOptions(
            corpus=prepared.path,
            store=str(tmp_path / "store"),
            run=str(tmp_path / f"run with {workers}"),
            network=str(folder / "tiny.keras"),
            num_workers=workers,
            shards=2,
            epochs=2,
            loss="huber",
        )
        made = ss.train(spark, options).published
        assert made is not None
        path = f"{made.path.removeprefix('file://')}/network.keras"
        weights.append(keras.saving.load_model(path, compile=False).get_weights())
    assert all(np.array_equal(*pair) for pair in zip(*weights, strict=True))


@with_all
def test_scores_have_numbers(spark: SparkSession, place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "pictures", tmp_path / "new")
    (tmp_path / "new" / "broken.png").write_bytes(b"no picture")
    where = {"images": str(tmp_path / "new"), "output": str(tmp_path / "scores")}
    options = place.options(ss.ScoreOptions, **where, max_drift=0.25)
    run = ss.score(spark, options)
    table = scoring.latest(spark, str(tmp_path / "scores"))
    assert table.columns == [*schema.PREDICTIONS_OF_NUMBERS.names, "run"]
    rows = {Path(row.path).name: row for row in table.collect()}
    expected = {
        name: each for split in schema.SPLITS for name, each in outputs_of(place, spark, split).items()
    }
    assert len(rows) == NUMBER + len(BAD)
    np.testing.assert_allclose(
        [rows[name].predicted_value for name in expected], [each[1] for each in expected.values()], rtol=1e-5
    )
    values = [row.predicted_value for row in rows.values()]
    told = {"mean": np.mean(values), "least": min(values), "most": max(values)}
    assert run.manifest["predicted_values"] == pytest.approx(told) and run.manifest["rejected"] == 1
    assert f"from {min(values):.4g} to {max(values):.4g}" in scoring.printed(run, "table")
    # A run that has nothing to add says so.
    again = ss.score(spark, replace(options, incremental=True))
    assert ("values", "none") in [(row[0], row[1]) for row in scoring.summary(again)]
    verdicts = {each.name: each.verdict for each in run.drifts}
    assert next(iter(verdicts)) == "value" and verdicts["value"] == "stable" and "species" not in verdicts
    # Only small discs: the numbers drift.
    for name, row in rows.items():
        if row.predicted_value > np.median(values):
            (tmp_path / "new" / name).unlink()
    small = ss.score(spark, replace(options, output=str(tmp_path / "small")))
    assert {each.name: each.verdict for each in small.drifts}["value"] == "shifted"

    shutil.copytree(place.folder / "corpus", tmp_path / "corpus")
    gone = next(row for name, row in rows.items() if name in expected)
    name = Path(gone.path).name
    (tmp_path / "forget.csv").write_text(f"path\n{gone.path}\n{place.folder}/pictures/{name}\n")
    asked = {"paths": str(tmp_path / "forget.csv"), "output": str(tmp_path / "scores")}
    forgetting.forget(spark, config.ForgetOptions(**asked, corpus=str(tmp_path / "corpus")))
    manifest = json.loads(next((tmp_path / "scores" / "runs").glob("*/manifest.json")).read_text())
    left = [row.predicted_value for row in rows.values() if row.path != gone.path]
    assert manifest["scored"] == len(left)
    assert manifest["predicted_values"]["mean"] == pytest.approx(np.mean(left))
    after = corpus.load(str(tmp_path / "corpus"))
    assert after.images(spark).count() == NUMBER - 1 and after.kind == "regression"
    assert after.manifest["number_column"] == COLUMN

    with pytest.raises(OptionError, match="--top-k 2 with seedlings v0001, which gives a number"):
        ss.score(spark, replace(options, output=str(tmp_path / "other"), top_k=2))
    labels = tmp_path / "labels.csv"
    labels.write_text(f"path,species\n{gone.path},Maize\n")
    late = config.FeedbackOptions(
        scores=str(tmp_path / "scores"), labels=str(labels), report=str(tmp_path / "late")
    )
    with pytest.raises(InputError, match="whose version gives a number"):
        late_labels.feedback(spark, late)
    # Predictions of species have no place beside them.
    classifier = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), layers.Flatten(), layers.Dense(2, activation="softmax")]
    )
    classifier.save(tmp_path / "species.keras")
    from seedlings_spark.workflow import publication

    store = ModelStore(str(tmp_path / "store"), "species")
    publication.import_network(
        store, str(tmp_path / "species.keras"), ("a", "b"), aspect="crop", promote=True
    )
    other = ss.ScoreOptions(**where, store=str(tmp_path / "store"), name="species")
    with pytest.raises(InputError, match=r"earlier runs of .*, which have the column predicted_value"):
        ss.score(spark, other)


@with_all
@pytest.mark.parametrize(
    "flag",
    [*TRAIN, "--label-smoothing", "--mixup", "--cutmix", "--loss poisson"],
)
def test_train_refuses_what_is_for_species(
    spark: SparkSession, place: Place, tmp_path: Path, flag: str
) -> None:
    more: dict[str, dict[str, Any]] = {
        "--label-smoothing": {"label_smoothing": 0.1},
        "--mixup": {"mixup": 0.2},
        "--cutmix": {"cutmix": 1.0},
        "--loss poisson": {"loss": "poisson"},
    }
    with pytest.raises(OptionError, match=flag) as caught:
        known = {"network": str(place.folder / "tiny.keras"), "run": str(tmp_path / "run"), "epochs": 1}
        ss.train(spark, place.options(ss.TrainOptions, **known, **{**TRAIN, **more}[flag]))
    assert caught.value.remedy and not (tmp_path / "run").exists()


@with_all
@pytest.mark.parametrize("what", JOBS)
def test_what_takes_species_for_granted_refuses_numbers(
    spark: SparkSession, place: Place, tmp_path: Path, what: str
) -> None:
    (place.folder / "space.toml").write_text("[space]\nlearning_rate = {low = 0.001, high = 0.01}\n")
    with pytest.raises(SeedlingsError, match=f"{what} with .*(have a number each|gives a number)") as caught:
        JOBS[what](spark, place, str(tmp_path / "made"))
    assert caught.value.remedy and not (tmp_path / "made").exists()


@with_all
def test_numbers_that_cannot_be_are_refused(
    spark: SparkSession, folder: Path, prepared: Corpus, tmp_path: Path
) -> None:
    def refused(text: str, **given: Any) -> CorpusError | OptionError:
        (tmp_path / "table.csv").write_text(text.replace("F/", f"{folder}/pictures/"))
        with pytest.raises((CorpusError, OptionError)) as caught:
            prepared_from(spark, tmp_path, tmp_path / "corpus", number_column="age", **given)
        assert not (tmp_path / "corpus").exists()
        return caught.value

    ages = "path,age\nF/000.png,1\nF/001.png,2\n"
    assert (
        "usable images of 1 number (5.0)"
        in refused("path,age\nF/000.png,5\nF/001.png,5\nF/002.png,x\n").found
    )
    assert "rejected: 2 no_number" in refused("path,age\nF/000.png,x\nF/001.png,\n").found
    shutil.copy(folder / "pictures" / "000.png", folder / "pictures" / "copy.png")
    try:
        disputed = refused(f"{ages}F/copy.png,3\n")
    finally:
        (folder / "pictures" / "copy.png").unlink()
    assert "the same bytes under two numbers" in disputed.found and "(1.0)" in disputed.found
    assert "Add age" in refused("path,size\nF/000.png,5\n").remedy
    assert "--number-column age with" in refused(ages, images=str(folder / "pictures")).found
    assert (
        "--fixes with pictures that have a number each"
        in refused(ages, fixes=str(folder / "table.csv")).found
    )
    assert "--parent with" in refused(ages, parent=prepared.path).found
    assert "--label-separator" in refused(ages, label_separator="|").found

    # Exact shares of each tenth of the numbers; a sample is one of all.
    even = prepared_from(spark, folder, tmp_path / "even", split_policy="stratified")
    assert even.manifest["images_of_split"] == {"train": 80, "validation": 40, "test": 40}
    sampled = prepared_from(spark, folder, tmp_path / "sampled", sample=0.5)
    assert sampled.manifest["listed"] == (NUMBER + len(BAD) + 1) // 2
    means = [even.manifest["numbers"][split]["mean"] for split in schema.SPLITS]
    assert max(means) - min(means) < 0.3 * even.manifest["numbers"]["train"]["deviation"]

    keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), layers.Flatten(), layers.Dense(1, activation="sigmoid")]
    ).save(tmp_path / "sigmoid.keras")
    with pytest.raises(NetworkError, match="ends with a sigmoid, for pictures that have a number each"):
        pipeline.set_network(ss.SeedlingsEstimator(), str(tmp_path / "sigmoid.keras"), prepared)


@with_all
def test_a_head_on_stages_learns_numbers_too(spark: SparkSession, folder: Path, tmp_path: Path) -> None:
    corpus = prepared_from(spark, folder, tmp_path / "corpus", image_size=32)
    given = {"network": "efficientnet-lite0", "weights": "imagenet", "fine_tune": "head", "head_on": "stages"}
    given |= {"precision": "float32", "epochs": 10, "batch_size": 8, "learning_rate": 0.01}
    version = ss.train(spark, ss.TrainOptions(corpus.path, store=str(tmp_path), **given)).published  # type: ignore[arg-type]
    assert version is not None
    error = version.manifest["metrics"]["val_root_mean_squared_error"]
    assert error < 0.5 * corpus.manifest["numbers"]["validation"]["deviation"]
    network = predicting.load(version).stages[-1].get_model()
    assert any(layer.name == "standardization_of_stages" for layer in network.layers)
    rows = corpus.images(spark, "validation").collect()
    pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(32, 32, 3) for row in rows])
    true = np.array([disc(int(Path(row.path).stem))[1] for row in rows])
    found = np.asarray(network(pixels.astype(np.float32)))[:, 0]
    assert np.sqrt(np.mean((found - true) ** 2)) == pytest.approx(error, rel=1e-3)
