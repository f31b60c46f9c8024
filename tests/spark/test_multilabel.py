"""Pictures that show any number of species: from a table of lists to a corpus, a version, its numbers and scores."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from keras import layers
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812
from sklearn import metrics

import seedlings_spark as ss
from seedlings_spark import config, corpus, features, images, schema, scoring, workflow
from seedlings_spark.corpus import Corpus, layout, synthetic
from seedlings_spark.errors import (
    CorpusError,
    InputError,
    NetworkError,
    OptionError,
    SeedlingsError,
    StoreError,
)
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.reports import multilabel
from seedlings_spark.scoring import shadow
from seedlings_spark.serving import versions
from seedlings_spark.workflow import (
    exploring,
    featurizing,
    forgetting,
    late_labels,
    pipeline,
    predicting,
    search,
)
from tests import docs
from tests.conftest import with_all

SIZE, NUMBER = 16, 120
PLANTS = ("Rye", "Fat Hen", "Maize")  # as they are drawn; a corpus has them by their names


@dataclass
class Place:
    """What the whole way leaves."""

    folder: Path
    shown: dict[str, list[str]]  # file -> species, as the table has them; none of numbers
    prepared: Corpus
    version: ModelVersion
    numbers: multilabel.MultiLabelEvaluation

    def options(self, kind: type[Any], **given: Any) -> Any:
        """Those of a job, with the folders that are here."""
        known = {"corpus": self.prepared.path, "store": str(self.folder / "store")}
        names = set(kind.__dataclass_fields__)
        return kind(**{name: value for name, value in known.items() if name in names} | given)

    @property
    def report(self) -> Path:
        return self.folder / "report"


def picture(number: int, species: list[str]) -> np.ndarray[Any, Any]:
    """Four quarters of soil, in some of which a plant stands."""
    draw = np.random.default_rng(number)
    quarters = list(np.clip(draw.normal((96, 74, 56), 12, (4, 24, 24, 3)), 0, 255).astype(np.uint8))
    for name, quarter in zip(species, draw.permutation(4), strict=False):
        quarters[quarter] = synthetic.draw(PLANTS.index(name), number, seed=0, size=24)
    return np.vstack([np.hstack(quarters[:2]), np.hstack(quarters[2:])])


@pytest.fixture(scope="module")
def place(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("several species")
    (folder / "pictures").mkdir()
    draw, shown = np.random.default_rng(5), {}
    for number in range(NUMBER):
        species = [
            name for name, share in zip(PLANTS, (0.5, 0.4, 0.25), strict=True) if draw.random() < share
        ]
        content = images.encode_png(picture(number, species))
        (folder / "pictures" / f"{number:03d}.png").write_bytes(content)
        shown[f"{number:03d}.png"] = species
    rows = [{"path": f"pictures/{name}", "species": species} for name, species in shown.items()]
    rows[0]["species"] = [*shown["000.png"], " Rye", "Rye "]  # said more than once, in no order
    shown["000.png"] = sorted({*shown["000.png"], "Rye"})
    rows[1]["species"] = None  # nobody has said anything
    del shown["001.png"]
    layout = pa.schema([("path", pa.string()), ("species", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pylist(rows, layout), folder / "table.parquet")
    prepared = ss.prepare(
        spark,
        ss.PrepareOptions(
            images=str(folder / "table.parquet"),
            corpus=str(folder / "corpus"),
            image_size=SIZE,
            split_shares=(0.5, 0.25, 0.25),
        ),
    )
    network = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(24, activation="relu"),
            layers.Dense(3, activation="sigmoid"),
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
            epochs=12,
            batch_size=10,
            augment=("flip",),
            label_smoothing=0.05,
            precision="float32",
        ),
    )
    assert trained.published is not None
    numbers = ss.evaluate(spark, ss.EvaluateOptions(**where, report=str(folder / "report")))
    assert isinstance(numbers, multilabel.MultiLabelEvaluation)
    return Place(folder, shown, prepared, trained.published, numbers)


def test_a_cell_of_blanks_says_nothing_of_a_picture_and_a_separator_that_it_shows_none(
    spark: SparkSession,
) -> None:
    cells = {"blanks": "  ", "empty": "", "null": None, "none": ";", "two": "Rye; Maize;"}
    rows = spark.createDataFrame(list(cells.items()), "path string, species string")
    _, species = layout._species(rows, "table.csv", ";")
    found = {row[0]: row[1] for row in rows.select("path", species).collect()}
    assert found == {"blanks": None, "empty": None, "null": None, "none": "|", "two": "Maize|Rye"}


@with_all
def test_a_corpus_of_lists_counts_each_species_and_keeps_pictures_without_any(
    spark: SparkSession, place: Place, tmp_path: Path
) -> None:
    manifest, shown = place.prepared.manifest, place.shown
    assert place.prepared.kind == "multilabel" and manifest["format"] == 2
    assert place.prepared.classes == ("Fat Hen", "Maize", "Rye")
    counted = {name: sum(of.values()) for name, of in manifest["images_of_species"].items()}
    assert counted == Counter(name for names in shown.values() for name in names)
    assert manifest["without_species"] == sum(not names for names in shown.values()) > 0
    assert manifest["rejected_by_reason"] == {"no_species": 1}
    rows = place.prepared.images(spark).select(schema.PATH, schema.SPECIES).collect()
    found = {Path(row.path).name: [name for name in row.species.split("|") if name] for row in rows}
    assert found == {name: sorted(names) for name, names in shown.items()}

    # Names in one cell are the same corpus; a separator alone says that there is none.
    with (place.folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "species"))
        writer.writerows((f"pictures/{name}", "; ".join(names) or ";") for name, names in shown.items())
    options = ss.PrepareOptions(
        images=str(place.folder / "table.csv"),
        corpus=str(tmp_path / "corpus"),
        image_size=SIZE,
        label_separator=";",
        split_policy="stratified",
    )
    again = ss.prepare(spark, options)
    assert again.fingerprint == place.prepared.fingerprint
    assert {**again.manifest["images_of_split"]} != manifest["images_of_split"]
    # A picture of the manifest's numbers that has lost a species is not what was written.
    (tmp_path / "corpus" / "manifest.json").write_text(
        json.dumps(
            {**again.manifest, "images_of_species": {**manifest["images_of_species"], "Oat": {"train": 1}}}
        )
    )
    with pytest.raises(CorpusError, match="not as prepare has written it"):
        corpus.load(str(tmp_path / "corpus")).images(spark)
    # An earlier release knows format 1 only, and whoever writes that takes lists for names.
    (tmp_path / "corpus" / "manifest.json").write_text(json.dumps({**again.manifest, "format": 1}))
    with pytest.raises(CorpusError, match="of format 1, whose kind is 'multilabel'"):
        corpus.load(str(tmp_path / "corpus"))


@with_all
def test_labels_that_cannot_be_told_are_refused(spark: SparkSession, place: Place, tmp_path: Path) -> None:
    def refused(species: list[Any], kind: pa.DataType, **given: Any) -> CorpusError | OptionError:
        names = list(place.shown)[: len(species)]
        rows = {"path": [str(place.folder / "pictures" / name) for name in names], "species": species}
        pq.write_table(
            pa.table(rows, pa.schema([("path", pa.string()), ("species", kind)])), tmp_path / "t.parquet"
        )
        options = {"images": str(tmp_path / "t.parquet"), "corpus": str(tmp_path / "corpus"), **given}
        with pytest.raises((CorpusError, OptionError)) as caught:
            ss.prepare(spark, ss.PrepareOptions(**options))
        assert not (tmp_path / "corpus").exists()
        return caught.value

    lists = pa.list_(pa.string())
    assert "1 rows whose species cannot be told" in refused([["Rye", None], ["Maize"]], lists).found
    assert 'such as {"species":["Rye|Oat"]}' in refused([["Rye|Oat"], ["Maize"]], lists).found
    assert "two species that look alike" in refused([["Rye", "Maize"], ["rye"]], lists).found
    assert "usable images of 1 species (Rye)" in refused([["Rye"], [], ["Rye"]], lists).found
    assert "column species of type array<bigint>" in refused([[1], [2]], pa.list_(pa.int64())).found
    folder = refused([["Rye"], ["Maize"]], lists, images=str(place.folder / "pictures"), label_separator=";")
    assert "where folders are the species" in folder.found
    parent = refused([["Rye"], ["Maize"]], lists, fixes=str(place.folder / "table.parquet"))
    assert "--fixes with pictures that show any number" in parent.found
    assert "--parent with" in refused(["Rye", "Maize"], pa.string(), parent=place.prepared.path).found


@with_all
def test_thresholds_are_those_of_the_best_f1_on_validation_images_and_go_with_the_version(
    spark: SparkSession, place: Place
) -> None:
    manifest = place.version.manifest
    assert place.version.kind == "multilabel" and manifest["format"] == 2
    assert {"binary_accuracy", "val_binary_accuracy"} <= manifest["history"].keys()
    fitted = manifest["thresholds"]
    assert fitted["images"] == place.prepared.num_images("validation")
    rows = place.prepared.images(spark, "validation").collect()
    pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(SIZE, SIZE, 3) for row in rows])
    network = keras.saving.load_model(place.folder / "store/seedlings/v0001/network.keras", compile=False)
    values = network.predict(pixels, verbose=0)
    for number, name in enumerate(place.version.classes):
        truth = np.array([name in row.species.split("|") for row in rows])
        best = max(metrics.f1_score(truth, values[:, number] >= each) for each in values[:, number])
        ours = metrics.f1_score(truth, values[:, number] >= fitted["values"][number])
        assert ours == pytest.approx(best) == pytest.approx(fitted["f1"][number])
        assert fitted["support"][number] == truth.sum()
    assert len(set(fitted["values"])) == 3 and set(fitted["values"]) != {0.5}
    stage: Any = predicting.load(place.version).stages[-1]
    assert (
        stage.getOrDefault("label_thresholds") == fitted["values"] == list(place.version.reading.thresholds)
    )


@with_all
def test_the_numbers_are_those_of_scikit_learn(place: Place) -> None:
    table = pq.read_table(place.report / "predictions.parquet").to_pylist()
    classes, thresholds = place.version.classes, np.array(place.version.reading.thresholds)
    truth = np.array([[name in row["species"] for name in classes] for row in table])
    named = np.array([[name in row["predicted_species"] for name in classes] for row in table])
    values = np.array([row["probabilities"] for row in table])
    assert (named == (values >= thresholds)).all() and 0 < (named != truth).mean() < 0.5
    sure = np.where(named, values, 1 - values).min(axis=1)
    np.testing.assert_allclose([row["confidence"] for row in table], sure, atol=1e-6)
    found = json.loads((place.report / "metrics.json").read_text())
    assert found["num_images"] == place.prepared.num_images("test") == len(table)
    assert "accuracy" not in found and "confusion_matrix" not in found
    expected = {
        "exact_match": metrics.accuracy_score(truth, named),
        "hamming_loss": metrics.hamming_loss(truth, named),
        "micro_f1": metrics.f1_score(truth, named, average="micro"),
        "macro_f1": metrics.f1_score(truth, named, average="macro"),
        "macro_precision": metrics.precision_score(truth, named, average="macro"),
        "macro_recall": metrics.recall_score(truth, named, average="macro"),
        "mean_average_precision": metrics.average_precision_score(truth, values, average="macro"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    averages = metrics.average_precision_score(truth, values, average=None)
    assert [each["average_precision"] for each in found["per_species"]] == pytest.approx(list(averages))
    page = (place.report / "index.html").read_text()
    assert "exact match" in page and f"{expected['macro_f1']:.4f}" in page and "Wrong pictures" in page
    assert page.count("data:image/jpeg") == min(100, int((named != truth).any(axis=1).sum()))
    assert not (place.report / "confusion_matrix.png").exists()
    assert (place.report / "per_species.png").read_bytes()[:4] == b"\x89PNG"


def test_equal_probabilities_and_species_that_no_picture_shows(spark: SparkSession) -> None:
    draw, classes = np.random.default_rng(0), ["a", "b", "c", "d"]
    truth = draw.random((60, 4)) < (0.5, 0.3, 0.0, 0.2)
    values = np.round(np.clip(truth * 0.3 + draw.random((60, 4)) * 0.7, 0, 1), 1).astype(np.float32)
    values[:, 3] = 0.1  # never named
    named = values >= 0.55

    def listed(flags: Any) -> list[str]:
        return [name for name, flag in zip(classes, flags, strict=True) if flag]

    rows = [
        ("p", "h", listed(one), listed(other), 0.5, each.tolist())
        for one, other, each in zip(truth, named, values, strict=True)
    ]
    layout = schema.EVALUATED_LISTS
    table = spark.createDataFrame(rows, layout).select(*layout.names)
    found = multilabel.evaluate(table, classes, [0.55] * 4)
    for place, each in enumerate(found.per_species):
        if truth[:, place].any():
            expected = metrics.average_precision_score(truth[:, place], values[:, place])
            assert each.average_precision == pytest.approx(expected)
        else:
            assert (
                np.isnan(each.average_precision)
                and found.to_dict()["per_species"][place][  # type: ignore[index]
                    "average_precision"
                ]
                is None
            )
        assert each.f1 == pytest.approx(metrics.f1_score(truth[:, place], named[:, place], zero_division=0))
    assert found.num_without == (~truth.any(axis=1)).sum()
    with pytest.raises(CorpusError, match=r"show a species which the model does not know"):
        multilabel.evaluate(table, ["a", "b", "c", "e"], [0.5] * 4)


@with_all
def test_scores_name_lists(spark: SparkSession, place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "pictures", tmp_path / "new")
    (tmp_path / "new" / "broken.png").write_bytes(b"no picture")
    options = place.options(
        ss.ScoreOptions, images=str(tmp_path / "new"), output=str(tmp_path / "scores"), top_k=2
    )
    run = ss.score(spark, options)
    table = scoring.latest(spark, str(tmp_path / "scores"))
    assert table.schema[schema.PREDICTED_SPECIES].dataType.simpleString() == "array<string>"
    rows = table.collect()
    classes, thresholds = place.version.classes, place.version.reading.thresholds
    network = keras.saving.load_model(place.folder / "store/seedlings/v0001/network.keras", compile=False)
    known = {Path(row.path).name: row.image for row in place.prepared.images(spark).collect()}
    pixels = np.frombuffer(b"".join(map(bytes, known.values())), np.uint8).reshape(-1, SIZE, SIZE, 3)
    outputs = dict(zip(known, network.predict(pixels, verbose=0), strict=True))
    found = {Path(row.path).name: row.probabilities for row in rows}
    np.testing.assert_allclose([found[name] for name in outputs], list(outputs.values()), atol=1e-5)
    counts: Counter[str] = Counter()
    for row in rows:
        values = np.array(row.probabilities)
        expected = [
            name for name, value, least in zip(classes, values, thresholds, strict=True) if value >= least
        ]
        assert row.predicted_species == expected
        sure = [value if name in expected else 1 - value for name, value in zip(classes, values, strict=True)]
        assert row.confidence == pytest.approx(min(sure))
        assert row.top_species[0].species == classes[int(values.argmax())]
        counts.update(expected)
    manifest = run.manifest
    assert len(rows) == manifest["scored"] == NUMBER and manifest["rejected"] == 1
    assert manifest["images_of_species"] == dict(sorted(counts.items()))
    assert manifest["without_species"] == sum(not row.predicted_species for row in rows)
    assert {each.name: each.verdict for each in run.drifts}["species"] == "stable"
    assert not (Path(run.path.removeprefix("file://")) / "review").exists()
    _forget(spark, place, tmp_path, rows)
    labels = tmp_path / "labels.csv"
    labels.write_text(f"path,species\n{rows[0].path},Maize\n")
    late = config.FeedbackOptions(
        scores=str(tmp_path / "scores"), labels=str(labels), report=str(tmp_path / "late")
    )
    with pytest.raises(InputError, match="version names any number of species"):
        late_labels.feedback(spark, late)


def _forget(spark: SparkSession, place: Place, folder: Path, rows: list[Any]) -> None:
    """Pictures that are forgotten go from scores and corpus, which are of lists then as before."""
    shutil.copytree(place.folder / "corpus", folder / "corpus")
    gone = next(row for row in rows if row.predicted_species and Path(row.path).name in place.shown)
    (folder / "forget.csv").write_text(f"path\n{gone.path}\n{place.folder}/pictures/{Path(gone.path).name}\n")
    asked = {"paths": str(folder / "forget.csv"), "output": str(folder / "scores")}
    forgetting.forget(spark, config.ForgetOptions(**asked, corpus=str(folder / "corpus")))
    after = corpus.load(str(folder / "corpus"))
    names = Counter(name for names in place.shown.values() for name in names)
    names.subtract(place.shown[Path(gone.path).name])
    assert {name: sum(of.values()) for name, of in after.manifest["images_of_species"].items()} == names
    assert after.images(spark).count() == len(place.shown) - 1 and after.manifest["format"] == 2
    left = [row for row in rows if row.path != gone.path]
    manifest = json.loads(next((folder / "scores" / "runs").glob("*/manifest.json")).read_text())
    assert manifest["scored"] == len(left) == scoring.latest(spark, str(folder / "scores")).count()
    counts = Counter(name for row in left for name in row.predicted_species)
    assert manifest["images_of_species"] == dict(sorted(counts.items()))
    assert manifest["without_species"] == sum(not row.predicted_species for row in left)


@with_all
def test_the_estimator_learns_lists_in_a_pipeline_of_ones_own(
    spark: SparkSession, place: Place, tmp_path: Path
) -> None:
    table = place.prepared.images(spark, "train", "validation")
    table = table.withColumn("plants", schema.species_in(F.col(schema.SPECIES)))
    network = keras.saving.load_model(place.folder / "tiny.keras", compile=False)
    estimator = ss.SeedlingsEstimator(
        loss="binary_crossentropy", featuresCol="image", metrics=["binary_accuracy"], epochs=2, batch_size=10
    ).set_network(network)
    names: dict[str, Any] = {"table": table, "estimator": estimator}
    names["held_out"] = table.where("split = 'validation'")
    before = Pipeline(stages=[features.MultiLabelBinarizer(inputCol="plants"), estimator]).fit(table)
    exec(docs.command("docs/library.md", "Any number of classes", {}, "python"), names)
    fitted, held_out = names["fitted"], names["labelled"]
    assert held_out.schema["label"].metadata["ml_attr"]["vals"] == ["Fat Hen", "Maize", "Rye"]
    for row in held_out.collect():
        assert row.label == [float(name in row.plants) for name in ("Fat Hen", "Maize", "Rye")]
    model: Any = fitted.stages[-1]
    halves = [row.predicted_species for row in before.transform(table).orderBy("path").collect()]
    after = fitted.transform(table).orderBy("path").collect()
    found = model.getOrDefault("label_thresholds")
    assert halves != [row.predicted_species for row in after] and len(found) == 3
    fitted.write().save(str(tmp_path / "pipeline"))
    again = PipelineModel.load(str(tmp_path / "pipeline"))
    assert [row.predicted_species for row in again.transform(table).orderBy("path").collect()] == [
        [
            name
            for name, value, least in zip(model.getOrDefault("labels"), row.probability, found, strict=True)
            if value >= least
        ]
        for row in after
    ]
    with pytest.raises(OptionError, match="a probability for each of 3 classes"):
        model.copy().setLabelThresholds([0.5]).transform(table)
    with pytest.raises(NetworkError, match="a network of 3 outputs for 2 classes"):
        two = table.withColumn("plants", F.array_except("plants", F.array(F.lit("Rye"))))
        Pipeline(stages=[features.MultiLabelBinarizer(inputCol="plants"), estimator]).fit(two)
    strange = table.withColumn("plants", F.array(F.lit("Oat")))
    with pytest.raises(Exception, match="is none of the 3 classes: Oat"):
        fitted.stages[0].transform(strange).select("label").collect()


TRAIN: dict[str, dict[str, Any]] = {
    "--folds": {"folds": 3},
    "--curriculum": {"curriculum": "length"},
    "--class-weight": {"class_weight": "balanced"},
    "--calibrate": {"calibrate": True},
    "--coverage": {"coverage": 0.9},
    "--max-unknown": {"max_unknown": 0.1},
    "--quantize": {"quantize": True},
    "--promote better": {"promote": "better"},
    "--loss categorical_crossentropy": {"loss": "categorical_crossentropy"},
}


@with_all
@pytest.mark.parametrize("flag", TRAIN)
def test_train_refuses_what_is_for_pictures_of_one_species(
    spark: SparkSession, place: Place, tmp_path: Path, flag: str
) -> None:
    with pytest.raises(OptionError, match=flag) as caught:
        known = {"network": str(place.folder / "tiny.keras"), "run": str(tmp_path / "run"), "epochs": 1}
        ss.train(spark, place.options(ss.TrainOptions, **known, **TRAIN[flag]))
    assert caught.value.remedy and not (place.folder / "store/seedlings/v0002").exists()


JOBS: dict[str, Callable[[SparkSession, Place, str], object]] = {
    "explore": lambda spark, place, folder: exploring.explore(
        spark, place.options(config.ExploreOptions, store="", report=folder)
    ),
    "tune": lambda spark, place, folder: search.tune(
        spark, place.options(config.TuneOptions, space=str(place.folder / "space.toml"), run=folder)
    ),
    "featurize": lambda spark, place, folder: featurizing.featurize(
        spark, place.options(config.FeaturizeOptions, output=folder)
    ),
    "corpus diff": lambda spark, place, folder: corpus.diff(spark, place.prepared, place.prepared),
    "models quantize": lambda spark, place, folder: workflow.models(
        place.options(config.ModelsOptions, action="quantize", model_version="v0001")
    ),
    "models export": lambda spark, place, folder: workflow.models(
        config.ModelsOptions(action="export", store=str(place.folder / "store"), output=folder)
    ),
    "models card": lambda spark, place, folder: workflow.models(
        config.ModelsOptions(action="card", store=str(place.folder / "store"))
    ),
    "models upgrade": lambda spark, place, folder: workflow.models(
        config.ModelsOptions(action="upgrade", store=str(place.folder / "store"), model_version="v0001")
    ),
    "--shadow": lambda spark, place, folder: shadow.check(place.version, place.version),
    "serve": lambda spark, place, folder: versions.load(str(place.folder / "store"), ["seedlings"], 1),
    "a function of Spark SQL": lambda spark, place, folder: scoring.register(
        spark, "species", str(place.folder / "store")
    ),
    **{
        f"--{name}": lambda spark, place, folder, name=name: ss.evaluate(
            spark, place.options(ss.EvaluateOptions, report=folder, **{name: True})
        )
        for name in ("saliency", "robustness", "adversarial", "projector")
    },
}


@with_all
@pytest.mark.parametrize("what", JOBS)
def test_what_takes_one_species_for_granted_refuses_lists(
    spark: SparkSession, place: Place, tmp_path: Path, what: str
) -> None:
    (place.folder / "space.toml").write_text("[space]\nlearning_rate = {low = 0.001, high = 0.01}\n")
    with pytest.raises(SeedlingsError, match=f"{what} with .*any number of species") as caught:
        JOBS[what](spark, place, str(tmp_path / "made"))
    assert caught.value.remedy and not (tmp_path / "made").exists()


@with_all
def test_a_version_and_a_corpus_of_other_labels_are_told_apart(
    spark: SparkSession, place: Place, tmp_path: Path
) -> None:
    one = [(name, names[0]) for name, names in place.shown.items() if names][:40]
    text = "".join(f"{place.folder}/pictures/{name},{species}\n" for name, species in one)
    (tmp_path / "one.csv").write_text(f"path,species\n{text}")
    prepared = ss.prepare(
        spark,
        ss.PrepareOptions(images=str(tmp_path / "one.csv"), corpus=str(tmp_path / "one"), image_size=SIZE),
    )
    options = place.options(ss.EvaluateOptions, report=str(tmp_path / "report"))
    with pytest.raises(
        CorpusError, match="show one species each, for seedlings v0001, which names any number"
    ):
        ss.evaluate(spark, replace(options, corpus=prepared.path))
    keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), layers.Flatten(), layers.Dense(3, activation="softmax")]
    ).save(tmp_path / "softmax.keras")
    estimator = ss.SeedlingsEstimator(loss="binary_crossentropy")
    with pytest.raises(NetworkError, match="ends with a softmax, for pictures that show any number"):
        pipeline.set_network(estimator, str(tmp_path / "softmax.keras"), place.prepared)
    # What a manifest says of the kind goes with its format.
    shutil.copytree(place.folder / "store", tmp_path / "store")
    path = tmp_path / "store/seedlings/v0001/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(StoreError, match="has format 1 of kind 'multilabel'"):
        ModelStore(str(tmp_path / "store"), "seedlings").resolve()
