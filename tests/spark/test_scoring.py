"""Scoring: every listed file ends as one prediction or one rejection, and a run appears whole or not at all."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from seedlings_spark import files, images, schema, scoring
from seedlings_spark.config import ScoringOptions
from seedlings_spark.corpus import listings
from seedlings_spark.errors import InputError, OutputInUseError, StoreError
from seedlings_spark.lock import Lock
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.scoring import ScoreRun, sources, tasks
from seedlings_spark.workflow import publication
from tests.pictures import png

SIZE = (12, 10)
CLASSES = ["Maize", 'it\'s "quoted", `b`', "Ma\N{LATIN SMALL LETTER I WITH DIAERESIS}s", "$x"]
MAX_BYTES, MAX_PIXELS = 50_000, 10_000


def picture(seed: int, size: tuple[int, int] = (16, 15)) -> bytes:
    return png(seed, *size)


GOOD = {
    "0.png": picture(0),
    "a copy of 0.png": picture(0),
    "nested/deeper/1.png": picture(1),
    "nested/deeper/still/2.PNG": picture(2, (40, 8)),
    "no ending": picture(3),
    'it\'s "quoted".png': picture(4),
    "100% a%20b #1?.png": picture(5),
    "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{SEEDLING}.png": picture(6),
    "{a,b}[0-9]*.png": picture(7),
    "_hidden.png": picture(8),
    ".hidden/9.png": picture(9),
    " leading and trailing ": picture(10),
    "line\nbreak.png": picture(11),
    "species=a/key=1/12.png": picture(12),
}
BAD = {
    "empty.png": (b"", "empty", "list"),
    "nested/text.png": (b"no picture at all", "not_an_image", "decode"),
    "cut.png": (picture(20)[:-40], "truncated", "decode"),
    "damaged.png": (picture(21)[:60] + b"\xff" + picture(21)[61:], "corrupt", "decode"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', None, "decode"),
    "icon.ico": (
        b"\0\0\1\0\1\0\1\1\0\0\1\0\x20\0\x30\0\0\0\x16\0\0\0" + b"\0" * 48,
        "unsupported_format",
        "decode",
    ),
    "wide.png": (picture(22, (101, 100)), "too_large", "decode"),
    "long.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * MAX_BYTES, "too_large", "list"),
}


def write_folder(folder: Path) -> None:
    for name, content in {**GOOD, **{name: content for name, (content, _, _) in BAD.items()}}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def tiny_network(num_classes: int = len(CLASSES), activation: str | None = "softmax") -> Any:
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            layers.Rescaling(1 / 128, -1),
            layers.Conv2D(6, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(num_classes, activation=activation),
        ]
    )


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_network()


@pytest.fixture(scope="module")
def store(spark: SparkSession, network: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("a store")
    network.save(folder / "elsewhere.keras")
    made = ModelStore(files.qualify(str(folder / "store")), "imported")
    publication.import_network(made, str(folder / "elsewhere.keras"), CLASSES, aspect="stretch", promote=True)
    return made


@pytest.fixture(scope="module")
def version(store: ModelStore) -> ModelVersion:
    return store.resolve()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("images") / "a folder's images"
    write_folder(made)
    (made / "dangling.png").symlink_to(made / "nowhere")
    (made / "an empty folder").mkdir()
    return made


def score(
    spark: SparkSession, version: ModelVersion, folder: Path | str, output: Path | str, **options: Any
) -> ScoreRun:
    defaults: dict[str, Any] = {
        "formats": images.FORMATS,
        "max_pixels": MAX_PIXELS,
        "max_bytes": MAX_BYTES,
        "batch_size": 4,
        "review": 0,
    }
    paths = {"images": files.qualify(str(folder)), "output": files.qualify(str(output))}
    return scoring.score(spark, version, ScoringOptions(**{**defaults, **paths, **options}))


@pytest.fixture(scope="module")
def run(
    spark: SparkSession, version: ModelVersion, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> ScoreRun:
    return score(spark, version, folder, tmp_path_factory.mktemp("scores") / "output")


def table(spark: SparkSession, run: ScoreRun, name: str) -> DataFrame:
    return spark.read.parquet(files.join(run.path, name))


def rows_by_name(spark: SparkSession, run: ScoreRun, name: str, root: Path | str) -> dict[str, Any]:
    prefix = files.qualify(str(root)) + "/"
    rows = table(spark, run, name).collect()
    found = {row.path.removeprefix(prefix): row for row in rows}
    assert len(found) == len(rows)
    return found


def check_predictions(found: dict[str, Any], network: Any, expected: dict[str, bytes] = GOOD) -> None:
    """Every prediction is what plain Keras says of the pixels that `images.decode` gives."""
    assert set(found) == set(expected)
    names = list(expected)
    pixels = np.stack([images.decode(expected[name], SIZE, aspect="stretch") for name in names])
    probabilities = network.predict(pixels.astype("float32"), verbose=0)
    for name, of_keras in zip(names, probabilities, strict=True):
        row = found[name]
        np.testing.assert_allclose(row.probabilities, of_keras, atol=1e-6)
        assert row.predicted_species == CLASSES[int(np.argmax(row.probabilities))]
        assert row.confidence == max(row.probabilities)
        assert row.content_hash == hashlib.sha256(expected[name]).hexdigest()


# --- What cannot be scored


def runs_of(output: Path) -> list[str]:
    return sorted(each.name for each in (output / "runs").iterdir()) if (output / "runs").exists() else []


def test_a_missing_folder_is_said_to_be_missing(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no folder file:///.*/absent"):
        score(spark, version, tmp_path / "absent", tmp_path / "output")
    assert runs_of(tmp_path / "output") == []


def test_a_file_is_no_folder(spark: SparkSession, version: ModelVersion, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(picture(0))
    with pytest.raises(InputError, match="which is a file"):
        score(spark, version, tmp_path / "one.png", tmp_path / "output")


def test_an_empty_folder_is_said_to_be_empty(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    (tmp_path / "images" / "nested" / "and empty too").mkdir(parents=True)
    with pytest.raises(InputError, match="is empty") as caught:
        score(spark, version, tmp_path / "images", tmp_path / "output")
    assert caught.value.expected == "at least one file to score"
    assert runs_of(tmp_path / "output") == []
    assert not (tmp_path / "output" / "manifest.json").exists()


@pytest.mark.parametrize("output", ["", "/scores", "/nested/scores"])
def test_an_output_among_the_images_is_refused(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, output: str
) -> None:
    with pytest.raises(InputError, match="inside of the images"):
        score(spark, version, tmp_path, f"{tmp_path}{output}")


@pytest.fixture
def own_version(store: ModelStore) -> Iterator[ModelVersion]:
    """A version of its own, to be damaged."""
    current = store.resolve()

    def build(folder: str) -> None:
        files.write_bytes(files.join(folder, "network.keras"), files.read_bytes(current.network_path))

    made = store.publish(
        build, {"classes": CLASSES, "image_size": list(SIZE), "aspect": "stretch"}, promote=False
    )
    yield made
    files.delete(made.path)


def test_a_damaged_network_is_refused_by_its_hash(
    spark: SparkSession, own_version: ModelVersion, folder: Path, tmp_path: Path
) -> None:
    content = files.read_bytes(own_version.network_path)
    files.write_bytes(own_version.network_path, content[:-1] + b"\x01")
    with pytest.raises(StoreError, match="SHA-256"):
        score(spark, own_version, folder, tmp_path / "output")
    files.delete(own_version.network_path)
    with pytest.raises(StoreError, match=r"no file:///.*network\.keras"):
        score(spark, own_version, folder, tmp_path / "output")
    assert runs_of(tmp_path / "output") == []


def test_a_network_whose_answers_are_not_finite_fails_the_run(
    spark: SparkSession, store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    broken = tiny_network()
    broken.layers[-1].kernel.assign(np.full(broken.layers[-1].kernel.shape, np.nan))
    broken.save(tmp_path / "broken.keras")

    def build(target: str) -> None:
        files.put(tmp_path / "broken.keras", files.join(target, "network.keras"))

    made = store.publish(build, {"classes": CLASSES, "image_size": list(SIZE)}, promote=False)
    try:
        with pytest.raises(Exception, match="outputs that are not finite"):
            score(spark, made, folder, tmp_path / "output")
    finally:
        files.delete(made.path)
    assert runs_of(tmp_path / "output") == []


# --- A run


def test_every_listed_file_is_exactly_one_row(spark: SparkSession, run: ScoreRun, folder: Path) -> None:
    listed = sorted(files.qualify(str(folder)) + "/" + name for name in [*GOOD, *BAD, "dangling.png"])
    paths = [
        row.path
        for name in ("predictions", "rejects")
        for row in table(spark, run, name).select("path").collect()
    ]
    assert sorted(paths) == listed
    assert (
        sorted(entry.path for entry in listings.walk(files.qualify(str(folder)), by_folder=False)) == listed
    )


@pytest.mark.parametrize(
    ("name", "layout"), [("predictions", schema.PREDICTIONS), ("rejects", schema.REJECTS)]
)
def test_the_columns_are_those_of_the_contract(
    spark: SparkSession, run: ScoreRun, name: str, layout: StructType
) -> None:
    found = table(spark, run, name).schema
    assert [(field.name, field.dataType.simpleString()) for field in found] == [
        (field.name, field.dataType.simpleString()) for field in layout
    ]


def test_predictions_are_those_of_keras_on_the_decoded_pixels(
    spark: SparkSession, run: ScoreRun, folder: Path, network: Any
) -> None:
    found = rows_by_name(spark, run, "predictions", folder)
    check_predictions(found, network)
    assert {row.model_version for row in found.values()} == {"v0001"}
    assert found["0.png"].probabilities == found["a copy of 0.png"].probabilities
    assert len({row.predicted_species for row in found.values()}) > 1


def test_rejects_have_their_reasons(spark: SparkSession, run: ScoreRun, folder: Path) -> None:
    found = rows_by_name(spark, run, "rejects", folder)
    assert set(found) == {*BAD, "dangling.png"}
    for name, (content, reason, stage) in BAD.items():
        row = found[name]
        assert row.reason in schema.REJECT_REASONS
        assert reason is None or row.reason == reason, name
        assert row.stage == stage
        assert row.content_hash == (hashlib.sha256(content).hexdigest() if stage == "decode" else None)
    assert found["dangling.png"].reason == "unreadable"


def test_the_manifest_adds_up(
    spark: SparkSession, run: ScoreRun, version: ModelVersion, folder: Path
) -> None:
    manifest = json.loads(files.read_text(files.join(run.path, "manifest.json")))
    assert manifest == dict(run.manifest)
    assert manifest["listed"] == len(GOOD) + len(BAD) + 1
    assert manifest["scored"] == len(GOOD)
    assert manifest["rejected"] == len(BAD) + 1
    assert manifest["already_scored"] == manifest["already_rejected"] == 0
    assert sum(manifest["rejected_by_reason"].values()) == manifest["rejected"]
    assert sum(manifest["images_of_species"].values()) == manifest["scored"]
    assert manifest["classes"] == CLASSES
    assert (manifest["model_name"], manifest["model_version"]) == ("imported", "v0001")
    assert manifest["images"] == files.qualify(str(folder))
    assert manifest["run"] == files.name(run.path)
    assert dict(scoring.summary(run))["listed"] == f"{manifest['listed']:,}"


def test_a_run_holds_nothing_but_the_contract(run: ScoreRun) -> None:
    assert files.list_names(run.path) == ["ledger", "manifest.json", "predictions", "rejects"]
    assert files.list_names(files.parent(run.path)) == [files.name(run.path)]


def test_another_batch_size_gives_the_same_predictions_to_rounding(
    spark: SparkSession, version: ModelVersion, folder: Path, network: Any, tmp_path: Path
) -> None:
    for batch_size in (1, 200):
        other = score(spark, version, folder, tmp_path / f"{batch_size}", batch_size=batch_size)
        check_predictions(rows_by_name(spark, other, "predictions", folder), network)


def test_spark_s_tasks_give_the_bits_that_the_driver_gives_of_few_files(
    spark: SparkSession,
    version: ModelVersion,
    run: ScoreRun,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "FEW_BYTES", 0)
    again = score(spark, version, folder, tmp_path / "output")
    for name in ("predictions", "rejects"):
        assert sorted(table(spark, again, name).collect()) == sorted(table(spark, run, name).collect())
    different = ("run", "started", "finished")
    first, second = ({**each.manifest, **dict.fromkeys(different)} for each in (run, again))
    assert first == {**second, "ledger": first["ledger"]}


@pytest.mark.parametrize("only", ["good", "bad"])
def test_a_folder_of_one_kind_gives_both_tables(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, only: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(picture(1) if only == "good" else b"nothing")
    made = score(spark, version, tmp_path / "images", tmp_path / "output")
    counts = (table(spark, made, "predictions").count(), table(spark, made, "rejects").count())
    assert counts == ((1, 0) if only == "good" else (0, 1))
    assert table(spark, made, "predictions").columns == schema.PREDICTIONS.names
    assert table(spark, made, "rejects").columns == schema.REJECTS.names


def test_the_manifest_of_the_output_is_that_of_the_newest_run(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(picture(1))
    first = score(spark, version, tmp_path / "images", tmp_path / "output")
    (tmp_path / "images" / "2.png").write_bytes(picture(2))
    second = score(spark, version, tmp_path / "images", tmp_path / "output")
    newest = json.loads((tmp_path / "output" / "manifest.json").read_text())
    assert newest == {**second.manifest, "num_runs": 2}
    assert (first.manifest["listed"], newest["listed"]) == (1, 2)
    assert runs_of(tmp_path / "output") == sorted([files.name(first.path), files.name(second.path)])
    assert json.loads(files.read_text(files.join(first.path, "manifest.json"))) == dict(first.manifest)


def test_of_two_runs_at_once_on_one_output_the_second_is_refused(
    spark: SparkSession, version: ModelVersion, folder: Path, network: Any, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    with Lock(files.qualify(str(output)), "run the first"):
        with pytest.raises(OutputInUseError, match=r"to which run the first on .* is writing") as caught:
            score(spark, version, folder, output)
        assert caught.value.exit_code == 73
        assert runs_of(output) == []
    made = score(spark, version, folder, output)
    check_predictions(rows_by_name(spark, made, "predictions", folder), network)
    assert sorted(each.name for each in output.iterdir()) == ["manifest.json", "runs"]


@pytest.mark.parametrize("step", ["_Scoring._manifest", "files.rename", "_Scoring._write"])
def test_a_failure_leaves_no_half_run_and_the_old_manifest(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(picture(1))
    first = score(spark, version, tmp_path / "images", tmp_path / "output")

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(f"seedlings_spark.scoring.run.{step}", fail)
    with pytest.raises(OSError, match="disk is full"):
        score(spark, version, tmp_path / "images", tmp_path / "output")
    assert runs_of(tmp_path / "output") == [files.name(first.path)]
    newest = json.loads((tmp_path / "output" / "manifest.json").read_text())
    assert newest == {**first.manifest, "num_runs": 1}


def test_a_file_that_is_lost_on_the_way_while_another_comes_twice_is_noticed(
    spark: SparkSession, version: ModelVersion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tasks.score_files

    def lossy(*args: Any, **options: Any) -> DataFrame:
        rows = real(*args, **options)
        lost = files.qualify(str(folder)) + "/0.png"
        kept = rows.where(rows.path != lost)
        return kept.union(kept.where(kept.path.endswith("/1.png")))

    monkeypatch.setattr(tasks, "score_files", lossy)
    with pytest.raises(InputError, match="each exactly once"):
        score(spark, version, folder, tmp_path / "output")
    assert runs_of(tmp_path / "output") == []


def test_a_finished_run_says_what_it_did(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").mkdir()
    for name, content in {"1.png": picture(1), "2.png": b"nothing"}.items():
        (tmp_path / "images" / name).write_bytes(content)
    with caplog.at_level(logging.INFO, logger="seedlings_spark.scoring"):
        score(spark, version, tmp_path / "images", tmp_path / "output")
    first, second = [
        record.getMessage() for record in caplog.records if record.name == "seedlings_spark.scoring.run"
    ]
    assert first.startswith("listed 2 files in file:///")
    assert second.startswith("scored 1 files and rejected 1 in ")


# --- Another file system


def test_images_on_another_file_system_are_scored_alike(
    spark: SparkSession, version: ModelVersion, network: Any, mounted: tuple[str, Path]
) -> None:
    root, behind = mounted
    write_folder(behind / "images")
    made = score(spark, version, f"{root}/images", f"{root}/output")
    assert made.path.startswith(f"{root}/output/runs/")
    predicted = rows_by_name(spark, made, "predictions", f"{root}/images")
    rejected = rows_by_name(spark, made, "rejects", f"{root}/images")
    assert set(predicted) | set(rejected) == {*GOOD, *BAD}
    assert not set(predicted) & set(rejected)
    check_predictions(predicted, network)
    for name, (_, reason, _) in BAD.items():
        assert reason is None or rejected[name].reason == reason, name
    newest = json.loads(files.read_text(f"{root}/output/manifest.json"))
    assert newest == {**made.manifest, "num_runs": 1}
    assert made.manifest["listed"] == len(GOOD) + len(BAD)


def test_a_glob_on_another_file_system_finds_what_matches(
    spark: SparkSession, mounted: tuple[str, Path]
) -> None:
    root, behind = mounted
    for name in ("2025/a.png", "2026/b.png", "2026/deep/c.png", "2026-x/d.png", "2026/.hidden"):
        (behind / name).parent.mkdir(parents=True, exist_ok=True)
        (behind / name).write_bytes(b"12345")

    def listed(pattern: str) -> dict[str, int]:
        table = sources.find(spark, f"{root}/{pattern}").listing
        return {row.path.removeprefix(root + "/"): row.length for row in table.collect()}

    assert set(listed("2026*")) == {"2026/b.png", "2026/deep/c.png", "2026-x/d.png", "2026/.hidden"}
    assert listed("{2025,2026}/*.png") == {"2025/a.png": 5, "2026/b.png": 5}
    with pytest.raises(InputError, match="nothing that matches"):
        listed("2027*")
    status = files.status(f"{root}/2025/a.png")
    assert (status.path, status.length) == (f"{root}/2025/a.png", 5)
    with pytest.raises(FileNotFoundError):
        files.status(f"{root}/2025/z.png")
