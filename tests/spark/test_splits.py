"""Splits that somebody has made, groups that stay together, and splits by time."""

import csv
import hashlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from seedlings_spark import corpus, fingerprint, images, schema
from seedlings_spark.corpus import Corpus, SplitRule, decoding, erasure
from seedlings_spark.errors import CorpusError, OptionError
from tests.pictures import png, write

TASK = decoding.DecodeTask((8, 8), "crop", images.FORMATS, images.MAX_PIXELS, 5_000)
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def prepare(spark: SparkSession, source: Path, target: Path, **rule: Any) -> Corpus:
    return corpus.prepare(
        spark, str(source), str(target), TASK, SplitRule(rule.pop("shares", SHARES), **rule)
    )


def split_of(spark: SparkSession, prepared: Corpus, root: Path) -> dict[str, str]:
    """Path below the root -> split."""
    rows = prepared.images(spark).select(schema.PATH, schema.SPLIT).collect()
    return {row.path.removeprefix(f"file://{root}/"): row.split for row in rows}


def reasons(spark: SparkSession, prepared: Corpus, root: Path) -> dict[str, tuple[str, str]]:
    rows = prepared.rejects(spark).collect()
    return {row.path.removeprefix(f"file://{root}/"): (row.reason, row.detail) for row in rows}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of splits, with three pictures that stand in two of them."""
    root = tmp_path_factory.mktemp("given") / "images of 2026"
    for number, path in enumerate(
        [f"train/{name}/{each}.png" for name in ("Maize", "Rye") for each in range(4)]
        + ["val/Maize/0.png", "val/Rye/0.png", "Test set/Maize/field 1/0.png", "Test set/Rye/0.png"]
    ):
        write(root, path, png(number))
    for path, number in [("val/Rye/copy of 1.png", 1), ("Test set/Maize/copy of 2.png", 2)]:
        write(root, path, png(number))
    write(root, "val/Rye/copy of 8.png", png(8))  # within one split, under another name and species
    (root / "val/Rye/copy of 8.png").rename(root / "val/Maize/copy of 8.png")
    write(root, "val/Rye/copy of 1.png", png(5))  # of train/Rye
    write(root, "train/stray.png", png(99))
    return root


def test_folders_of_splits_are_the_splits(spark: SparkSession, given: Path, tmp_path: Path) -> None:
    prepared = prepare(spark, given, tmp_path / "kept", leaks="keep")
    expected = {"train": "train", "val": "validation", "Test set": "test"}
    found = split_of(spark, prepared, given)
    assert found == {path: expected[path.split("/")[0]] for path in found}
    assert prepared.classes == ("Maize", "Rye") and len(found) == 15
    assert reasons(spark, prepared, given) == {
        "train/stray.png": ("no_species", "neither in a species' folder nor given one by a table")
    }
    assert prepared.manifest["split_policy"] == "given"
    assert prepared.manifest["leaks"] == {"policy": "keep", "number": 2}
    assert prepared.manifest["images_of_split"] == {"train": 8, "validation": 4, "test": 3}


def test_what_leaks_into_a_measured_split_is_an_error_or_is_not_trained_on(
    spark: SparkSession, given: Path, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=r"the same bytes in two splits: .* and .*; 2 such case") as caught:
        prepare(spark, given, tmp_path / "corpus")
    assert "--leaks drop" in caught.value.remedy and not (tmp_path / "corpus").exists()
    prepared = prepare(spark, given, tmp_path / "corpus", leaks="drop")
    found = reasons(spark, prepared, given)
    assert {path: one for path, (one, _) in found.items()} == {
        "train/stray.png": "no_species",
        "train/Maize/2.png": "leak",
        "train/Rye/1.png": "leak",
    }
    assert found["train/Maize/2.png"][1] == "in the split train, and also in test"
    # Who deals them anew has no leaks: the bytes decide, as everywhere.
    anew = prepare(spark, given, tmp_path / "anew", policy="hash")
    for row in anew.images(spark).select(schema.CONTENT_HASH, schema.SPLIT).collect():
        assert row.split == fingerprint.split_of(row.content_hash, SHARES)
    assert anew.manifest["images_of_split"] != prepared.manifest["images_of_split"]


def test_a_table_says_the_split(spark: SparkSession, tmp_path: Path) -> None:
    words = ["train", "Training", " VAL", "dev", "test", "holdout"]
    rows = []
    for number, word in enumerate(words):
        path = write(tmp_path, f"images/{number}.png", png(number))
        rows.append({"path": path.name, "species": ("Maize", "Rye")[number % 2], "split": word})
    table = write_table(tmp_path / "images" / "table.csv", rows)
    prepared = prepare(spark, table, tmp_path / "corpus")
    expected = ["train", "train", "validation", "validation", "test", "test"]
    found = split_of(spark, prepared, tmp_path / "images")
    assert [found[f"{number}.png"] for number in range(6)] == expected
    rows[3]["split"] = "spring"
    with pytest.raises(CorpusError, match=r"the split 'spring' in 1 rows") as caught:
        prepare(spark, write_table(table, rows), tmp_path / "other")
    assert "--split-policy hash" in caught.value.remedy
    assert prepare(spark, table, tmp_path / "other", policy="hash").manifest["split_policy"] == "hash"
    rows[3]["split"] = "train"
    rows.append({**rows[0], "split": "test"})
    with pytest.raises(CorpusError, match=r"1 files in rows that contradict each other, such as .*/0\.png"):
        prepare(spark, write_table(table, rows), tmp_path / "third")


def test_a_group_is_never_torn_nor_are_groups_that_share_bytes(spark: SparkSession, tmp_path: Path) -> None:
    root, group_of, numbers = tmp_path / "images", {}, iter(range(1_000))
    for plant in range(30):
        for shot in range(3):
            path = f"{('Maize', 'Rye')[plant % 2]}/plant_{plant:02}_{shot}.png"
            write(root, path, png(next(numbers)))
            group_of[path] = f"plant_{plant:02}"
    # The same bytes join 2 with 20, and 20 with 8.
    for one, two in (("02_0", "20_1"), ("20_2", "08_0")):
        (root / f"Maize/plant_{two}.png").write_bytes((root / f"Maize/plant_{one}.png").read_bytes())
    joined = dict.fromkeys(["plant_02", "plant_08", "plant_20"], "plant_02")
    expected = {
        path: fingerprint.split_of(hashlib.sha256(joined.get(group, group).encode()).hexdigest(), SHARES)
        for path, group in group_of.items()
    }
    assert set(expected.values()) == set(SHARES)
    prepared = prepare(spark, root, tmp_path / "corpus", group_from_path="/(plant_[0-9]+)_")
    assert split_of(spark, prepared, root) == expected
    assert prepared.manifest["groups"] == {
        "group_column": "",
        "group_from_path": "/(plant_[0-9]+)_",
        "number": 28,
        "joined": joined,
    }
    rows = [
        {"path": path, "species": path.split("/")[0], "the plant": group} for path, group in group_of.items()
    ]
    table = write_table(root / "table.csv", rows)
    by_table = prepare(spark, table, tmp_path / "by table", group_column="the plant")
    assert split_of(spark, by_table, root) == expected
    assert by_table.fingerprint == prepared.fingerprint
    # What comes later goes where the pictures of its group are, also where others have given that its name.
    for plant in ("plant_08", "plant_20", "plant_03"):
        path = f"{'Rye' if plant == 'plant_03' else 'Maize'}/{plant}_9.png"
        write(tmp_path / "more", path, png(next(numbers)))
        expected[path] = expected[path.replace("_9", "_0")]
    rule = SplitRule.of_parent(prepared.manifest)
    grown = corpus.prepare(
        *(spark, str(tmp_path / "more"), str(tmp_path / "grown"), TASK, rule),
        corpus.Selection(parent=prepared),
    )
    more = split_of(spark, grown, tmp_path / "more")
    found = {path: split for path, split in more.items() if path.endswith("_9.png")}
    assert found == {path: split for path, split in expected.items() if path.endswith("_9.png")}
    assert grown.manifest["groups"]["joined"] == joined
    number = next(numbers)
    for plant in ("plant_03", "plant_07"):
        write(tmp_path / "bridge", f"Rye/{plant}_9.png", png(number))
    with pytest.raises(
        CorpusError, match="the same bytes in the groups plant_03 and plant_07 of the new images"
    ):
        corpus.prepare(
            *(spark, str(tmp_path / "bridge"), str(tmp_path / "torn"), TASK, rule),
            corpus.Selection(parent=prepared),
        )
    write(root, "Maize/no plant.png", png(next(numbers)))
    with pytest.raises(CorpusError, match=r"1 pictures without a group, such as .*/no plant\.png"):
        prepare(spark, root, tmp_path / "other", group_from_path="/(plant_[0-9]+)_")


@pytest.mark.parametrize("form", ["{:.1f}", "2024-06-01 {:02.0f}:00:00"], ids=["numbers", "times"])
def test_the_newest_pictures_are_the_test_split(spark: SparkSession, tmp_path: Path, form: str) -> None:
    draw, rows, images_of_hour = np.random.default_rng(1), [], defaultdict(list)
    for number in range(40):
        hour = int(draw.integers(0, 24))
        path = write(tmp_path, f"images/{number}.png", png(number))
        images_of_hour[hour].append(path.name)
        rows.append({"path": path.name, "species": ("Maize", "Rye")[number % 2], "taken": form.format(hour)})
    expected, before = {}, 0
    for hour in sorted(images_of_hour):
        split = "train" if before < 24 else "validation" if before < 32 else "test"
        expected.update(dict.fromkeys(images_of_hour[hour], split))
        before += len(images_of_hour[hour])
    table = write_table(tmp_path / "images" / "table.csv", rows)
    prepared = prepare(spark, table, tmp_path / "corpus", time_column="taken")
    assert split_of(spark, prepared, tmp_path / "images") == expected
    assert (prepared.manifest["split_policy"], prepared.manifest["split_time"]) == ("time", "taken")
    rows[7]["taken"] = "last spring"
    with pytest.raises(CorpusError, match=r"rows without a time in the column taken, such as '"):
        prepare(spark, write_table(table, rows), tmp_path / "other", time_column="taken")


def test_a_rule_for_more_images_is_that_of_the_parent_or_is_refused() -> None:
    shares = {"split_shares": SHARES, "split_policy": "hash"}
    for known, given, expected in (
        ("group", "", "group"),
        ("report", "", "report"),
        ("group", "report", "report"),
    ):
        rule = SplitRule.of_parent({**shares, "near_duplicates": {"policy": known}}, near_duplicates=given)
        assert rule.near_duplicates == expected
    assert SplitRule.of_parent(shares).near_duplicates == "ignore"
    grouped = {**shares, "split_policy": "given", "groups": {"group_column": "plant"}}
    both = {**shares, "near_duplicates": {"policy": "group"}, "groups": {"group_column": "plant"}}
    with pytest.raises(OptionError, match="--parent with a corpus of groups that keeps near duplicates"):
        SplitRule.of_parent(both)
    assert SplitRule.of_parent(both, near_duplicates="ignore").near_duplicates == "ignore"
    with pytest.raises(CorpusError, match="--parent with a corpus of groups whose splits were given"):
        SplitRule.of_parent(grouped)
    assert SplitRule.of_parent(grouped, "keep").policy == "given"


def test_rules_that_cannot_be_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    for rule, found in [
        ({"policy": "random"}, "split_policy 'random'"),
        ({"policy": "time"}, "split_policy 'time' without a column"),
        ({"leaks": "ignore"}, "leaks 'ignore'"),
        ({"group_column": "a", "group_from_path": "(a)"}, "--group-column with --group-from-path"),
        ({"group_column": "a", "policy": "stratified"}, "groups with --split-policy stratified"),
        ({"time_column": "a", "policy": "given"}, "--split-time with --split-policy given"),
    ]:
        with pytest.raises(OptionError, match=re.escape(found)):
            SplitRule(SHARES, **rule)
    write(tmp_path, "images/Maize/1.png", png(1))
    for rule, error, found in [
        ({"group_column": "plant"}, OptionError, "--group-column plant with a folder of images"),
        ({"time_column": "taken"}, OptionError, "--split-time taken with a folder of images"),
        ({"group_from_path": "("}, OptionError, "--group-from-path '('"),
        ({"policy": "given"}, CorpusError, "--split-policy given with images that come without splits"),
    ]:
        with pytest.raises(error, match=re.escape(found)):
            prepare(spark, tmp_path / "images", tmp_path / "corpus", **rule)


def test_a_corpus_grows_by_what_is_new_and_moves_nothing(spark: SparkSession, tmp_path: Path) -> None:
    first = tmp_path / "first"
    for number in range(20):
        write(first, f"{('Maize', 'Rye')[number % 2]}/{number}.png", png(number))
    (first / "Rye/broken.png").write_bytes(b"no picture")
    parent = prepare(spark, first, tmp_path / "parent", policy="stratified")
    second = tmp_path / "second"
    for number in range(10, 40):  # half of the old ones again, under other names
        species = ("Maize", "Rye", "Aster")[number % 3 if number > 19 else number % 2]
        write(second, f"{species}/n{number}.png", png(number))
    (second / "Maize/empty.png").touch()
    rule = SplitRule.of_parent(parent.manifest)
    grown = corpus.prepare(
        spark, str(second), str(tmp_path / "grown"), TASK, rule, corpus.Selection(parent=parent)
    )
    columns = (schema.PATH, schema.CONTENT_HASH, schema.SPECIES, schema.SPLIT, schema.IMAGE)
    before, after = (
        {row.path: row for row in each.images(spark).select(*columns).collect()} for each in (parent, grown)
    )
    assert {path: row for path, row in after.items() if path in before} == before
    new = {path: row for path, row in after.items() if path not in before}
    assert sorted(int(Path(path).stem[1:]) for path in new) == list(range(20, 40))
    assert all(row.split == fingerprint.split_of(row.content_hash, SHARES) for row in new.values())
    assert grown.classes == ("Aster", "Maize", "Rye")
    manifest = grown.manifest
    assert (manifest["listed"], manifest["accepted"], manifest["known"]) == (42, 40, 10)
    assert manifest["rejected_by_reason"] == {"empty": 1, "not_an_image": 1}
    known = {
        "path": parent.path,
        "fingerprint": parent.fingerprint,
        "accepted": 20,
        "listed": 21,
        "rejected": 1,
    }
    assert manifest["parent"] == known
    assert grown.fingerprint == fingerprint.corpus_fingerprint(
        (row.content_hash, row.species) for row in after.values()
    )
    # The same bytes under another name of a species are a person's to decide.
    third = tmp_path / "third"
    write(third, "Rye/0.png", png(0))
    write(third, "Maize/99.png", png(99))
    with pytest.raises(
        CorpusError, match=r"third/Rye/0\.png \(Rye\), whose bytes are Maize in .*; 1 such image"
    ):
        corpus.prepare(spark, str(third), str(tmp_path / "c"), TASK, rule, corpus.Selection(parent=parent))
    assert grown.lineage == {grown.fingerprint, parent.fingerprint}
    selection = corpus.Selection("drop", parent=parent)
    dropped = corpus.prepare(spark, str(third), str(tmp_path / "c"), TASK, rule, selection)
    assert (dropped.manifest["accepted"], dropped.manifest["rejected_by_reason"]["conflicting_species"]) == (
        21,
        1,
    )


def test_a_corpus_keeps_columns_of_a_table_and_hands_them_on(spark: SparkSession, tmp_path: Path) -> None:
    rows = []
    for number in range(24):
        path = write(tmp_path, f"images/{number}.png", png(number))
        row = {"path": path.name, "species": ("Maize", "Rye")[number % 2]}
        rows.append({**row, "camera": ("", "A", "B")[number % 3], "a, `b`.c": str(number / 2)})
    table = write_table(tmp_path / "images" / "table.csv", rows)

    def made(name: str, *kept: str, source: Path = table, **more: Any) -> Corpus:
        return corpus.prepare(
            spark,
            str(source),
            str(tmp_path / name),
            TASK,
            SplitRule(SHARES),
            table=corpus.TableFormat(keep_columns=kept),
            **more,
        )

    def values(prepared: Corpus) -> dict[str, tuple[str | None, str | None]]:
        found = prepared.described_images(spark).collect()
        return {Path(row.path).name: (row["camera"], row["a, `b`.c"]) for row in found}

    plain, parent = made("plain"), made("parent", "camera", "a, `b`.c")
    expected = {row["path"]: (row["camera"] or None, row["a, `b`.c"]) for row in rows}
    assert values(parent) == expected
    assert parent.manifest["kept_columns"] == {"camera": "string", "a, `b`.c": "string"}
    assert "kept_columns" not in plain.manifest and plain.fingerprint == parent.fingerprint
    assert parent.images(spark).columns == plain.described_images(spark).columns == schema.CORPUS.names
    # What comes later may know less; what is forgotten takes its values with it.
    write(tmp_path, "more/Rye/90.png", png(90))
    grown = made("grown", source=tmp_path / "more", selection=corpus.Selection(parent=parent))
    expected["90.png"] = (None, None)
    assert values(grown) == expected
    pictures = erasure.Pictures(frozenset({f"file://{tmp_path}/images/1.png"}))
    held = erasure.held(spark, grown, pictures)
    erased = erasure.erase(spark, grown, pictures, held, "one", lambda: None).corpus
    assert values(erased) == {name: kept for name, kept in expected.items() if name != "1.png"}

    for source, kept, error, found in [
        (tmp_path / "more", ["camera"], OptionError, "--keep-columns camera with a folder of images"),
        (table, ["Split"], OptionError, "--keep-columns Split"),
        (table, ["camera", "Camera"], OptionError, "--keep-columns camera Camera"),
        (table, ["kamera"], CorpusError, "with the columns path, species, camera"),
    ]:
        with pytest.raises(error, match=re.escape(found)):
            made("refused", *kept, source=source)
    twice = write_table(tmp_path / "images" / "twice.csv", [*rows, {**rows[0], "camera": "C"}])
    with pytest.raises(CorpusError, match="1 files in rows that contradict each other"):
        made("refused", "camera", source=twice)
    assert not (tmp_path / "refused").exists()


def test_what_a_person_has_dropped_stays_away_from_a_corpus_that_grows_and_a_reject_is_one(
    spark: SparkSession, tmp_path: Path
) -> None:
    source = tmp_path / "images"
    for number in range(6):
        write(source, f"{('Maize', 'Rye')[number % 2]}/{number}.png", png(number))
    write(source, "Rye/broken.png", b"no picture")
    write(source, "Maize/0 as a Maize.png", png(0))
    (source / "Maize/0.png").rename(source / "Rye/0.png")  # under two species
    fixes = "path,content_hash,species,action,suggested\nx,{},Rye,drop,Maize\n"
    (tmp_path / "fixes.csv").write_text(fixes.format(fingerprint.content_hash(png(1))))
    rule, corpora = SplitRule(SHARES), []
    for name in ("parent", "grown", "grown again"):
        selection = corpus.Selection(
            "drop",
            parent=corpora[-1] if corpora else None,
            fixes="" if corpora else str(tmp_path / "fixes.csv"),
        )
        place = str(tmp_path / name)
        given = SplitRule.of_parent(corpora[-1].manifest) if corpora else rule
        corpora.append(corpus.prepare(spark, str(source), place, TASK, given, selection))
        write(source, f"Rye/new {len(corpora)}.png", png(10 + len(corpora)))
        write(source, f"Rye/copy {len(corpora)} of 1.png", png(1))  # dropped, whatever it is called
    _, grown, again = corpora
    for number, each in enumerate(corpora):
        files_there = [Path(row.path).name for row in each.images(spark).select(schema.PATH).collect()]
        new = [f"new {place}.png" for place in range(1, number + 1)]
        assert sorted(files_there) == ["2.png", "3.png", "4.png", "5.png", *new]
        rejected = sorted(reasons(spark, each, source))
        assert rejected == ["Maize/0 as a Maize.png", "Rye/0.png", "Rye/1.png", "Rye/broken.png"]
        manifest = each.manifest
        assert manifest["listed"] == manifest["accepted"] + manifest["rejected"] == 8 + number
    # Of the first folder 8 files, of the second these, a copy and a new one.
    assert (grown.manifest["known"], again.manifest["known"]) == (9, 11)
    assert again.lineage == {each.fingerprint for each in corpora}
