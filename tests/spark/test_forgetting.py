"""Pictures that are to be forgotten: no byte of them stays, and readers find the old or the new state."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from seedlings_spark import corpus, files, fingerprint, images, schema, scoring
from seedlings_spark.config import ForgetOptions
from seedlings_spark.corpus import SplitRule, decoding
from seedlings_spark.errors import InputError, OptionError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.models.store import ModelStore
from seedlings_spark.scoring import erasure as scores_erasure
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import events, forgetting, publication, runs
from seedlings_spark.workflow.search import TEST_IMAGES
from tests.conftest import HANG_SECONDS, with_all
from tests.pictures import png, write
from tests.spark import killed
from tests.spark.test_scoring import CLASSES, SIZE, picture, score, tiny_network

ROOT = Path(__file__).parents[2]
JANE, COPY, NEAR = (
    "Jane D\N{LATIN SMALL LETTER O WITH DIAERESIS}e 7.png",
    "from a phone.png",
    "a moment later.png",
)
BAD = "Jane's broken.png"
MARKS = [name.removesuffix(".png").encode() for name in (JANE, COPY, BAD)]
# Moments at which the job is killed, all of them with `test --all`: each before a write or the removal of something.
MOMENTS = range(36) if os.environ.get("SEEDLINGS_TEST_ALL") else (8,)


def near(content: bytes) -> bytes:
    """Nearly the same picture."""
    pixels = images.decode(content, (64, 64), aspect="stretch", formats=images.FORMATS).copy()
    pixels[:2, :2] ^= 1
    return images.encode_png(pixels)


def prepare(spark: SparkSession, species: Path, target: Path, **how: bool) -> corpus.Corpus:
    task = decoding.DecodeTask(
        size=(16, 16), aspect="stretch", formats=images.FORMATS, max_pixels=10**6, max_bytes=10**6
    )
    split = SplitRule({"train": 1.0, "validation": 0.0, "test": 0.0}, near_duplicates="report")
    return corpus.prepare(spark, str(species), str(target), task, split, **how)


@pytest.fixture(scope="module")
def place(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of two runs, a corpus and a store; a person's picture is in all of them, in the corpus twice."""
    pytest.importorskip("imagehash")
    folder = tmp_path_factory.mktemp("a place")
    photos, species = folder / "photos", folder / "labelled"
    hers = png(7, 64, 64)
    for number in range(6):
        write(species, f"{'Maize' if number % 2 else 'Rye'}/{number}.png", png(number, 64, 64))
        write(photos, f"{number}.png", picture(number))
    for root in (photos, species / "Maize"):
        write(root, JANE, hers)
        write(root, BAD, b"no picture")
    write(species, f"Maize/{COPY}", hers)
    write(species, f"Maize/{NEAR}", near(hers))

    prepared = prepare(spark, species, folder / "corpus")
    assert prepared.manifest["near_duplicates"]["pairs"] == 1

    store = ModelStore(files.qualify(str(folder / "store")), "seedlings")
    model = PipelineModel(
        [SeedlingsModel.from_network(tiny_network(), CLASSES, loss="categorical_crossentropy")]
    )
    about: dict[str, Any] = {"image_size": list(SIZE), "aspect": "stretch"}
    trained = {"path": prepared.path, "fingerprint": prepared.fingerprint}
    for of in (trained, {**trained, "fingerprint": "0" * 64}):
        publication.publish(store, model, about={**about, "corpus": of, "run_path": ""}, promote=True)
    table = store.path + "/features/0123/4567"
    prepared.images(spark).drop(schema.IMAGE).write.parquet(table)
    files.write_text(store.path + "/features/0123/table", "4567")

    version, output = store.resolve("v0001"), folder / "scores"
    score(spark, version, photos, output, incremental=True, review=5, run_id="one")
    write(photos, "new.png", picture(50))
    score(spark, version, photos, output, incremental=True, review=5, run_id="two")
    return folder


def copied(place: Path, target: Path) -> Path:
    """The scores and the corpus elsewhere."""
    for name in ("scores", "corpus"):
        shutil.copytree(place / name, target / name)
    return target


def options(place: Path, where: Path, **more: Any) -> ForgetOptions:
    """As the picture and the file that is none are spelled in the scores, or beside the list."""
    listed = write(
        place,
        "erasures.txt",
        f"photos/{JANE}\r\n\nfile:{place}/photos/{BAD}\n{place}/labelled/Maize/{BAD}".encode(),
    )
    return ForgetOptions(
        **{"paths": str(listed), "output": str(where / "scores"), "corpus": str(where / "corpus"), **more}
    )


def texts(where: Path) -> list[tuple[Path, bytes]]:
    """The bytes of all files, and of Parquet files all values besides."""
    found = []
    for file in sorted(each for each in where.rglob("*") if each.is_file()):
        more = (
            json.dumps(pq.read_table(file).to_pylist(), default=repr, ensure_ascii=False)
            if file.suffix == ".parquet"
            else ""
        )
        found.append((file, file.read_bytes() + more.encode()))
    return found


def traces(where: Path) -> list[str]:
    """Files in which the person's pictures are named, as they are or as JSON escapes them, or stand by their hash."""
    hers = [*MARKS, fingerprint.content_hash(png(7, 64, 64)).encode()]
    escaped = [
        mark.decode("utf-8", "strict").encode("ascii", "backslashreplace").replace(b"\\xf6", b"\\u00f6")
        for mark in MARKS
    ]
    return [str(file) for file, text in texts(where) if any(each in text for each in (*hers, *escaped))]


def rows(spark: SparkSession, where: Path) -> tuple[int, int]:
    """Predictions and images of a corpus, each read as users do, and compared with its manifest on the way."""
    return (
        scoring.latest(spark, str(where / "scores"), name="").count(),
        corpus.load(str(where / "corpus")).images(spark).count(),
    )


def assert_forgotten(spark: SparkSession, where: Path) -> None:
    assert rows(spark, where) == (7, 7)
    assert traces(where) == []
    prepared = corpus.load(str(where / "corpus"))
    manifest = prepared.manifest
    assert prepared.rejects(spark).count() == 0 == prepared.near_duplicates(spark).count()
    assert (manifest["listed"], manifest["accepted"], manifest["found"]) == (7, 7, 7)
    assert manifest["near_duplicates"]["pairs"] == 0 and manifest["images_of_split"]["train"] == 7
    assert prepared.fingerprint == corpus.corpus_fingerprint(prepared.images(spark))
    runs = Runs(files.qualify(str(where / "scores")))
    one, two = (runs.manifest(name) for name in ("one", "two"))
    assert (one["listed"], one["scored"], one["rejected"], one["rejected_by_reason"]) == (6, 6, 0, {})
    assert sum(one["images_of_species"].values()) == 6 and two["scored"] == 1
    assert json.loads((where / "scores" / "manifest.json").read_text())["run"] == "two"
    review = Path(files.local_path(runs.tables_path("one"))) / "review"
    listed = [files.name(row["path"]) for row in csv.DictReader((review / "least_confident.csv").open())]
    page = (review / "index.html").read_text()
    assert len(listed) in (4, 5) and all(name in page for name in listed)
    assert page.count('<img src="data:image/jpeg') == len(listed)
    left = {each.name for each in where.rglob("*")}
    assert not any(name.startswith((".building", ".forgetting", ".lock")) for name in left)
    assert runs.left_behind() == [] == corpus.left_behind(prepared.path)


def test_no_byte_of_forgotten_pictures_stays_and_the_versions_trained_on_them_are_named(
    spark: SparkSession, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = corpus.load(str(place / "corpus"))
    where = copied(place, tmp_path)
    assert len(traces(where)) >= 7  # what the search would find
    told = forgetting.forget(spark, options(place, where, store=str(place / "store")))
    assert_forgotten(spark, where)
    assert told.scores is not None and told.corpus is not None
    assert (told.scores.predictions, told.scores.rejects, told.scores.runs) == (1, 1, ("one",))
    assert (told.corpus.images_of_split, told.corpus.rejected) == ({"train": 2}, 1)
    assert told.fingerprint == before.fingerprint != told.corpus.corpus.fingerprint
    assert corpus.load(told.corpus.corpus.path).lineage == {
        before.fingerprint,
        told.corpus.corpus.fingerprint,
    }
    # The corpus that the first version names, which still holds them; the second was trained on another.
    assert [name for name, _, _ in told.versions] == ["seedlings v0001"]
    assert list(told.unknown) == ["seedlings v0002"] and list(told.elsewhere) == [files.qualify(before.path)]
    assert not (place / "store/seedlings/features/0123").exists()
    assert sorted(map(files.name, told.there)) == sorted([JANE, JANE, COPY, BAD, BAD])
    printed = "\n".join(str(value) for _, value in told.summary())
    assert "3, of which 3 were found" in printed and f"photos/{JANE}" in printed

    # Again it is known that it was done; anything else is a mistake.
    again = forgetting.forget(spark, options(place, where))
    assert again.scores is not None and again.scores.runs == () and len(again.unmatched) == 3
    assert_forgotten(spark, where)
    listed = write(tmp_path, "wrong.txt", b"nobody.png\n")
    with pytest.raises(InputError, match=r"1 paths, none of which .*scores and .*corpus holds: nobody.png"):
        forgetting.forget(spark, options(place, where, paths=str(listed)))
    listed.write_text(f"nobody.png\nfile://{place}/photos/3.png\n")
    some = forgetting.forget(spark, options(place, where, paths=str(listed), corpus=""))
    assert list(some.unmatched) == ["nobody.png"] and rows(spark, where) == (6, 7)
    assert "1 of 2 paths are held nowhere: nobody.png" in caplog.text
    # The next run finds what is still in its folder.
    version = ModelStore(files.qualify(str(place / "store")), "seedlings").resolve("v0001")
    run = score(spark, version, place / "photos", where / "scores", incremental=True)
    assert (run.manifest["scored"], run.manifest["rejected"], run.manifest["already_scored"]) == (2, 1, 6)


def test_what_is_no_list_of_paths_is_refused(spark: SparkSession, place: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none of --output, --corpus and --store"):
        ForgetOptions(paths="a.txt")
    for content, message in ((b"\n\n", "without a path"), (b"a\xff.png\n", "not UTF-8")):
        listed = write(tmp_path, "list.txt", content)
        with pytest.raises(InputError, match=message) as caught:
            forgetting.forget(spark, options(place, place, paths=str(listed)))
    assert caught.value.remedy == "Check --paths"
    with pytest.raises(InputError, match="no run in"):
        forgetting.forget(spark, options(place, tmp_path, corpus=""))


@with_all
def test_a_corpus_that_has_forgotten_is_prepared_anew_in_its_place(
    spark: SparkSession, place: Path, tmp_path: Path
) -> None:
    where = copied(place, tmp_path)
    forgetting.forget(spark, options(place, where))
    anew = prepare(spark, place / "labelled", where / "corpus", overwrite=True)
    names = {each.name for each in (where / "corpus").iterdir()}
    assert names == {"images", "rejects", "near_duplicates", "manifest.json"} and traces(where)
    assert "forgotten" not in anew.manifest and anew.images(spark).count() == 9


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_job_that_is_killed_leaves_the_old_or_the_new_state_and_the_next_one_ends_it(
    spark: SparkSession, place: Path, tmp_path: Path, moment: int
) -> None:
    where = copied(place, tmp_path)
    asked = options(place, where)
    command = [
        sys.executable,
        "-m",
        "tests.spark.killed",
        str(moment),
        asked.paths,
        asked.output,
        asked.corpus,
    ]
    ran = subprocess.run(
        command, cwd=ROOT, env=killed.environment(spark), capture_output=True, text=True, timeout=HANG_SECONDS
    )
    if ran.returncode != -signal.SIGKILL:
        assert ran.returncode == 0 and moment > 8, ran.stderr
        assert_forgotten(spark, where)
        return
    scored, accepted = rows(spark, where)
    assert scored in (7, 8) and accepted in (7, 9)
    forgetting.forget(spark, options(place, where))
    assert_forgotten(spark, where)


@pytest.mark.parametrize("policy", ["leaks", "conflicts"])
def test_copies_of_a_picture_that_was_rejected_for_its_label_go_with_it(
    spark: SparkSession, tmp_path: Path, policy: str
) -> None:
    folders = {"leaks": ("train/Maize", "test/Maize"), "conflicts": ("Maize", "Rye")}[policy]
    for number in range(4):
        root = "train/" if policy == "leaks" else ""
        write(tmp_path, f"labelled/{root}{('Maize', 'Rye')[number % 2]}/{number}.png", png(number, 16, 16))
    for folder, name in zip(folders, ("jane.png", "copy.png"), strict=True):
        write(tmp_path, f"labelled/{folder}/{name}", png(77, 16, 16))
        write(tmp_path, f"labelled/{folder}/empty.png", b"")
    task = decoding.DecodeTask((16, 16), "stretch", images.FORMATS, 10**6, 10**6)
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1} if policy == "leaks" else {"train": 1.0}
    rule = SplitRule({"validation": 0.0, "test": 0.0, **shares}, leaks="drop")
    places = (str(tmp_path / "labelled"), str(tmp_path / "corpus"))
    corpus.prepare(spark, *places, task, rule, corpus.Selection("drop"))
    gone = [f"{tmp_path}/labelled/{folders[0]}/{name}" for name in ("jane.png", "empty.png")]
    listed = write(tmp_path, "list.txt", "\n".join(gone).encode())
    told = forgetting.forget(spark, ForgetOptions(paths=str(listed), corpus=places[1]))
    assert [files.name(each) for each in told.copies] == ["copy.png"]
    prepared = corpus.load(files.qualify(places[1]))
    assert sorted(files.name(row.path) for row in prepared.images(spark).collect()) == [
        f"{number}.png" for number in range(4)
    ]
    # An empty file is no picture, of which others would be copies.
    (row,) = prepared.rejects(spark).collect()
    assert row.reason == "empty" and row.path.endswith(f"{folders[1]}/empty.png")


def test_a_call_that_ends_the_work_of_another_finds_copies_of_which_only_the_ledger_knows(
    spark: SparkSession, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(place / "photos", photos)
    write(photos, COPY, png(7, 64, 64))
    version = ModelStore(files.qualify(str(place / "store")), "seedlings").resolve("v0001")
    output = tmp_path / "own"
    for name in ("one", "two"):
        score(spark, version, photos, output, incremental=True, run_id=name)
        write(photos, "newest.png", picture(60))
    runs = Runs(files.qualify(str(output)))
    # As of every 24th run, which writes the whole ledger.
    folders = [
        Path(files.local_path(files.join(runs.tables_path(name), "ledger"))) for name in ("one", "two")
    ]
    for part in folders[0].glob("*.parquet"):
        shutil.copy(part, folders[1] / f"all-{part.name}")
    listed = write(tmp_path, "list.txt", f"photos/{JANE}\n".encode())
    asked = ForgetOptions(paths=str(listed), output=str(output))
    real, calls = scores_erasure._erase_from, []

    def stopped(spark: SparkSession, runs: Runs, run: str, *rest: Any) -> None:
        calls.append(run)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(spark, runs, run, *rest)

    monkeypatch.setattr(scores_erasure, "_erase_from", stopped)
    with pytest.raises(KeyboardInterrupt):
        forgetting.forget(spark, asked)
    assert calls == ["one", "two"] and any(MARKS[1] in text for _, text in texts(output))
    forgetting.forget(spark, asked)
    assert not any(mark in text for _, text in texts(output) for mark in MARKS[:2])


def test_pictures_that_runs_have_drawn_go_with_them_and_curves_stay(
    spark: SparkSession, place: Path, tmp_path: Path
) -> None:
    where = copied(place, tmp_path)
    shutil.copytree(place / "store", where / "store")
    prepared = corpus.load(files.qualify(str(where / "corpus")))
    name = files.join(files.qualify(str(where / "store")), "seedlings")
    of = {"path": prepared.path, "fingerprint": prepared.fingerprint}
    drawn, folders = png(7, 64, 64), {}
    for run, about in (("runs/ours", of), ("runs/another", {**of, "fingerprint": "0" * 64})):
        folders[run] = Path(files.local_path(files.join(name, run)))
        runs.begin(files.join(name, run), {"corpus": about, "options": {}})
        (folders[run] / runs.AUGMENTATION).write_bytes(drawn)
        line = {"epoch": 1, "time": "now", "loss": None, "val_loss": 0.25}
        (folders[run] / runs.METRICS).write_text(json.dumps(line) + "\n")
        metrics = {"loss": 0.5, "val_loss": 0.25}
        events.write(files.join(name, run, runs.EVENTS), 1, metrics, {"pictures": drawn, "confusion": drawn})
        for table in ("curriculum/losses", "folds/0/curriculum/losses", "folds/predictions"):
            rows = prepared.images(spark).select(schema.CONTENT_HASH)
            rows.write.parquet(files.join(name, run, table))
    search = Path(files.local_path(files.join(name, "searches/one")))
    runs.begin(files.qualify(str(search)), {"corpus": of, "options": {}})
    write(search, f"report/{TEST_IMAGES}/index.html", MARKS[0])
    told = forgetting.forget(spark, options(place, where, store=str(where / "store")))
    ours, another = folders.values()
    hers = fingerprint.content_hash(drawn).encode()
    left = [
        file for file, text in texts(where / "store") if drawn in text or hers in text or MARKS[0] in text
    ]
    assert {each.relative_to(another).parts[0] for each in left} == {runs.AUGMENTATION, runs.EVENTS}
    (events_file,) = (ours / runs.EVENTS / "validation").iterdir()
    (event,) = [each for each in tf.compat.v1.train.summary_iterator(str(events_file)) if each.summary.value]
    (value,) = event.summary.value
    assert (event.step, value.tag, value.simple_value) == (1, "loss", 0.25)
    assert len([each for each in told.tables if "/runs/ours/" in each]) == 5
    assert str(search / "report") in " ".join(told.tables)
