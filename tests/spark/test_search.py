"""The search for options of train: what is trained, what is written down, what a killed search keeps."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.stats
from pyspark.sql import SparkSession

import seedlings_spark as ss
from seedlings_spark import config
from seedlings_spark.errors import CorpusError, OptionError, TrainingError
from seedlings_spark.reports.search import CurvePoint, SearchNumbers, TrialNumbers, in_words
from seedlings_spark.workflow import data_curve, pipeline, search
from tests.conftest import with_all

SIZE = 16
FIXED = {"epochs": 3, "num_workers": 1, "augment": ["none"], "precision": "float32", "scaler": "none"}


@pytest.fixture(scope="module")
def place(spark: SparkSession, drawn_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a small network."""
    folder = tmp_path_factory.mktemp("search")
    options = ss.PrepareOptions(
        images=str(drawn_images), corpus=str(folder / "corpus"), image_size=SIZE, split_policy="stratified"
    )
    ss.prepare(spark, options)
    layers = [keras.Input((SIZE, SIZE, 3)), keras.layers.AveragePooling2D(4), keras.layers.Flatten()]
    network = keras.Sequential([*layers, keras.layers.Dense(12, activation="softmax", name="species")])
    (folder / "small.json").write_text(network.to_json())
    return folder


def options_of(
    place: Path, run: str, space: Mapping[str, Any], also: Mapping[str, Any] | None = None, **given: Any
) -> ss.TuneOptions:
    """Options of a search, whose file is written."""
    fixed = {**FIXED, "network": str(place / "small.json"), **(also or {})}
    lines = ["[train]", *(f"{name} = {json.dumps(value)}" for name, value in fixed.items())]
    lines += ["[space]", *(f"{name} = {value}" for name, value in space.items())]
    (place / f"{run}.toml").write_text("\n".join(lines) + "\n")
    places = {"corpus": str(place / "corpus"), "store": str(place / "store"), "run": str(place / run)}
    return ss.TuneOptions(**places, space=str(place / f"{run}.toml"), parallel=1, **given)


SPACE = {"learning_rate": "{ low = 1e-3, high = 1e-1, log = true }", "batch_size": "[4, 16]"}


@with_all
def test_a_search_that_was_killed_finds_what_another_one_finds_and_train_makes_it(
    spark: SparkSession, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"trials": 2, "sample": 0.5, "finalists": 1}
    calm = search.tune(spark, options_of(place, "calm", SPACE, **given))

    epochs = iter(range(3))  # it dies in the first epoch of the second trial

    def dies(self: Any, epoch: int, logs: Any = None) -> None:
        if next(epochs, None) is None:
            raise KeyboardInterrupt
        record(self, epoch, logs)

    record = pipeline.RunRecord.on_epoch_end
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.RunRecord, "on_epoch_end", dies)
        search.tune(spark, options_of(place, "killed", SPACE, **given))
    lines = (place / "killed" / search.TRIALS).read_text().splitlines()
    assert [json.loads(line)["state"] for line in lines] == [search.DONE, search.RUNNING]
    killed = search.tune(spark, options_of(place, "killed", SPACE, **given))

    def told(found: search.Found) -> list[Any]:
        return [(each.params, each.state, each.history, each.share, each.accuracy) for each in found.trials]

    assert told(killed) == told(calm)
    assert [each.finalist_of for each in calm.trials] == [None, None, calm.best.finalist_of]
    assert [each.share for each in calm.trials] == [0.5, 0.5, 1.0]
    searched = [each for each in calm.trials[:2] if each.state == search.DONE]
    assert calm.best.finalist_of == max(searched, key=lambda each: (each.accuracy, -each.number)).number

    # The command that it names, as the command line reads it.
    command = shlex.split(calm.numbers().command)
    flags: dict[str, Any] = {}
    for word in command[2:]:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            flags[name] = []
        else:
            flags[name].append(word)
    flags = {name: value if name == "augment" else value[0] for name, value in flags.items()}
    assert config.resolve(ss.TrainOptions, "train", flags) == calm.train_options

    final = search.tune(spark, options_of(place, "calm", SPACE, **given, wait_executors=60, final=True))
    assert told(final) == told(calm) and final.test_accuracy is not None
    manifest = ss.ModelStore(str(place / "store"), "seedlings").verify(final.version).manifest
    assert manifest["kept"]["epoch"] == calm.best.epoch
    assert manifest["metrics"]["val_accuracy"] == calm.best.accuracy
    page = (place / "calm" / "report" / "index.html").read_text()
    assert all(f"{each.accuracy:.4f}" in page for each in calm.trials if each.accuracy is not None)
    assert json.loads((place / "calm" / "report" / "search.json").read_text())["best"] == calm.best.number


def test_trials_that_fail_are_told_and_too_many_end_the_search(spark: SparkSession, place: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"2 of 3 trials that failed, at last with: .*--optimizer nonsense"
    ):
        search.tune(spark, options_of(place, "failing", {"optimizer": '["nonsense"]'}, trials=3))
    lines = [json.loads(line) for line in (place / "failing" / search.TRIALS).read_text().splitlines()]
    assert [line["state"] for line in lines] == [search.FAILED] * 2
    assert all("nonsense" in line["error"] for line in lines)
    with pytest.raises(OptionError, match="other options"):
        search.tune(spark, options_of(place, "failing", SPACE, trials=3))


def test_a_trial_stops_and_is_judged_as_train_stops_and_keeps(spark: SparkSession, place: Path) -> None:
    also = {"keep": "last", "patience": 1, "num_workers": 1}
    # No weight changes, so that the first epoch stays the best one.
    given = options_of(place, "patient", {"learning_rate": "[1e-30]"}, also, trials=1)
    best = search.tune(spark, given).best
    assert (len(best.history["val_loss"]), best.epoch) == (2, 2)


@with_all
def test_without_validation_images_there_is_nothing_to_compare_on(
    spark: SparkSession, drawn_images: Path, place: Path
) -> None:
    shares = (0.8, 0.0, 0.2)
    bare = place / "without validation"
    ss.prepare(
        spark,
        ss.PrepareOptions(images=str(drawn_images), corpus=str(bare), image_size=SIZE, split_shares=shares),
    )
    options = options_of(place, "bare", SPACE)
    with pytest.raises(CorpusError, match="no validation images"):
        search.tune(spark, ss.TuneOptions(corpus=str(bare), store=options.store, space=options.space))


def test_parts_of_the_training_images_lie_within_each_other_and_hold_every_species(
    spark: SparkSession, place: Path
) -> None:
    images = pipeline.training_images(spark, ss.load_corpus(str(place / "corpus")))
    rows = {row.content_hash: row for row in images.drop("image").collect()}
    held_out = {key for key, row in rows.items() if row.is_validation}

    def part(share: float, seed: int = 0) -> set[str]:
        return {row.content_hash for row in data_curve.sampled(images, share, seed).collect()}

    parts = [part(share) for share in data_curve.SHARES]
    assert held_out < parts[0] < parts[1] < parts[2] < parts[3] == set(rows)
    for share, chosen in zip(data_curve.SHARES, parts, strict=True):
        for species in {row.species for row in rows.values()}:
            mine = {key for key, row in rows.items() if row.species == species} - held_out
            assert len(mine & chosen) == math.ceil(len(mine) * share)
    assert part(0.5) == parts[2] != part(0.5, seed=1)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((0.5, 0.65, 0.8, 0.9), "has changed accuracy by +10.0 points, more than the"),
        ((0.5, 0.65, 0.8, 0.81), "Whether more pictures would help cannot be told from them"),
        ((0.5, 0.65, 0.8, 0.75), "As many pictures again would hardly help"),
    ],
)
def test_words_tell_whether_more_pictures_would_help(accuracies: tuple[float, ...], expected: str) -> None:
    images, total = (100, 250, 500, 1000), 1000
    points = [CurvePoint(n / 1000, n, each, total) for n, each in zip(images, accuracies, strict=True)]
    trial = TrialNumbers(0, "done", {}, 0.9, 1, 1.0, 1.0)
    said = " ".join(in_words(SearchNumbers([trial], 0, {}, {}, "", curve=points)))
    assert expected in said
    slope = np.polyfit(np.log2(images), accuracies, 1)[0]
    assert f"over the whole curve a doubling brings {100 * slope:+.1f} points" in said
    for each in accuracies:
        low, high = scipy.stats.binomtest(round(each * total), total).proportion_ci(method="wilson")
        assert f"{each:.4f} ({low:.4f} to {high:.4f})" in said


def test_a_part_of_the_images_is_trained_on_for_as_many_steps_in_so_many_more_epochs() -> None:
    given = ss.TrainOptions(
        corpus="c", store="s", epochs=6, patience=2, curriculum="length", curriculum_epochs=3
    )
    part = data_curve.options_of(given, 0.25, 0)
    assert (part.epochs, part.patience, part.curriculum_epochs) == (24, 8, 12)
    (plateau,) = pipeline.plateau("plateau", 12)
    assert plateau.patience == 12


@with_all
def test_the_data_curve_is_kept_and_every_point_takes_as_many_steps(spark: SparkSession, place: Path) -> None:
    options = options_of(place, "curve", {"learning_rate": "[0.01]"}, {"epochs": 2}, trials=1)
    search.tune(spark, options)
    asked = replace(options, data_curve=True)
    found = search.tune(spark, asked)
    folder = place / "curve" / "curve"
    lines = {each: (folder / each / "metrics.jsonl").read_text().splitlines() for each in ("010", "100")}
    assert len(lines["010"]) == 20 and len(lines["100"]) == 2
    assert [each.share for each in found.curve] == list(data_curve.SHARES)
    kept = min(map(json.loads, lines["100"]), key=lambda line: line["val_loss"])
    assert found.curve[-1].accuracy == kept["val_accuracy"]
    assert found.curve[-1].images == ss.load_corpus(options.corpus).num_images("train")
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")}
    again = search.tune(spark, asked)
    assert again.curve == found.curve and times == {path: path.stat().st_mtime_ns for path in times}
    assert f"{found.curve[0].accuracy:.4f}" in (place / "curve" / "report" / "index.html").read_text()
