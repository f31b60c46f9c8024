"""A second version in the shadow of the one that scores, and a promotion that hangs on which of the two is better."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from scipy.stats import binomtest

from seedlings_spark import corpus, files, images, scoring, workflow
from seedlings_spark.config import ForgetOptions, ModelsOptions, ScoringOptions
from seedlings_spark.corpus import SplitRule, decoding
from seedlings_spark.errors import OptionError, StoreError, WorseError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.models.decisions import FLOAT32, KEY, Decisions
from seedlings_spark.models.store import ModelStore
from seedlings_spark.scoring import ScoreRun
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import forgetting, predicting, publication
from tests.pictures import write

SIDE, NUM = 16, 40
CLASSES = ["Maize", "Rye", "Sugar beet", "Wheat"]


def pixels(number: int) -> Any:
    """A picture of one colour, more or less."""
    generator = np.random.default_rng(number)
    return np.clip(
        generator.integers(30, 220, 3) + generator.integers(0, 20, (SIDE, SIDE, 3)), 0, 255
    ).astype(np.uint8)


def network(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    made = [keras.Input((SIDE, SIDE, 3)), layers.Rescaling(1 / 64, -2), layers.GlobalAveragePooling2D()]
    return keras.Sequential(
        [*made, layers.Dense(len(CLASSES), activation="softmax", kernel_initializer="normal")]
    )


def said(of: Any) -> list[str]:
    """What a network says of all pictures, by Keras."""
    outputs = of.predict(np.stack([pixels(number) for number in range(NUM)]).astype("float32"), verbose=0)
    return [CLASSES[place] for place in outputs.argmax(axis=1)]


class Place:
    """Pictures, a store of two versions of which the first is current, and what each says by Keras."""

    def __init__(self, folder: Path) -> None:
        self.photos = folder / "photos"
        for number in range(NUM):
            write(self.photos, f"{number:02}.png", images.encode_png(pixels(number)))
        write(self.photos, "bad.png", b"no picture")
        self.store = ModelStore(files.qualify(str(folder / "store")), "seedlings")
        self.said = []
        for seed, side in ((1, SIDE), (2, SIDE), (3, 2 * SIDE)):
            made = network(seed)
            if side == SIDE:
                self.said.append(said(made))
            else:
                made = keras.Sequential([keras.Input((side, side, 3)), *made.layers])
            made.save(folder / "made.keras")
            publication.import_network(
                self.store, str(folder / "made.keras"), CLASSES, aspect="stretch", promote=False
            )
        self.store.promote("v0001")

    def score(
        self, spark: SparkSession, output: Path, version: str, other: str = "", **options: Any
    ) -> ScoreRun:
        paths = {"images": files.qualify(str(self.photos)), "output": files.qualify(str(output))}
        with_it = self.store.resolve(other) if other else None
        asked = ScoringOptions(**{**paths, "review": 0, **options})
        return scoring.score(spark, self.store.resolve(version), asked, with_it)

    def promote(self, version: str, **options: Any) -> str:
        return workflow.models(
            ModelsOptions(
                action="promote", store=self.store.directory, model_version=version, if_better=True, **options
            )
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("two versions"))


@pytest.fixture(scope="module")
def scores(
    spark: SparkSession, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ScoreRun]:
    output = tmp_path_factory.mktemp("shadowed") / "scores"
    return output, place.score(spark, output, "v0001", "v0002")


def table(spark: SparkSession, run: ScoreRun, name: str) -> DataFrame:
    return spark.read.parquet(files.join(run.tables_path, name))


def test_the_shadow_changes_nothing_and_is_what_the_other_version_says_by_itself(
    spark: SparkSession, place: Place, scores: tuple[Path, ScoreRun], tmp_path: Path
) -> None:
    _, run = scores
    alone = [place.score(spark, tmp_path / version, version) for version in ("v0001", "v0002")]
    key = lambda row: row.path  # noqa: E731
    first, second = (sorted(table(spark, each, "predictions").collect(), key=key) for each in alone)
    assert sorted(table(spark, run, "predictions").collect(), key=key) == first
    assert [row.predicted_species for row in first] == place.said[0]
    assert [row.predicted_species for row in second] == place.said[1]
    differ = [
        pair
        for pair in zip(first, second, strict=True)
        if pair[0].predicted_species != pair[1].predicted_species
    ]
    assert 3 <= len(differ) <= NUM - 3
    found = sorted(table(spark, run, "shadow").collect(), key=key)
    assert [tuple(row) for row in found] == [(*one[:5], *other[2:5]) for one, other in differ]
    told = run.manifest["shadow"]
    assert (told["model_version"], told["compared"], told["agree"]) == ("v0002", NUM, NUM - len(differ))
    compared, different = Counter(place.said[0]), Counter(one.predicted_species for one, _ in differ)
    assert told["of_species"] == {
        name: {"compared": count, "agree": count - different[name]}
        for name, count in sorted(compared.items())
    }
    line = str(dict(scoring.summary(run))["shadow"])
    assert line.startswith(f"v0002 agrees on {1 - len(differ) / NUM:.1%} of {NUM} pictures (")
    assert (run.manifest["scored"], run.manifest["rejected"]) == (NUM, 1)


def test_a_picture_that_is_forgotten_is_not_counted_any_more(
    spark: SparkSession, place: Place, tmp_path: Path
) -> None:
    run = place.score(spark, tmp_path / "scores", "v0001", "v0002")
    (first, *rest) = sorted(row.path for row in table(spark, run, "shadow").collect())
    (tmp_path / "erasures.txt").write_text(first)
    forgetting.forget(spark, ForgetOptions(str(tmp_path / "erasures.txt"), output=str(tmp_path / "scores")))
    now = ScoreRun(run.path, Runs(files.qualify(str(tmp_path / "scores"))).manifest(files.name(run.path)))
    assert sorted(row.path for row in table(spark, now, "shadow").collect()) == rest
    before, told = run.manifest["shadow"], now.manifest["shadow"]
    assert (told["compared"], told["agree"]) == (before["compared"] - 1, before["agree"])
    assert sum(each["compared"] for each in told["of_species"].values()) == now.manifest["scored"] == NUM - 1


def test_a_shadow_has_to_be_another_version_of_the_same_pixels(
    place: Place, spark: SparkSession, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="which is the version that scores"):
        place.score(spark, tmp_path / "scores", "v0001", "v0001")
    with pytest.raises(OptionError, match=r"--shadow v0003, which takes images of 32x32 pixels, stretch"):
        place.score(spark, tmp_path / "scores", "v0001", "v0003")
    assert not (tmp_path / "scores").exists()


def test_a_promotion_on_late_labels_and_on_a_test_split_is_refused_only_to_what_is_worse(
    spark: SparkSession, place: Place, scores: tuple[Path, ScoreRun], tmp_path: Path
) -> None:
    output, _ = scores
    truth = place.said[1]  # the second version is always right
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "species"))
        rows.writerows((f"{place.photos}/{number:02}.png", truth[number]) for number in range(NUM))
    prepared = tmp_path / "corpus"
    labelled = tmp_path / "labelled"
    for number in range(NUM):
        write(labelled, f"{truth[number]}/{number}.png", images.encode_png(pixels(number)))
    task = decoding.DecodeTask(
        size=(SIDE, SIDE), aspect="stretch", formats=images.FORMATS, max_pixels=10**6, max_bytes=10**6
    )
    shares = {"train": 0.0, "validation": 0.0, "test": 1.0}
    corpus.prepare(spark, str(labelled), str(prepared), task, SplitRule(shares))
    on_labels = {"scores": str(output), "labels": str(labels)}
    num_wrong = sum(one != other for one, other in zip(*place.said, strict=True))
    p_value = binomtest(num_wrong, num_wrong).pvalue
    assert p_value < 0.05
    numbers = rf"only this one on {num_wrong}, only v0001 on 0; McNemar's exact p = {p_value:.3g}"
    try:
        for on in (on_labels, {"corpus": str(prepared)}):
            assert (
                f"v0002 is better than v0001 (right on {NUM} and {NUM - num_wrong} of {NUM}"
                in place.promote("v0002", **on)
            )
            assert place.store.current() == "v0002"
            assert "v0002 was current" in place.promote("v0002", **on)
            with pytest.raises(
                WorseError, match=r"v0001 is worse than v0002 .*McNemar's exact p = "
            ) as refused:
                place.promote("v0001", **on)
            assert refused.value.exit_code == 4 and place.store.current() == "v0002"
            place.store.promote("v0001")
        assert numbers in place.promote("v0002", **on_labels)
        # Of six pictures on which they differ not at all nobody can tell: that is not worse.
        lines = labels.read_text().splitlines()
        same = [lines[1 + number] for number in range(NUM) if place.said[0][number] == truth[number]][:6]
        labels.write_text("\n".join([lines[0], *same]) + "\n")
        assert "v0001 is not to be told apart from v0002" in place.promote("v0001", **on_labels)
        assert place.store.current() == "v0001"
        with pytest.raises(StoreError, match="takes images of another size"):
            place.promote("v0003", **on_labels)
    finally:
        place.store.promote("v0001")


def test_a_version_that_knows_nothing_of_some_pictures_is_no_better_on_a_test_split_than_on_labels(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, store = network(2), ModelStore(files.qualify(str(tmp_path / "store")), "seedlings")
    outputs = made.predict(np.stack([pixels(number) for number in range(NUM)]).astype("float32"), verbose=0)
    below = float(np.sort(outputs.max(axis=1))[15]) + 1e-4  # 16 pictures are unknown
    decided = Decisions(max_unknown=0.4, unknown_below=below, images=NUM)
    about = {"image_size": [SIDE, SIDE], "aspect": "stretch"}
    for more in ({}, {KEY: {FLOAT32: decided.to_dict()}}, {"aspect": "crop"}):
        model = PipelineModel([SeedlingsModel.from_network(made, CLASSES)])
        publication.publish(store, model, about={**about, **more}, promote=False)
    store.promote("v0001")
    for number in range(NUM):
        name = f"{CLASSES[outputs[number].argmax()]}/{number}.png"
        write(tmp_path / "labelled", name, images.encode_png(pixels(number)))
    task = decoding.DecodeTask((SIDE, SIDE), "stretch", images.FORMATS, 10**6, 10**6)
    rule = SplitRule({"train": 0.0, "validation": 0.0, "test": 1.0})
    corpus.prepare(spark, str(tmp_path / "labelled"), str(tmp_path / "corpus"), task, rule)

    def promote(version: str) -> str:
        places = {"store": store.directory, "corpus": str(tmp_path / "corpus")}
        return workflow.models(
            ModelsOptions(action="promote", model_version=version, if_better=True, **places)
        )

    said = rf"v0002 is worse than v0001 \(right on {NUM - 16} and {NUM} of {NUM}"
    with pytest.raises(WorseError, match=said):
        promote("v0002")
    predicting.check_fits(store.resolve("v0003"), corpus.load(str(tmp_path / "corpus")), "test")
    assert "prepared with --aspect stretch, and seedlings v0003 scores with crop" in caplog.text
    with pytest.raises(StoreError, match="fits pictures into their size by stretch, not crop"):
        promote("v0003")
    assert store.current() == "v0001"
