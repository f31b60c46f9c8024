"""Late labels: numbers as pandas has them, wrong pictures that prepare takes, and labels that cannot be meant."""

import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from seedlings_spark import files, images, schema
from seedlings_spark.config import FeedbackOptions, PrepareOptions, ScoreOptions
from seedlings_spark.errors import InputError
from seedlings_spark.models.store import ModelStore
from seedlings_spark.workflow import feedback, jobs, publication

CLASSES = ["Fat Hen", "Maize", '<i>"Rye"</i>']
HUES = (80, 125, 170)


@pytest.fixture(scope="module")
def scores(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """60 pictures, half of them scored by v0001 and, some anew, half by v0002, which sees all ten levels darker."""
    folder = tmp_path_factory.mktemp("late labels")
    draw = np.random.default_rng(0)
    for number in range(60):
        pixels = np.full((16, 16, 3), HUES[number % 3] + draw.normal(0, 25)) + draw.normal(0, 5, (16, 16, 3))
        file = folder / ("one" if number < 30 else "two") / f"{number:02d} a'b.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(images.encode_png(pixels.clip(0, 255).astype(np.uint8)))
    store = ModelStore(files.qualify(str(folder / "store")), "seedlings")
    for offset in (0.0, 10.0):
        network = keras.Sequential(
            [
                keras.Input((16, 16, 3)),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3, "softmax"),
            ]
        )
        hues = np.array(HUES) + offset
        network.layers[-1].set_weights([np.repeat(hues[None] / 3 / 900, 3, axis=0), -(hues**2) / 2 / 900])
        network.save(folder / "net.keras")
        publication.import_network(store, str(folder / "net.keras"), CLASSES, aspect="crop", promote=True)
    where = {"store": store.directory, "output": str(folder / "scores")}
    for version, images_of in (("v0001", "one"), ("v0002", "two")):
        options = ScoreOptions(str(folder / images_of), model_version=version, run_id=version, **where)
        jobs.score(spark, options)
    store.record_evaluation("v0001", {"accuracy": 0.99, "accuracy_interval": [0.97, 0.995]})
    rows = pd.concat(
        [pd.read_parquet(folder / "scores" / "runs" / run / "predictions") for run in ("v0001", "v0002")]
    )
    return {"folder": folder, "store": store, "rows": rows}


def labels_of(scores: dict[str, Any], name: str, rows: list[tuple[str, str]]) -> Path:
    table = Path(scores["folder"]) / name
    pd.DataFrame(rows, columns=["path", "species"]).to_csv(table, index=False)
    return table


def options_of(scores: dict[str, Any], table: Path, report: Path, **more: Any) -> FeedbackOptions:
    return FeedbackOptions(str(scores["folder"] / "scores"), str(table), str(report), **more)


def test_late_labels_become_numbers_and_a_folder_of_wrong_pictures(
    scores: dict[str, Any], spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = scores["folder"], scores["rows"]
    truth = {path: CLASSES[int(files.name(path)[:2]) % 3] for path in rows["path"]}
    # As full paths, as paths beside the table, and with a scheme; one twice, one without a label, two unknown ones.
    spelled = [
        path
        if number % 3
        else str(files.local_path(path))
        if number % 2
        else f"./{path[len(f'file://{folder}/') :]}"
        for number, path in enumerate(truth)
    ]
    given = list(zip(spelled, truth.values(), strict=True))
    empty, strange = given[-1][0], list(truth)[-2]
    given[-1], given[-2] = (empty, ""), (given[-2][0], "Charlock")
    given += [
        given[0],
        (next(iter(truth)), given[0][1]),
        ("one/never.png", "Maize"),
        ("hdfs://n/a.png", "Maize"),
    ]
    table = labels_of(scores, "labels.csv", given)
    cameras = [f"<b>{place % 2}" if place % 5 else "" for place in range(len(given))]
    cameras[61] = cameras[0] = cameras[60]  # of one picture
    pd.read_csv(table).assign(camera=cameras).to_csv(table, index=False)
    more = {"store": scores["store"].directory, "slices": ("camera",)}
    asked = options_of(scores, table, tmp_path / "report", **more)
    (tmp_path / "report" / "wrong").mkdir(parents=True)
    with pytest.raises(InputError, match="a folder wrong that feedback has not written"):
        feedback(spark, asked)
    (tmp_path / "report" / "wrong").rmdir()
    # A call that is cut short while it copies pictures is taken up by the next one.
    real = files.write_bytes

    def once(path: str, content: bytes) -> None:
        real(path, content)
        if "/wrong/" in path:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", once)
        with pytest.raises(KeyboardInterrupt):
            feedback(spark, asked)
    assert len(list((tmp_path / "report" / "wrong").rglob("*.png"))) == 1
    told = feedback(spark, asked)

    known = rows[~rows["path"].isin([list(truth)[-1], strange])].copy()
    known["right"] = known["predicted_species"] == known["path"].map(truth)
    known["truth"] = known["path"].map(truth)
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    expected = {"versions": known.groupby("model_version"), "species": known.groupby("truth")}
    for name, groups in expected.items():
        for each, (key, group) in zip(found[name], groups, strict=True):
            assert each["name"].removeprefix("seedlings ") == key
            assert (each["num_images"], each["right"]) == (len(group), int(group["right"].sum()))
            interval = stats.binomtest(each["right"], len(group)).proportion_ci(method="wilson")
            assert each["accuracy_interval"] == pytest.approx(list(interval))
    assert (
        found["overall"]["accuracy"] == pytest.approx(known["right"].mean())
        and 0.3 < told.found.overall.accuracy < 0.9
    )
    assert len(found["weeks"]) in (1, 2) and re.fullmatch(r"\d{4}-W\d\d", found["weeks"][0]["name"])
    assert found["labels"] == {"rows": 64, "empty": 1, "repeated": 2, "unmatched": 2}
    assert found["unknown_species"] == {"Charlock": 1}
    assert told.found.beside(told.found.versions[0]) == "lower" and list(found["test_split"]) == [
        "seedlings v0001"
    ]

    of_path = dict(zip(truth, cameras, strict=False))
    groups = known.groupby(known["path"].map(of_path).replace("", "(none)"))
    singles = {each["values"]["camera"]: each for each in found["slices"]["singles"]}
    assert {name: (each["num_images"], each["right"]) for name, each in singles.items()} == {
        name: (len(group), int(group["right"].sum())) for name, group in groups
    }
    wrong = known[~known["right"]]
    copies = pd.read_csv(tmp_path / "report" / "wrong.csv")
    assert sorted(copies["path"]) == sorted(wrong["path"]) and list(copies["confidence"]) == sorted(
        copies["confidence"], reverse=True
    )
    there = {
        file.relative_to(tmp_path / "report" / "wrong")
        for file in (tmp_path / "report" / "wrong").rglob("*.png")
    }
    assert {str(file) for file in there} == set(copies["snapshot"].dropna())
    not_folders = wrong["truth"].str.contains("/")
    assert told.copied == len(there) == int((~not_folders).sum()) and not_folders.any()
    corpus = jobs.prepare(
        spark, PrepareOptions(images=str(tmp_path / "report" / "wrong"), corpus=str(tmp_path / "corpus"))
    )
    assert {
        (row.content_hash, row.species)
        for row in corpus.images(spark).select(schema.CONTENT_HASH, schema.SPECIES).collect()
    } == {(row.content_hash, row.truth) for row in wrong[~not_folders].itertuples()}
    page = (tmp_path / "report" / "index.html").read_text()
    assert "&lt;i&gt;" in page and "<i>" not in page and "<script" not in page


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("one/00 a'b.png", "Maize"), ("{folder}/one/00 a'b.png", "Fat Hen")],
            "two labels for 1 pictures.*Fat Hen and Maize",
        ),
        (
            [("elsewhere/00.png", "Maize"), ("elsewhere/01.png", "Maize")],
            "2 labels.*none of them for a picture",
        ),
        ([("", "Maize"), ("one/00 a'b.png", "Maize")], "1 rows without a path"),
        ([("one/00 a'b.png", "maize")], "no species that the versions know.*maize \\(1\\)"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused_and_nothing_is_written(
    scores: dict[str, Any], spark: Any, tmp_path: Path, rows: list[tuple[str, str]], message: str
) -> None:
    given = [(path.replace("{folder}", str(scores["folder"])), label) for path, label in rows]
    table = labels_of(scores, "wrong labels.csv", given)
    with pytest.raises(InputError, match=message):
        feedback(spark, options_of(scores, table, tmp_path / "report"))
    assert not (tmp_path / "report").exists()
