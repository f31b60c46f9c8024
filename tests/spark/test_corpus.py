"""From image files to a corpus, and what becomes of everything that can be wrong with them."""

import csv
import datetime
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812

from seedlings_spark import corpus, errors, files, fingerprint, images, schema
from seedlings_spark.cluster import session
from seedlings_spark.corpus import Corpus, decoding, preparation, tables
from seedlings_spark.corpus.splits import split_by_hash, stratified
from seedlings_spark.errors import CorpusError, OptionError, OutputInUseError, SeedlingsError, StorageError
from seedlings_spark.lock import Lock
from seedlings_spark.workflow import clean
from tests.conftest import shared_data
from tests.pictures import png, write

TASK = decoding.DecodeTask((8, 8), "crop", images.FORMATS, images.MAX_PIXELS, 5_000)
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
FIRST_PICTURES = {"Charlock": 0, "Maize": 1_000, "Aster": 2_000, "Fennel": 3_000}


def plants(root: Path, **counts: int) -> Path:
    """A folder with so many different pictures of each species."""
    for species, count in counts.items():
        for number in range(count):
            write(root, f"{species}/{number}.png", png(FIRST_PICTURES[species] + number))
    return root


def prepare(spark: SparkSession, source: Path | str, target: Path | str, **changes: Any) -> Corpus:
    options = dict(changes)
    split = corpus.SplitRule(options.pop("shares", SHARES), options.pop("split_policy", "hash"))
    chosen = {name: options.pop(name) for name in ("conflicts", "sample") if name in options}
    task, selection = options.pop("task", TASK), corpus.Selection(**chosen)
    return corpus.prepare(spark, str(source), str(target), task, split, selection, **options)


def accepted(spark: SparkSession, prepared: Corpus) -> list[Any]:
    return prepared.images(spark).drop(schema.IMAGE).orderBy(schema.PATH).collect()


def splits(spark: SparkSession, prepared: Corpus) -> dict[str, str]:
    """Content hash -> split; fails if copies are on two sides."""
    found: dict[str, str] = {}
    for row in accepted(spark, prepared):
        assert found.setdefault(row[schema.CONTENT_HASH], row[schema.SPLIT]) == row[schema.SPLIT]
    return found


def reasons(spark: SparkSession, prepared: Corpus) -> dict[str, str]:
    """Name -> reason."""
    return {files.name(row[schema.PATH]): row[schema.REASON] for row in prepared.rejects(spark).collect()}


def visible(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.suffix != ".crc")


def assert_three_parts(error: SeedlingsError) -> None:
    assert error.found
    assert error.expected
    assert error.remedy
    assert "Traceback" not in str(error)
    assert "\n" not in str(error)


@pytest.fixture(scope="module")
def mixed_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three species with hostile names, copies, and one of each kind of reject."""
    root = tmp_path_factory.mktemp("mixed") / "images of {a,b} #1 é"
    plants(root, Charlock=12, Maize=20)
    for path, content in {
        "Fat Hen/nested/deep er/1.png": png(5_001),
        "Fat Hen/_2.png": png(5_002),
        "Fat Hen/.3.png": png(5_003),
        'Fat Hen/it\'s "4" 100% caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{SEEDLING}.png': png(5_004),
        "Fat Hen/12:30.png": png(5_005),
        "Maize/copies/of 0.png": png(1_000),
        "Maize/copies/of 0 again.png": png(1_000),
        "Fat Hen/zero.png": b"",
        "Fat Hen/cut.png": png(5_006)[:200],
        "Fat Hen/notes.txt": b"some notes\n",
        "Fat Hen/long.png": png(5_007, 60, 60),
        "no species.png": png(5_008),
    }.items():
        write(root, path, content)
    (root / "Fat Hen" / "dangling.png").symlink_to(root / "nowhere")
    return root


@pytest.fixture(scope="module")
def mixed(spark: SparkSession, mixed_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The corpus of `mixed_images`."""
    return prepare(spark, mixed_images, tmp_path_factory.mktemp("corpora") / "corpus of [1-3]*")


def independent(root: Path) -> tuple[dict[str, tuple[str, str, bytes]], set[str]]:
    """By plain Python: path -> (species, hash, pixels) of what is accepted, and the other paths."""
    good: dict[str, tuple[str, str, bytes]] = {}
    bad = set()
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            parts = path.relative_to(root).parts
            try:
                content = path.read_bytes()
                assert len(content) <= TASK.max_bytes
                assert len(parts) > 1
                pixels = images.decode(content, TASK.size)
            except Exception:
                bad.add(f"file://{path}")
            else:
                good[f"file://{path}"] = (parts[0], hashlib.sha256(content).hexdigest(), pixels.tobytes())
    return good, bad


def independent_fingerprint(root: Path) -> str:
    good, _ = independent(root)
    return fingerprint.corpus_fingerprint((hash_, species) for species, hash_, _ in good.values())


# --- the tables and the manifest ------------------------------------------------------------------------


def test_the_manifest_adds_up_to_what_is_in_the_folder(mixed: Corpus, mixed_images: Path) -> None:
    good, bad = independent(mixed_images)
    manifest = mixed.manifest
    assert (manifest["listed"], manifest["accepted"], manifest["rejected"]) == (45, 39, 6)
    assert (len(good), len(bad)) == (39, 6)
    assert manifest["rejected_by_reason"] == {
        "empty": 1,
        "no_species": 1,
        "not_an_image": 1,
        "too_large": 1,
        "truncated": 1,
        "unreadable": 1,
    }
    assert manifest["duplicates"] == 2
    per_species = Counter(species for species, _, _ in good.values())
    assert per_species == {"Charlock": 12, "Maize": 22, "Fat Hen": 5}
    assert {name: sum(each.values()) for name, each in manifest["images_of_species"].items()} == per_species
    assert sum(manifest["images_of_split"].values()) == 39
    assert manifest["image_size"] == [8, 8]
    assert (manifest["format"], manifest["sample"], manifest["found"]) == (1, 1.0, 45)
    assert manifest == json.loads((files.local_path(mixed.path) / "manifest.json").read_text("utf-8"))
    assert mixed.classes == ("Charlock", "Fat Hen", "Maize")
    assert mixed.image_size == (8, 8)
    assert mixed.num_images("train") == manifest["images_of_split"]["train"]
    assert mixed.num_images("no such split") == 0


def test_every_image_has_its_own_pixels_hash_and_label(
    spark: SparkSession, mixed: Corpus, mixed_images: Path
) -> None:
    good, _ = independent(mixed_images)
    rows = mixed.images(spark).collect()
    found = {
        row[schema.PATH]: (row[schema.SPECIES], row[schema.CONTENT_HASH], bytes(row[schema.IMAGE]))
        for row in rows
    }
    assert len(found) == len(rows)
    assert found == good
    assert {(row[schema.HEIGHT], row[schema.WIDTH]) for row in rows} == {(8, 8)}


def test_every_other_file_is_a_reject_with_a_reason(
    spark: SparkSession, mixed: Corpus, mixed_images: Path
) -> None:
    _, bad = independent(mixed_images)
    rows = mixed.rejects(spark).collect()
    assert {row[schema.PATH] for row in rows} == bad
    assert {files.name(row[schema.PATH]): (row[schema.REASON], row[schema.STAGE]) for row in rows} == {
        "zero.png": ("empty", "list"),
        "dangling.png": ("unreadable", "list"),
        "long.png": ("too_large", "list"),
        "cut.png": ("truncated", "decode"),
        "notes.txt": ("not_an_image", "decode"),
        "no species.png": ("no_species", "label"),
    }
    hashes = {files.name(row[schema.PATH]): row[schema.CONTENT_HASH] for row in rows}
    assert hashes["notes.txt"] == hashlib.sha256(b"some notes\n").hexdigest()
    assert hashes["zero.png"] is None


def test_the_tables_have_the_layouts_of_the_contract(spark: SparkSession, mixed: Corpus) -> None:
    for table, layout in ((mixed.images(spark), schema.CORPUS), (mixed.rejects(spark), schema.REJECTS)):
        assert [(each.name, each.dataType) for each in table.schema] == [
            (each.name, each.dataType) for each in layout
        ]
    folder = files.local_path(mixed.path)
    assert visible(folder) == ["images", "manifest.json", "rejects"]
    assert visible(folder / "images") == ["_SUCCESS", "split=test", "split=train", "split=validation"]
    for each in mixed.images(spark).schema:
        assert mixed.images(spark).where(f"{each.name} IS NULL").count() == 0


def test_who_reads_the_files_without_us_gets_the_mark_of_our_hashes(
    spark: SparkSession, mixed: Corpus
) -> None:
    # By which a table is dealt to workers, and rows are held out: the same as those of `Corpus.images`.
    read = spark.read.parquet(tables.literal(mixed.images_path))
    assert read.schema["content_hash"].metadata == mixed.images(spark).schema["content_hash"].metadata
    assert schema.has_content_hash(read.where("split = 'train'").select("species", "content_hash"))
    # A column of somebody's own in its place is not ours.
    assert not schema.has_content_hash(read.withColumn("content_hash", F.upper("content_hash")))


def test_an_images_split_follows_from_its_bytes_alone(spark: SparkSession, mixed: Corpus) -> None:
    rows = accepted(spark, mixed)
    assert {row[schema.SPLIT] for row in rows} == set(SHARES)
    for row in rows:
        assert row[schema.SPLIT] == fingerprint.split_of(row[schema.CONTENT_HASH], SHARES)
    assert {row[schema.SPLIT] for row in mixed.images(spark, "test").collect()} == {"test"}
    assert mixed.images(spark, "train", "test").count() == mixed.num_images("train") + mixed.num_images(
        "test"
    )


def test_a_copy_of_a_picture_falls_on_the_same_side(spark: SparkSession, mixed: Corpus) -> None:
    copies = [
        row[schema.SPLIT]
        for row in accepted(spark, mixed)
        if row[schema.CONTENT_HASH] == hashlib.sha256(png(1_000)).hexdigest()
    ]
    assert len(copies) == 3
    assert len(set(copies)) == 1


def test_the_fingerprint_is_that_of_the_pure_function(
    spark: SparkSession, mixed: Corpus, mixed_images: Path
) -> None:
    expected = independent_fingerprint(mixed_images)
    assert mixed.fingerprint == expected
    assert corpus.corpus_fingerprint(mixed.images(spark).repartition(7)) == expected


def test_the_summary_says_all_numbers(mixed: Corpus) -> None:
    lines = {name: str(text) for name, text in corpus.summary(mixed)}
    assert lines["listed"] == "45"
    assert lines["accepted"].startswith("39 of 3 species (")
    assert lines["rejected"].startswith("6 (1 empty, 1 no_species, ")
    assert lines["duplicates"] == "2"
    assert lines["fingerprint"] == mixed.fingerprint


def test_spark_splits_at_the_edges_as_python_does(spark: SparkSession) -> None:
    edge = int(0.7 * 16**15)
    places = [0, 1, edge - 65, edge - 64, edge - 1, edge, edge + 1, edge + 64, 16**15 - 1, 16**15 - 65]
    hashes = [f"{place:015x}".ljust(64, "0") for place in places]
    hashes += [hashlib.sha256(b"%d" % number).hexdigest() for number in range(2_000)]
    for shares in (SHARES, {"train": 1.0}, {"a": 0.1, "b": 0.2, "c": 0.7}, {"a": 0.3, "b": 0.0, "c": 0.7}):
        table = spark.createDataFrame([(each,) for each in hashes], "content_hash string")
        rows = table.select("content_hash", split_by_hash(shares)).collect()
        assert dict(rows) == {each: fingerprint.split_of(each, shares) for each in hashes}


def test_each_finished_step_is_logged_with_numbers(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plants(tmp_path / "images", Maize=3, Charlock=2)
    write(tmp_path, "images/Maize/copy.png", png(1_000))
    write(tmp_path, "images/Maize/empty.png", b"")
    with caplog.at_level(logging.INFO, logger="seedlings_spark"):
        prepare(spark, tmp_path / "images", tmp_path / "corpus")
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name == "seedlings_spark.corpus.preparation"
    ]
    assert [line.split(",")[0] for line in lines] == [
        f"listed 7 files of file://{tmp_path}/images",
        "read and decoded 7 of 7 files",
        "wrote 6 images of 2 species (1 duplicates) and 1 rejects",
        f"published file://{tmp_path}/corpus",
    ]


# --- what the fingerprint and the split see, and what not ------------------------------------------------


def test_neither_names_nor_folders_nor_order_nor_partitions_change_the_corpus(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    away = mount(tmp_path)
    plants(tmp_path / "one", Charlock=6, Maize=8)
    for place, path in enumerate(sorted((tmp_path / "one").rglob("*.png"), reverse=True)):
        species = path.parent.name
        name = f"_{place}.png" if place % 2 else f"deeper/{place}.jpeg"
        write(tmp_path, f"two/{species}/{name}", path.read_bytes())
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        two = prepare(spark, f"{away}/two", f"{away}/corpus two")
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(before))
    good, _ = independent(tmp_path / "one")
    assert two.fingerprint == independent_fingerprint(tmp_path / "one")
    assert splits(spark, two) == {hash_: fingerprint.split_of(hash_, SHARES) for _, hash_, _ in good.values()}
    pixels = {row[schema.CONTENT_HASH]: bytes(row[schema.IMAGE]) for row in two.images(spark).collect()}
    assert pixels == {hash_: of_file for _, hash_, of_file in good.values()}
    assert corpus.load(f"{away}/corpus two").manifest == two.manifest
    assert visible(tmp_path / "corpus two") == ["images", "manifest.json", "rejects"]
    paths = {row[schema.PATH] for row in accepted(spark, two)}
    assert f"{away}/two/Maize/deeper/0.jpeg" in paths


# --- exact shares ---------------------------------------------------------------------------------------


def test_the_stratified_policy_gives_exact_shares_of_every_species(
    spark: SparkSession, tmp_path: Path
) -> None:
    root = plants(tmp_path / "images", Aster=1, Charlock=7, Fennel=10, Maize=20)
    for number in range(6):  # copies count once, and follow their picture
        write(root, f"Maize/copies/{number}.png", png(1_000 + number))
    prepared = prepare(spark, root, tmp_path / "corpus", split_policy="stratified")
    different: Counter[tuple[str, str]] = Counter()
    of_content = splits(spark, prepared)
    for hash_, species in {
        (row[schema.CONTENT_HASH], row[schema.SPECIES]) for row in accepted(spark, prepared)
    }:
        different[species, of_content[hash_]] += 1
    assert different == {
        ("Aster", "train"): 1,
        ("Charlock", "train"): 5,  # 4.9
        ("Charlock", "validation"): 1,  # to 5.95
        ("Charlock", "test"): 1,
        ("Fennel", "train"): 7,
        ("Fennel", "validation"): 2,  # to 8.5
        ("Fennel", "test"): 1,
        ("Maize", "train"): 14,
        ("Maize", "validation"): 3,
        ("Maize", "test"): 3,
    }
    assert prepared.manifest["accepted"] == 44
    assert prepared.manifest["duplicates"] == 6
    assert prepared.manifest["split_policy"] == "stratified"


def test_exact_shares_are_exact_where_floats_are_not(spark: SparkSession) -> None:
    # 50 * 0.29 is 14.499999999999998 in floating point, and half of an image goes up.
    rows = [(hashlib.sha256(b"%d" % number).hexdigest(), "Maize") for number in range(50)]
    table = spark.createDataFrame(rows, "content_hash string, species string")
    found = stratified(table, {"train": 0.29, "test": 0.71}).groupBy("split").count().collect()
    assert dict(map(tuple, found)) == {"train": 15, "test": 35}


# --- conflicting labels ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disputed_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = plants(tmp_path_factory.mktemp("disputed"), Charlock=4, Maize=4)
    write(root, "Charlock/wrong.png", png(1_000))  # Maize/0.png
    write(root, "Charlock/broken.txt", b"same text")  # no picture: no conflict
    write(root, "Maize/broken.txt", b"same text")
    return root


def test_the_same_bytes_under_two_species_are_an_error_that_names_both_paths(
    spark: SparkSession, disputed_images: Path, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError) as caught:
        prepare(spark, disputed_images, tmp_path / "corpus")
    assert_three_parts(caught.value)
    assert f"file://{disputed_images}/Charlock/wrong.png (Charlock)" in caught.value.found
    assert f"file://{disputed_images}/Maize/0.png (Maize)" in caught.value.found
    assert "1 such image" in caught.value.found
    assert "--conflicts drop" in caught.value.remedy
    assert not (tmp_path / "corpus").exists()


def test_on_request_all_copies_with_two_species_are_rejected(
    spark: SparkSession, disputed_images: Path, tmp_path: Path
) -> None:
    prepared = prepare(spark, disputed_images, tmp_path / "corpus", conflicts="drop")
    assert prepared.manifest["listed"] == 11
    assert prepared.manifest["accepted"] == 7
    assert prepared.manifest["rejected_by_reason"] == {"conflicting_species": 2, "not_an_image": 2}
    rows = prepared.rejects(spark).where("reason = 'conflicting_species'").collect()
    assert {(files.name(row.path), row.stage, row.detail) for row in rows} == {
        ("wrong.png", "label", "labelled Charlock"),
        ("0.png", "label", "labelled Maize"),
    }
    assert {row.content_hash for row in rows} == {hashlib.sha256(png(1_000)).hexdigest()}


# --- samples --------------------------------------------------------------------------------------------


def test_a_sample_is_of_every_species_and_of_every_split_and_follows_from_the_content(
    spark: SparkSession, tmp_path: Path
) -> None:
    root = plants(tmp_path / "one", Charlock=31, Maize=60)
    write(root, "Maize/text.png", b"text")  # can be read, so it may be in a sample
    write(root, "Maize/empty.png", b"")
    write(root, "Charlock/empty.png", b"")
    for place, path in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        write(tmp_path, f"two/{path.parent.name}/{place}", path.read_bytes())
    sampled = prepare(spark, tmp_path / "two", tmp_path / "corpus", sample=0.5)

    expected = {}
    for species in ("Charlock", "Maize"):
        contents = [path.read_bytes() for path in (root / species).iterdir()]
        hashes = [hashlib.sha256(content).hexdigest() for content in contents if content]
        keyed = sorted(hashes, key=lambda each: hashlib.sha256(b"sample " + each.encode()).hexdigest())
        for hash_ in keyed[: {"Charlock": 16, "Maize": 31}[species]]:  # half of 31 and of 61, rounded up
            expected[hash_] = species
    text = hashlib.sha256(b"text").hexdigest()
    num_text = int(text in expected)
    expected.pop(text, None)
    assert {row.content_hash: row.species for row in accepted(spark, sampled)} == expected
    assert sampled.manifest["listed"] == 47
    assert sampled.manifest["accepted"] == 47 - num_text
    assert sampled.manifest["found"] == 94
    assert sampled.manifest["sample"] == 0.5
    assert min(sampled.manifest["images_of_split"].values()) > 0
    assert {name: str(text) for name, text in corpus.summary(sampled)}["listed"] == "47 (a sample of 94)"


def test_seven_percent_of_a_hundred_are_seven_and_of_three_one(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    away = mount(tmp_path)
    plants(tmp_path / "images", Charlock=3, Maize=100)  # 100 * 0.07 is 7.000000000000001
    prepared = prepare(spark, f"{away}/images", f"{away}/corpus", sample=0.07)
    per_species = prepared.manifest["images_of_species"]
    assert {name: sum(each.values()) for name, each in per_species.items()} == {"Charlock": 1, "Maize": 7}


# --- tables of paths ------------------------------------------------------------------------------------


def write_csv(path: Path, rows: list[tuple[str, ...]], encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_csv_names_files_by_relative_and_absolute_paths(spark: SparkSession, tmp_path: Path) -> None:
    plants(tmp_path / "images", Charlock=3, Maize=3)
    quoted = 'images/a "b", c.png'
    write(tmp_path, quoted, png(77))
    folder = tmp_path / "tables of [x]"
    folder.mkdir()
    rows = [
        ("id", "species", "path"),
        ("1", "Maize", "../images/Maize/0.png"),
        ("2", "Maize", f"{tmp_path}/images/Maize/1.png"),
        ("3", "Charlock", f"file://{tmp_path}/images/Charlock/0.png"),
        ("4", " Charlock ", f"../{quoted}"),
        ("5", "Maize", "../images/Maize/missing.png"),
        ("6", "", "../images/Charlock/1.png"),
        ("7", "Maize", f"file:{tmp_path}/images/Maize/./0.png"),  # the first one again
        ("8", "Maize", "../images"),
    ]
    prepared = prepare(spark, write_csv(folder / "plants.csv", rows, "utf-8-sig"), tmp_path / "corpus")
    assert {(row.path, row.species) for row in accepted(spark, prepared)} == {
        (f"file://{tmp_path}/images/Maize/0.png", "Maize"),
        (f"file://{tmp_path}/images/Maize/1.png", "Maize"),
        (f"file://{tmp_path}/images/Charlock/0.png", "Charlock"),
        (f"file://{tmp_path}/{quoted}", "Charlock"),
    }
    assert reasons(spark, prepared) == {
        "missing.png": "unreadable",
        "1.png": "no_species",
        "images": "unreadable",
    }
    assert prepared.manifest["listed"] == 7
    assert prepared.manifest["duplicates"] == 0


def test_a_parquet_table_elsewhere_makes_the_corpus_of_its_folder(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    away = mount(tmp_path)
    root = plants(tmp_path / "images", Charlock=4, Maize=5)
    rows = [(str(path.relative_to(tmp_path)), path.parent.name) for path in sorted(root.rglob("*.png"))]
    table = spark.createDataFrame(
        [*rows, ("images/Maize/missing.png", "Maize")], "path string, species string"
    )
    table.write.parquet(f"{away}/table")
    by_table = prepare(spark, f"{away}/table", f"{away}/one")
    assert by_table.fingerprint == independent_fingerprint(root)
    assert by_table.manifest["rejected_by_reason"] == {"unreadable": 1}
    assert by_table.manifest["listed"] == 10


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([("file", "species"), ("1.png", "Maize")], "with the columns file, species"),
        ([("path", "label"), ("1.png", "Maize")], "with the columns path, label"),
        ([("path", "species")], "without a row"),
        ([("path", "species"), ("1.png", "Maize"), ("", "Maize")], "with 1 rows without a path"),
    ],
)
def test_a_table_that_is_none_is_refused(
    spark: SparkSession, tmp_path: Path, rows: list[tuple[str, ...]], found: str
) -> None:
    with pytest.raises(CorpusError) as caught:
        prepare(spark, write_csv(tmp_path / "table.csv", rows), tmp_path / "corpus")
    assert_three_parts(caught.value)
    assert found in caught.value.found
    assert "path and" in caught.value.expected
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("name", ["table.xlsx", "table.parquet"])
def test_a_file_that_is_no_table_is_refused(spark: SparkSession, tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusError) as caught:
        prepare(spark, write(tmp_path, name, b"no table at all"), tmp_path / "corpus")
    assert_three_parts(caught.value)
    assert name in caught.value.found


# --- nothing that a corpus could be made of --------------------------------------------------------------


def empty_folder(root: Path) -> None:
    root.mkdir()


def no_class_folders(root: Path) -> None:
    for number in range(3):
        write(root, f"{number}.png", png(number))


def one_species(root: Path) -> None:
    plants(root, Maize=3)
    write(root, "Charlock/1.png", b"text")


def only_broken_files(root: Path) -> None:
    for number in range(4):
        write(root, f"Maize/{number}.png", b"text")
    write(root, "Charlock/1.png", b"")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda root: None, "no folder file://{root}"),
        (empty_folder, "file://{root} is empty"),
        (no_class_folders, "file://{root} has 3 files and no class folders"),
        (one_species, "usable images of 1 species (Maize); rejected: 1 not_an_image"),
        (only_broken_files, "usable images of 0 species; rejected: 1 empty, 4 not_an_image"),
    ],
)
def test_what_makes_no_corpus_is_refused_with_numbers_and_leaves_nothing(
    spark: SparkSession, tmp_path: Path, make: Callable[[Path], None], found: str
) -> None:
    root = tmp_path / "images"
    make(root)
    with pytest.raises(CorpusError) as caught:
        prepare(spark, root, tmp_path / "corpus")
    assert_three_parts(caught.value)
    assert found.replace("{root}", str(root)) in caught.value.found
    assert caught.value.exit_code == 1
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"split_policy": "random"}, "split_policy 'random'"),
        ({"conflicts": "ignore"}, "conflicts 'ignore'"),
        ({"sample": 0.0}, "sample 0.0"),
        ({"sample": float("nan")}, "sample nan"),
        ({"shares": {"train": 0.7, "test": 0.2}}, "shares {'train': 0.7, 'test': 0.2}"),
        ({"shares": {"train": 1.5, "test": -0.5}}, "shares"),
        ({"shares": {}}, "shares {}"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(
    spark: SparkSession, tmp_path: Path, changes: Mapping[str, Any], found: str
) -> None:
    with pytest.raises(OptionError) as caught:
        prepare(spark, tmp_path / "images", tmp_path / "corpus", **changes)
    assert_three_parts(caught.value)
    assert found in caught.value.found
    assert caught.value.exit_code == 2


def test_an_unknown_file_system_is_a_corpus_error(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nosuchfs") as caught:
        prepare(spark, "nosuchfs://host/images", tmp_path / "corpus")
    assert_three_parts(caught.value)


# --- what is at the target ------------------------------------------------------------------------------


def test_a_corpus_is_replaced_only_on_request(spark: SparkSession, small: Path, tmp_path: Path) -> None:
    old = corpus.load(str(shutil.copytree(small, tmp_path / "corpus")))
    plants(tmp_path / "two", Charlock=4, Maize=5)
    with pytest.raises(CorpusError, match="already holds a corpus") as caught:
        prepare(spark, tmp_path / "two", tmp_path / "corpus")
    assert_three_parts(caught.value)
    assert corpus.load(old.path) == old
    new = prepare(spark, tmp_path / "two", tmp_path / "corpus", overwrite=True)
    assert new.manifest["accepted"] == 9
    assert new.images(spark).count() == 9
    assert visible(tmp_path / "corpus") == ["images", "manifest.json", "rejects"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["holiday.jpg", "images/Maize/1.png", "images", "rejects/notes.txt"])
def test_a_folder_with_anything_else_in_it_is_left_alone(
    spark: SparkSession, tmp_path: Path, name: str, overwrite: bool
) -> None:
    plants(tmp_path / "source", Charlock=2, Maize=2)
    precious = write(tmp_path / "target", name, b"precious")
    with pytest.raises(CorpusError, match="not written by prepare") as caught:
        prepare(spark, tmp_path / "source", tmp_path / "target", overwrite=overwrite)
    assert_three_parts(caught.value)
    assert precious.read_bytes() == b"precious"


def test_the_pictures_are_never_what_the_corpus_replaces(spark: SparkSession, tmp_path: Path) -> None:
    root = plants(tmp_path / "data" / "images", Charlock=2, Maize=2)
    for target in (tmp_path / "data", root, root / "corpus", f"{tmp_path}/other/../data/images/"):
        with pytest.raises(CorpusError, match="inside of the other") as caught:
            prepare(spark, root, target, overwrite=True)
        assert_three_parts(caught.value)
    assert sorted(path.name for path in root.rglob("*.png")) == ["0.png", "0.png", "1.png", "1.png"]
    # A name that begins like the other is no folder in it.
    assert prepare(spark, root, tmp_path / "data" / "images2").manifest["accepted"] == 4


def test_a_file_at_the_target_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    target = write(tmp_path, "target", b"precious")
    with pytest.raises(CorpusError, match="which is a file"):
        prepare(spark, plants(tmp_path / "images", Charlock=2, Maize=2), target, overwrite=True)
    assert target.read_bytes() == b"precious"


# --- crashes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plants(tmp_path_factory.mktemp("small"), Charlock=3, Maize=4)


@pytest.fixture(scope="module")
def small(spark: SparkSession, small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished corpus, to be copied."""
    return files.local_path(prepare(spark, small_images, tmp_path_factory.mktemp("small") / "corpus").path)


@pytest.mark.parametrize("step", range(6))
def test_a_failure_while_publishing_puts_the_old_corpus_back(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    old = shutil.copytree(small, tmp_path / "corpus")
    before = corpus.load(str(old))
    names = sorted(str(path.relative_to(old)) for path in old.rglob("*"))
    building = old / ".building-1"
    for table in ("images", "rejects"):
        write(building, f"{table}/new", b"new")
    rename, calls = files.rename, 0

    def failing(source: str, target: str) -> None:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(files, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        preparation._publish(str(building), str(old), {}, True)
    monkeypatch.undo()
    shutil.rmtree(building)
    assert sorted(str(path.relative_to(old)) for path in old.rglob("*")) == names
    assert corpus.load(str(old)) == before


def test_publishing_takes_six_renames_of_which_the_manifests_are_first_and_last(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shutil.copytree(small, tmp_path / "corpus")
    building = old / ".building-1"
    for table in ("images", "rejects"):
        write(building, f"{table}/new", b"new")
    rename, targets = files.rename, []

    def noted(source: str, target: str) -> None:
        targets.append(target.removeprefix(str(old)))
        rename(source, target)

    monkeypatch.setattr(files, "rename", noted)
    preparation._publish(str(building), str(old), {"new": True}, True)
    assert targets == [
        "/.building-1/old/manifest.json",
        "/.building-1/old/images",
        "/.building-1/old/rejects",
        "/rejects",
        "/images",
        "/manifest.json",
    ]
    assert json.loads((old / "manifest.json").read_text()) == {"new": True}


def test_a_failure_in_the_middle_leaves_the_old_corpus_and_nothing_else(
    spark: SparkSession,
    small_images: Path,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = shutil.copytree(small, tmp_path / "corpus")

    def fail(*_: object) -> None:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(preparation, "numbers_on_disk", fail)  # all tables are written by then
    for target in (old, tmp_path / "new"):
        with pytest.raises(OSError, match="disk is gone"):
            prepare(spark, small_images, target, overwrite=True)
    assert visible(old) == ["images", "manifest.json", "rejects"]
    assert corpus.load(str(old)).images(spark).count() == 7
    assert not (tmp_path / "new").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.getuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=False
        ).returncode
    ):
        pytest.skip("only root mounts a disk, and not everywhere")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_fills_up_under_sparks_tasks_is_told_as_that(
    spark: SparkSession, tmp_path: Path, small_disk: Path
) -> None:
    plants(tmp_path / "images", Charlock=20, Maize=20)
    task = decoding.DecodeTask((64, 64), "crop", images.FORMATS, images.MAX_PIXELS, 5_000)  # 12 kB each
    with pytest.raises(Exception, match=r".") as caught:
        prepare(spark, tmp_path / "images", small_disk / "corpus", task=task)
    known = errors.recognized(caught.value)
    assert isinstance(known, StorageError) and "No space left on device" in known.found
    assert_three_parts(known)
    assert list(small_disk.iterdir()) == []


def test_a_corpus_whose_numbers_do_not_add_up_is_never_published(
    spark: SparkSession, small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_all = decoding.decode_all

    def lossy(*arguments: Any) -> Any:
        return decode_all(*arguments).where("path NOT LIKE '%Maize/2.png'")

    monkeypatch.setattr(decoding, "decode_all", lossy)
    with pytest.raises(CorpusError, match=r"6 accepted and 0 rejected files\. Expected the 7 that") as caught:
        prepare(spark, small_images, tmp_path / "corpus")
    assert_three_parts(caught.value)
    assert not (tmp_path / "corpus").exists()


def test_of_two_runs_that_write_one_corpus_the_second_says_so(
    spark: SparkSession, small_images: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = preparation.numbers_on_disk

    def overtaken(*arguments: Any) -> Any:
        assert any(each.name.startswith(".building-") for each in (tmp_path / "corpus").iterdir())
        assert corpus.left_behind(str(tmp_path / "corpus")) == []  # this run lives
        for each in small.iterdir():
            if each.is_dir():
                shutil.copytree(each, tmp_path / "corpus" / each.name)
            else:
                shutil.copy(each, tmp_path / "corpus" / each.name)
        return manifest(*arguments)

    monkeypatch.setattr(preparation, "numbers_on_disk", overtaken)
    with pytest.raises(OutputInUseError, match="another run has written") as caught:
        prepare(spark, small_images, tmp_path / "corpus")
    assert_three_parts(caught.value)
    assert corpus.load(str(tmp_path / "corpus")).manifest["accepted"] == 7


def test_a_corpus_that_a_killed_run_has_left_is_not_read_and_is_written_anew(
    spark: SparkSession, small_images: Path, small: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(small, tmp_path / "corpus")
    (half / "manifest.json").unlink()
    (half / ".building-0123").mkdir()
    with pytest.raises(CorpusError, match=r"which has no manifest\.json") as caught:
        corpus.load(str(half))
    assert_three_parts(caught.value)
    assert "half-written" in caught.value.remedy
    assert prepare(spark, small_images, half).manifest["accepted"] == 7


def test_what_dead_runs_were_building_is_cleaned_away_and_no_more(small: Path, tmp_path: Path) -> None:
    place = shutil.copytree(small, tmp_path / "corpus")
    names = visible(place)
    now, day = datetime.timedelta(0), datetime.timedelta(days=1)
    for name in (".building-dead", ".building-living"):
        write(place, f"{name}/decoded/part", b"pixels")
    with Lock(str(place / ".building-living"), "prepare"):
        assert clean.clean_corpus(str(place), day, dry=False) == []
        for dry in (True, False):
            (removed,) = clean.clean_corpus(str(place), now, dry=dry)
            assert (removed.path, removed.num_bytes) == (str(place / ".building-dead"), 6)
        assert visible(place) == [".building-living", *names]
    assert len(clean.clean_corpus(str(place), now, dry=False)) == 1 and visible(place) == names
    # Killed between two renames: the only corpus that there is.
    for name in names:
        target = place / ".building-dead" / "old" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (place / name).rename(target)
    with pytest.raises(CorpusError, match=r"\.building-dead/old the corpus that was there before"):
        clean.clean_corpus(str(place), now, dry=False)
    with pytest.raises(CorpusError, match="no folder"):
        clean.clean_corpus(str(tmp_path / "none"), now, dry=True)


# --- loading --------------------------------------------------------------------------------------------


def test_a_missing_corpus_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no folder .*/nothing") as caught:
        corpus.load(str(tmp_path / "nothing"))
    assert_three_parts(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "which is not JSON"),
        ('{"format": 1, "listed"', "which is not JSON"),
        (b"\xff\xfe", "which is not JSON"),
        ("[]", "of format None"),
        ("null", "of format None"),
        ("{}", "of format None"),
        ('{"format": 4}', "of format 4"),
        ('{"format": "1"}', "of format '1'"),
        ('{"format": 1}', "whose listed is None"),
    ],
)
def test_a_manifest_that_is_damaged_or_unknown_is_refused(
    tmp_path: Path, text: str | bytes, found: str
) -> None:
    write(tmp_path, "manifest.json", text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CorpusError) as caught:
        corpus.load(str(tmp_path))
    assert_three_parts(caught.value)
    assert found in caught.value.found
    assert "prepare" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"fingerprint": None}, "whose fingerprint is None"),
        ({"images_of_species": []}, r"whose images_of_species is \[\]"),
        ({"accepted": 8}, "8 accepted and 0 rejected files do not make 7 listed"),
        ({"listed": 8}, "7 accepted and 0 rejected files do not make 8 listed"),
        ({"images_of_split": {"train": 1}}, "do not make 7"),
    ],
)
def test_a_manifest_whose_numbers_do_not_add_up_is_refused(
    small: Path, tmp_path: Path, changes: Mapping[str, Any], found: str
) -> None:
    folder = shutil.copytree(small, tmp_path / "corpus")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    with pytest.raises(CorpusError, match=found) as caught:
        corpus.load(str(folder))
    assert_three_parts(caught.value)


def test_a_manifest_without_its_tables_is_refused(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "corpus")
    shutil.rmtree(folder / "images")
    with pytest.raises(CorpusError, match="no images folder"):
        corpus.load(str(folder))


# --- large images, and pictures from outside ------------------------------------------------------------


# --- a corpus that is read must be the one that was written ---------------------------------------------


@pytest.fixture(scope="module")
def in_parts(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of several files a split, some rejects, and no checksum files of Hadoop's, as after a copy."""
    place = tmp_path_factory.mktemp("in parts")
    images_ = plants(place / "images", Charlock=40, Maize=40)
    write(images_, "Maize/empty.png", b"")
    write(images_, "Maize/text.png", b"text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "_FILE_BYTES", 2_000)
        prepare(spark, images_, place / "corpus")
    for file in (place / "corpus").rglob(".*.crc"):
        file.unlink()
    return place / "corpus"


def parts(place: Path, split: str = "train") -> list[Path]:
    return sorted((place / "images" / f"split={split}").glob("*.parquet"))


def lose(place: Path) -> None:
    parts(place)[0].unlink()


def double(place: Path) -> None:
    shutil.copy(parts(place)[0], parts(place)[0].with_name("copy.parquet"))


def add_from_another_split(place: Path) -> None:
    shutil.copy(parts(place, "test")[0], parts(place)[0].with_name("other.parquet"))


def exchange(place: Path) -> None:
    shutil.copy(parts(place, "test")[0], parts(place)[0])


def cut_short(place: Path) -> None:
    part = parts(place)[0]
    part.write_bytes(part.read_bytes()[:-100])


def empty(place: Path) -> None:
    for part in parts(place):
        part.unlink()


def remove_split(place: Path) -> None:
    shutil.rmtree(place / "images/split=train")


def remove_all_splits(place: Path) -> None:
    for folder in (place / "images").glob("split=*"):
        shutil.rmtree(folder)


def turn_upside_down(place: Path) -> None:
    """Other pictures of the same labels, in a file of the same name: only the pixels tell."""
    part = parts(place)[0]
    table = pq.read_table(part)
    at = table.schema.get_field_index("image")
    pixels = pa.array([bytes(reversed(one)) for one in table["image"].to_pylist()], pa.binary())
    pq.write_table(table.set_column(at, table.schema.field(at), pixels), part)


DAMAGES = [lose, double, add_from_another_split, exchange, cut_short, empty, remove_split, remove_all_splits]


@pytest.mark.parametrize("release", ["today's", "an earlier"])
@pytest.mark.parametrize("damage", [*DAMAGES, turn_upside_down], ids=lambda each: each.__name__)
def test_a_corpus_with_a_part_lost_doubled_foreign_or_damaged_is_refused(
    spark: SparkSession, in_parts: Path, tmp_path: Path, damage: Callable[[Path], None], release: str
) -> None:
    place = tmp_path / "corpus"
    shutil.copytree(in_parts, place)
    manifest = json.loads((place / "manifest.json").read_text())
    if release == "an earlier":
        del manifest["files"]
        (place / "manifest.json").write_text(json.dumps(manifest))
    count = manifest["images_of_split"]["train"]
    assert corpus.load(str(place)).images(spark, "train").count() == count  # as it is, it is read
    first = parts(place)[0].name
    damage(place)
    damaged = corpus.load(str(place))
    if damage is turn_upside_down and release == "an earlier":
        return  # nothing was written down that could tell
    with pytest.raises(CorpusError, match="not as prepare has written it") as caught:
        damaged.images(spark, "train")
    assert_three_parts(caught.value)
    if release == "today's":
        culprit = {double: "copy.parquet", add_from_another_split: "other.parquet"}.get(damage, first)
        assert f"images/split=train/{culprit}" in caught.value.found
    elif damage is cut_short:
        assert first in caught.value.found
    else:
        assert f"{count:,}" in caught.value.expected


def test_a_part_that_is_lost_from_a_split_that_is_not_read_does_not_matter(
    spark: SparkSession, in_parts: Path, tmp_path: Path
) -> None:
    shutil.copytree(in_parts, tmp_path / "corpus")
    lose(tmp_path / "corpus")
    damaged = corpus.load(str(tmp_path / "corpus"))
    assert damaged.images(spark, "test").count() == damaged.num_images("test") > 0


def test_the_manifest_of_another_corpus_is_refused(
    spark: SparkSession, in_parts: Path, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(in_parts, tmp_path / "corpus")
    shutil.copy(small / "manifest.json", tmp_path / "corpus")
    with pytest.raises(CorpusError, match="not as prepare has written it"):
        corpus.load(str(tmp_path / "corpus")).images(spark)


def test_rejects_that_are_lost_are_missed(spark: SparkSession, in_parts: Path, tmp_path: Path) -> None:
    shutil.copytree(in_parts, tmp_path / "corpus")
    assert corpus.load(str(tmp_path / "corpus")).rejects(spark).count() == 2
    (part,) = (tmp_path / "corpus/rejects").glob("*.parquet")
    part.unlink()
    with pytest.raises(CorpusError, match=re.escape(part.name)):
        corpus.load(str(tmp_path / "corpus")).rejects(spark)


def test_a_flipped_bit_in_a_part_is_refused_with_its_name_or_changes_nothing(
    spark: SparkSession, in_parts: Path, tmp_path: Path
) -> None:
    place = tmp_path / "corpus"
    shutil.copytree(in_parts, place)
    part = parts(place)[0]
    content = part.read_bytes()
    split = corpus.load(str(place)).images(spark, "train").orderBy(schema.PATH)
    rows = split.collect()
    num_refused = 0
    drawn = np.random.default_rng(0)
    of_metadata = int.from_bytes(content[-8:-4], "little")  # these stand at the end
    for start, end in [(4, len(content) - of_metadata)] * 10 + [
        (len(content) - of_metadata, len(content))
    ] * 6:
        flipped = bytearray(content)
        flipped[drawn.integers(start, end)] ^= 1 << drawn.integers(8)
        part.write_bytes(flipped)
        try:
            images_ = corpus.load(str(place)).images(spark, "train")
        except CorpusError as error:
            num_refused += 1
            assert part.name in error.found
            assert_three_parts(error)
        else:
            assert images_.orderBy(schema.PATH).collect() == rows
    assert num_refused > 5


def test_row_groups_stay_small_where_images_are_large(spark: SparkSession, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    plants(tmp_path / "images", Charlock=30, Maize=30)
    task = decoding.DecodeTask((700, 700), "stretch", ("png",), 1_000, 5_000)  # 1.5 MB each
    prepared = prepare(spark, tmp_path / "images", tmp_path / "corpus", task=task, shares={"train": 1.0})
    groups = [
        pq.ParquetFile(path).metadata.row_group(group)
        for path in (tmp_path / "corpus" / "images").rglob("*.parquet")
        for group in range(pq.ParquetFile(path).metadata.num_row_groups)
    ]
    assert sum(group.num_rows for group in groups) == 60
    assert max(group.total_byte_size for group in groups) < 50_000_000
    assert prepared.image_size == (700, 700)


# --- what is no species ---------------------------------------------------------------------------------

HIDDEN = [".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", ".git", ".AppleDouble", ".Trash-1000"]
HIDDEN += ["lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle", ".snapshot"]


def test_hidden_and_system_folders_are_one_reject_each_at_any_depth(
    spark: SparkSession, tmp_path: Path
) -> None:
    root = plants(tmp_path / "images", Charlock=10, Maize=10)
    for number, name in enumerate(HIDDEN):
        write(root, f"{name}/deep/a.png", png(6_000 + number))
        write(root, f"{name}/b.png", png(6_100 + number))
        write(root, f"Maize/field 1/{name}/c.png", png(6_200 + number))
    for number, name in enumerate(["._0.png", "Thumbs.db", ".DS_Store", ".trashed-1-a.png"]):
        write(root, f"Maize/{name}", png(6_300 + number))
    write(root, "Maize/.read as ever.png", png(6_400))
    prepared = prepare(spark, root, tmp_path / "corpus")
    assert prepared.classes == ("Charlock", "Maize")
    assert prepared.manifest["accepted"] == 21
    assert prepared.manifest["rejected_by_reason"] == {"hidden": 2 * len(HIDDEN) + 4}
    assert prepared.manifest["listed"] == prepared.manifest["found"] == 21 + 2 * len(HIDDEN) + 4
    rejects = {
        row.path.removeprefix(f"file://{root}/"): row.stage for row in prepared.rejects(spark).collect()
    }
    assert set(HIDDEN) | {f"Maize/field 1/{name}" for name in HIDDEN} < set(rejects)
    assert set(rejects.values()) == {"list"}


def test_a_folder_with_nothing_but_hidden_ones_is_empty(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path / "images", ".cache/Maize/1.png", png(1))
    with pytest.raises(CorpusError, match="empty but for hidden and system folders"):
        prepare(spark, tmp_path / "images", tmp_path / "corpus")


@pytest.mark.parametrize(
    "layout",
    [
        ("train", "val"),
        ("train/Maize", "train/Rye", "val"),
        ("val/Maize", "test/Rye"),
        ("training/Maize", "training/Rye"),
        ("seg_train", "Val2017"),
        ("train/Maize", "Rye"),
        ("validation",),
    ],
)
def test_folders_of_splits_do_not_become_species(
    spark: SparkSession, tmp_path: Path, layout: tuple[str, ...]
) -> None:
    for number, folder in enumerate(layout):
        write(tmp_path / "images", f"{folder}/1.png", png(number))
    with pytest.raises(CorpusError, match="which are splits and no species") as caught:
        prepare(spark, tmp_path / "images", tmp_path / "corpus")
    assert_three_parts(caught.value)
    assert layout[0].split("/")[0] in caught.value.found


def test_a_species_may_have_the_name_of_a_split(spark: SparkSession, tmp_path: Path) -> None:
    root = plants(tmp_path / "images", Maize=3)
    write(root, "Test/1.png", png(1))
    assert prepare(spark, root, tmp_path / "corpus").classes == ("Maize", "Test")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Rye", "rye"),
        ("Rye", "Rye "),
        ("Rye", " Rye"),
        ("Caf\u00e9", "Cafe\u0301"),
        ("Fat Hen", "Fat\u00a0Hen"),
        ("Fat Hen", "Fat  Hen"),
        ("Fat Hen", "Fat\u2009Hen"),
        ("Fat Hen", "Fat\tHen"),
        ("Maize", "Mai\u200bze"),
        ("Maize", "Maize\ufeff"),
        ("Maize", "Ma\u00adize"),
        ("Maize", "Maize\u202c"),
        ("Maize", "\u041caize"),
        ("Maize", "M\u0430ize"),
        ("Maize", "\uff2daize"),
        ("Black-grass", "Black\u2011grass"),
        ("Black-grass", "Black\u2013grass"),
        ("Shepherd's Purse", "Shepherd\u2019s Purse"),
        ("fig", "\ufb01g"),
        ("Maize", "Maize\ufe0f"),
        ("Maize", "Maize\u3164"),
    ],
)
def test_names_that_look_alike_are_found_and_shown_apart(one: str, other: str) -> None:
    pair = corpus.look_alikes(["Charlock", one, "Aster", other, one])
    assert pair is not None
    assert set(pair) == {ascii(one), ascii(other)}
    assert len(set(pair)) == 2


def test_names_that_a_person_can_tell_apart_are_no_look_alikes() -> None:
    names = [
        "Maize",
        "Maise",
        "Fat Hen",
        "FatHen",
        "Rye",
        "Rye 2",
        "Caf\u00e9",
        "Cafe",
        "\u5c0f\u9ea6",
        "\u5927\u9ea6",
    ]
    assert corpus.look_alikes([*names, *names]) is None


def test_species_that_look_alike_are_refused_in_folders_and_in_tables(
    spark: SparkSession, tmp_path: Path
) -> None:
    for number, species in enumerate(["Caf\u00e9", "Cafe\u0301", "Maize"]):
        write(tmp_path / "images", f"{species}/1.png", png(number))
    table = write(tmp_path, "images.csv", "path,species\n1,Caf\u00e9\n2,Cafe\u0301\n".encode())
    for source in (tmp_path / "images", table):
        with pytest.raises(CorpusError, match="look alike") as caught:
            prepare(spark, source, tmp_path / "corpus")
        assert_three_parts(caught.value)
        assert r"'Caf\xe9'" in caught.value.found and r"'Cafe\u0301'" in caught.value.found


def test_real_photographs_make_a_corpus(spark: SparkSession, tmp_path: Path) -> None:
    photographs = shared_data("plant_seedlings_v2")
    for species in sorted(photographs.iterdir())[:4]:
        for path in sorted(species.iterdir())[:10]:
            write(tmp_path / "images", f"{species.name}/{path.name}", path.read_bytes())
    task = decoding.DecodeTask((64, 64), "crop", images.FORMATS, images.MAX_PIXELS, 64 * 1024 * 1024)
    prepared = prepare(spark, tmp_path / "images", tmp_path / "corpus", task=task)
    assert prepared.manifest["accepted"] == 40
    for row in prepared.images(spark).collect():
        expected = images.decode(files.read_bytes(row.path), (64, 64))
        assert bytes(row.image) == expected.tobytes()


def test_every_hostile_file_is_an_image_or_a_reject(spark: SparkSession, tmp_path: Path) -> None:
    with tarfile.open(shared_data("bad_images_dev.tar")) as archive:
        archive.extractall(tmp_path / "images", filter="data")
    # The tar's one top folder is not a species, those in it are.
    root = tmp_path / "images" / "bad_images"
    listed = [path for path in root.rglob("*") if not path.is_dir()]
    plants(root, Charlock=2, Maize=2)
    task = decoding.DecodeTask((64, 64), "crop", images.FORMATS, images.MAX_PIXELS, 64 * 1024 * 1024)
    prepared = prepare(spark, root, tmp_path / "corpus", task=task, conflicts="drop")
    paths = [row.path for row in accepted(spark, prepared)] + [
        row.path for row in prepared.rejects(spark).collect()
    ]
    assert len(paths) == len(listed) + 4
    assert len(set(paths)) == len(paths)
    assert set(prepared.manifest["rejected_by_reason"]) <= set(schema.REJECT_REASONS)
    assert prepared.manifest["listed"] == len(paths)
    print(json.dumps(prepared.manifest, indent=1))


def test_each_row_lands_in_the_partition_that_a_column_names(spark: SparkSession) -> None:
    values = np.array([0, 1, 42, 2**31 - 1, *range(100, 200)], np.uint32)
    rows = spark.createDataFrame([(int(value),) for value in values], "value int")
    expected = [row[0] for row in rows.selectExpr("hash(value)").collect()]
    assert session.spark_hash(values).tolist() == expected
    for number in (2, 7, 130):
        named = spark.range(3 * number).select((F.col("id") % number).cast("int").alias("named"))
        placed = named.repartition(number, session.partition_key(F.col("named"), number))
        wrong = placed.where(F.col("named") != F.spark_partition_id())
        assert placed.rdd.getNumPartitions() == number and wrong.count() == 0
