"""A corpus, looked at: planted mistakes are found, and what a person decides of them is what prepare makes."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from cleanlab.filter import find_label_issues
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import files, images, schema
from seedlings_spark.config import ExploreOptions, PrepareOptions, ScoreOptions
from seedlings_spark.errors import CorpusError, SeedlingsError
from seedlings_spark.models.store import ModelStore
from seedlings_spark.reports import exploration, labels
from seedlings_spark.workflow import explore, jobs, publication
from tests import browser
from tests.conftest import HANG_SECONDS, with_all

CLASSES = ['<b>"Rye"', "Fat Hen", "Maize"]
HUES = (80, 125, 170)
# Number of a picture of 40 of each species -> the species that its label says.
PLANTED = {("Fat Hen", 3): "Maize", ("Maize", 7): "Fat Hen", ('<b>"Rye"', 11): "Fat Hen"}
BRIGHT = ("Maize", 20)


def pixels_of(draw: np.random.Generator, hue: float) -> np.ndarray:
    pixels = np.full((16, 16, 3), hue, np.float64) + draw.normal(0, 6)
    return (pixels + draw.normal(0, 5, pixels.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table of 120 pictures, three of which have a wrong label, and one that is much too bright."""
    folder = tmp_path_factory.mktemp("photographs")
    draw = np.random.default_rng(1)
    rows, pixels = [], {}
    for species, hue in zip(CLASSES, HUES, strict=True):
        for number in range(40):
            file = folder / f"{CLASSES.index(species)} {number:02d}.png"
            pixels[file.name] = pixels_of(draw, 230 if (species, number) == BRIGHT else hue)
            file.write_bytes(images.encode_png(pixels[file.name]))
            rows.append((file.name, PLANTED.get((species, number), species)))
    with (folder / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows([("path", "species"), *rows])
    network = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    )
    hues = np.array(HUES)
    network.layers[-1].set_weights([np.repeat(hues[None] / 3 / 100, 3, axis=0), -(hues**2) / 2 / 100])
    network.save(folder / "net.keras")
    store = ModelStore(files.qualify(str(folder / "store")), "seedlings")
    publication.import_network(store, str(folder / "net.keras"), CLASSES, aspect="crop", promote=True)
    return {"table": folder / "labels.csv", "store": store.directory, "pixels": pixels, "rows": rows}


def prepared(spark: Any, photographs: dict[str, Any], corpus: Path, **more: Any) -> Any:
    options = PrepareOptions(images=str(photographs["table"]), corpus=str(corpus), image_size=16, **more)
    return jobs.prepare(spark, options)


def test_planted_mistakes_are_found_and_mended(
    photographs: dict[str, Any], spark: Any, tmp_path: Path
) -> None:
    corpus, report = prepared(spark, photographs, tmp_path / "corpus"), tmp_path / "report"
    found = explore(spark, ExploreOptions(corpus.path, report=str(report), store=photographs["store"]))
    numbers = json.loads((report / "metrics.json").read_text())
    assert numbers["images_of_species"] == corpus.manifest["images_of_species"]

    with (report / "fixes.csv").open() as table:
        fixes = list(csv.DictReader(table))
    planted = {
        f"{CLASSES.index(species)} {number:02d}.png": (label, species)
        for (species, number), label in PLANTED.items()
    }
    bright = f"{CLASSES.index(BRIGHT[0])} {BRIGHT[1]:02d}.png"
    assert {files.name(row["path"]): (row["species"], row["suggested"]) for row in fixes} == planted
    assert {row["action"] for row in fixes} == {"keep"} and numbers["suspect_labels"]["looked_at"] == 120
    assert (
        files.name(found.outliers[0].path) == bright
        and found.outliers[0].words == "more brightness than others"
    )
    # A wrong label makes a picture stand out, too.
    assert {files.name(each.path) for each in found.outliers} >= {bright, *planted}

    pictures = pq.read_table(report / "pictures.parquet").to_pylist()
    assert {files.name(row["path"]) for row in pictures} == set(photographs["pixels"])
    of_maize = [photographs["pixels"][name] for name, label in photographs["rows"] if label == "Maize"]
    assert (
        abs(images.decode(found.means["Maize"], (16, 16)).astype(float) - np.mean(of_maize, axis=0)).max() < 4
    )  # JPEG
    page = (report / "index.html").read_text()
    assert "&lt;b&gt;" in page and "<b>&#34;Rye" not in page and page.count("<img") > 3 * exploration.SAMPLES

    # The same predictions as a cross-validation leaves them give the same fixes; no others are taken.
    predictions = spark.read.parquet(str(report / "predictions.parquet"))
    folds = predictions.withColumn(schema.FOLD, F.lit(0)).select(*schema.OUT_OF_FOLD.names)
    folds.write.parquet(str(tmp_path / "folds"))
    folds.withColumn(schema.CONTENT_HASH, F.lit("0" * 64)).write.parquet(str(tmp_path / "others"))
    again = tmp_path / "again"
    for name, message in (("nowhere", "no folder .*nowhere"), ("others", "others, without .* of 3 species")):
        with pytest.raises(SeedlingsError, match=message):
            explore(spark, ExploreOptions(corpus.path, str(again), predictions=str(tmp_path / name)))
        assert not again.exists()
    (tmp_path / "folds.json").write_text(json.dumps({"classes": CLASSES[::-1]}))
    with pytest.raises(CorpusError, match="of other species than"):
        explore(spark, ExploreOptions(corpus.path, str(again), predictions=str(tmp_path / "folds")))
    (tmp_path / "folds.json").write_text(json.dumps({"classes": CLASSES}))
    explore(spark, ExploreOptions(corpus.path, str(again), predictions=str(tmp_path / "folds")))
    assert (again / "fixes.csv").read_bytes() == (report / "fixes.csv").read_bytes()
    assert json.loads((again / "metrics.json").read_text())["suspect_labels"]["looked_at"] == 120

    fixes[0]["action"], fixes[1]["action"], fixes[2]["action"] = "correct", "drop", "keep"
    mended = tmp_path / "mended.csv"
    with mended.open("w", newline="") as table:
        writer = csv.DictWriter(table, fixes[0].keys())
        writer.writeheader()
        writer.writerows(fixes)
    after = prepared(spark, photographs, tmp_path / "mended", fixes=str(mended))
    labels = {row.content_hash: row.species for row in corpus.images(spark).drop("image").collect()}
    expected = {**labels, fixes[0]["content_hash"]: fixes[0]["suggested"]}
    del expected[fixes[1]["content_hash"]]
    assert {row.content_hash: row.species for row in after.images(spark).drop("image").collect()} == expected
    assert [(row.content_hash, row.reason) for row in after.rejects(spark).collect()] == [
        (fixes[1]["content_hash"], "dropped")
    ]
    told = {name: after.manifest["fixes"][name] for name in ("corrected", "dropped", "not_found")}
    assert told == {"corrected": 1, "dropped": 1, "not_found": 0}


@with_all
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"action": "remove"}, "1 rows of .* with an action that is none of keep, correct and drop"),
        ({"action": "correct", "suggested": ""}, "no species in the column suggested"),
        ({"action": "correct", "suggested": "maize"}, "gives pictures the species maize"),
    ],
)
def test_a_fix_that_cannot_be_meant_is_refused(
    photographs: dict[str, Any], spark: Any, tmp_path: Path, row: dict[str, str], message: str
) -> None:
    fix = {schema.CONTENT_HASH: "0" * 64, schema.SPECIES: "Maize", "action": "", "suggested": "Fat Hen"} | row
    with (tmp_path / "fixes.csv").open("w", newline="") as table:
        csv.writer(table).writerows([fix.keys(), fix.values()])
    with pytest.raises(CorpusError, match=message):
        prepared(spark, photographs, tmp_path / "corpus", fixes=str(tmp_path / "fixes.csv"))
    assert not (tmp_path / "corpus").exists()


@pytest.fixture(scope="module")
def reviewed(
    photographs: dict[str, Any], spark: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a person has saved of the page of a run, and the paths of the pictures on it."""
    if browser.MISSING:
        pytest.skip(browser.MISSING)
    folder = tmp_path_factory.mktemp("reviewed")
    new = folder / "new"
    new.mkdir()
    draw = np.random.default_rng(2)
    for number in range(8):  # of hues between those of two species
        pixels = pixels_of(draw, (HUES[number % 2] + HUES[number % 2 + 1]) / 2)
        (new / f'{number}, "a" caf\xe9.png').write_bytes(images.encode_png(pixels))
    options = ScoreOptions(str(new), store=photographs["store"], output=str(folder / "scores"), review=6)
    review = files.local_path(jobs.score(spark, options).path) / "review"
    with (review / "least_confident.csv").open() as table:
        least = [row["path"] for row in csv.DictReader(table)]
    right, left, back = "\ue014", "\ue012", "\ue003"  # as the protocol names these keys
    with browser.browser() as window:
        window.offline()
        window.save_to(folder)
        window.resize(390, 800)
        window.open((review / "index.html").as_uri())
        window.press("1", "2", right, "3", "9", "1", back, left, left, "3", "s")
        window.wait("return document.querySelector('.bar output').textContent === '4 of 6 labelled'")
        assert window.run("return document.documentElement.scrollWidth") <= 390
        assert window.run("return document.querySelectorAll('.review img').length") == 6
        saved, end = folder / "labels.csv", time.monotonic() + HANG_SECONDS
        while not saved.exists():
            assert time.monotonic() < end, list(folder.iterdir())
            time.sleep(0.1)
        window.open((review / "index.html").as_uri())  # once more: the browser has kept them
        window.wait("return document.querySelector('.bar output').textContent.startsWith('4 of 6')")
    with saved.open(encoding="utf-8", newline="") as table:
        labels = {row["path"]: row["species"] for row in csv.DictReader(table)}
    return {"saved": saved, "labels": labels, "least": least}


def test_what_a_person_labels_by_keys_is_saved(reviewed: dict[str, Any]) -> None:
    expected = {0: CLASSES[0], 1: CLASSES[1], 3: CLASSES[2], 4: CLASSES[0]}
    least = reviewed["least"]
    assert reviewed["labels"] == {least[place]: species for place, species in expected.items()}


@with_all
def test_what_a_person_has_saved_is_what_prepare_takes(
    photographs: dict[str, Any], reviewed: dict[str, Any], spark: Any, tmp_path: Path
) -> None:
    saved, labels, least = reviewed["saved"], reviewed["labels"], reviewed["least"]
    before = prepared(spark, photographs, tmp_path / "corpus")
    grown = jobs.prepare(
        spark,
        PrepareOptions(images=str(saved), corpus=str(tmp_path / "grown"), parent=before.path, image_size=16),
    )
    added = {row.path: row.species for row in grown.images(spark).collect() if row.path in labels}
    assert added == labels and grown.manifest["accepted"] == before.manifest["accepted"] + 4

    given = {path: CLASSES[place % 3] for place, path in enumerate(least)}
    with (tmp_path / "given.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("path", "species"), *given.items()])
    wrong = {"table": tmp_path / "given.csv"}
    mended = prepared(spark, wrong, tmp_path / "mended", fixes=str(saved))
    assert {row.path: row.species for row in mended.images(spark).collect()} == {**given, **labels}
    changed = sum(given[path] != species for path, species in labels.items())
    assert mended.manifest["fixes"]["corrected"] == changed > 0
    assert mended.manifest["fixes"]["not_found"] == 0


def test_suspects_are_the_least_probable_labels_as_many_as_cleanlab_counts(spark: SparkSession) -> None:
    draw = np.random.default_rng(4)
    truth, classes = draw.integers(0, 4, 600), ["Hafer", "Mais", "Rye", "Weizen"]
    values = np.exp(draw.normal(0, 1, (600, 4)) + 2 * np.eye(4)[truth]).astype("float32")
    values /= values.sum(axis=1, keepdims=True)
    given = np.where(draw.random(600) < 0.1, draw.integers(0, 4, 600), truth)
    rows = [
        (f"{number:03d}.png", str(number), classes[label], row.tolist())
        for number, (label, row) in enumerate(zip(given, values, strict=True))
    ]
    table = spark.createDataFrame(
        rows, "path string, content_hash string, species string, probabilities array<float>"
    )
    found = labels.suspects(table, classes, 1000).collect()
    expected = find_label_issues(
        given, values, filter_by="low_self_confidence", return_indices_ranked_by="self_confidence"
    )
    assert [int(row.content_hash) for row in found] == expected.tolist() and len(expected) > 30
    assert [row.suggested for row in found] == [classes[place] for place in values[expected].argmax(1)]
    assert len(labels.suspects(table, classes, 7).collect()) == 7
