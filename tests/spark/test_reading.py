"""Every listed file ends as exactly one row, whatever its name, its content or its file system."""

import hashlib
import json
import os
import socket
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from seedlings_spark import files, images, schema
from seedlings_spark.corpus import decoding, listings, references, remote, systems, tables
from seedlings_spark.errors import InputError
from tests import hostile
from tests.pictures import png, write

TASK = decoding.DecodeTask((8, 8), "crop", images.FORMATS, images.MAX_PIXELS, 2_000)
# What HDFS allows, too.
NAMES = [
    "plain.png",
    "_begins with an underscore.png",
    ".hidden.png",
    "_a=b.png",
    "copied.png._COPYING_",
    "_metadata",
    " leading and trailing ",
    'it\'s "quoted".png',
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png",
    "cafe\N{COMBINING ACUTE ACCENT}.png",
    "100%.png",
    "a%20b.png",
    "50%25.png",
    "#1.png",
    "why?.png",
    "a+b&c=d;e,f.png",
    "line\nbreak.png",
    "ends with a line break\n",
    "seedling \N{SEEDLING}.png",
    "{a,b}[0-9]*.png",
    "back\\slash.png",
    "no extension",
]
LOCAL_NAMES = [*NAMES, "12:30.png", "file:name.png"]


def write_hostile(root: Path, names: list[str]) -> dict[str, tuple[str | None, str | None]]:
    """A folder of hostile files; of each path below it the (species, reason) that it shall end with."""
    expected: dict[str, tuple[str | None, str | None]] = {}
    for number, name in enumerate(names):
        write(root, f"Maize/{name}", png(number))
        expected[f"Maize/{name}"] = ("Maize", None)
    for path, content, reason in [
        ("top.png", png(100), None),
        ("Fat Hen/deep/er/still/1.png", png(101), None),
        ("_hidden folder/1.png", png(102), None),
        ("~hidden folder/sub/1.png", png(103), None),
        ("a=1/b=2/1.png", png(104), None),
        ("Fat Hen/copy of 101.png", png(101), None),
        ("Fat Hen/empty.png", b"", "empty"),
        ("Fat Hen/_empty.png", b"", "empty"),
        ("Fat Hen/notes.txt", b"not a picture\n", "not_an_image"),
        ("Fat Hen/.Thumbs", bytes(range(256)), "not_an_image"),
        ("Fat Hen/cut.png", png(105)[:200], "truncated"),
        ("Fat Hen/.cut.png", png(105)[:201], "truncated"),
        ("Fat Hen/long.png", png(106, 40, 40), "too_large"),
        ("Fat Hen/_long.png", png(106, 40, 40), "too_large"),
        ("Fat Hen/exactly.png", png(107) + bytes(2_000 - len(png(107))), None),
        ("Fat Hen/one more.png", png(107) + bytes(2_001 - len(png(107))), "too_large"),
    ]:
        write(root, path, content)
        expected[path] = (path.split("/")[0] if "/" in path else None, reason)
    return expected


def rows_below(root: str, table: DataFrame) -> dict[str, Any]:
    rows = table.collect()
    assert table.columns == schema.DECODED.names
    assert len({row[schema.PATH] for row in rows}) == len(rows)
    assert all(row[schema.PATH].startswith(root + "/") for row in rows)
    return {row[schema.PATH][len(root) + 1 :]: row for row in rows}


def read(spark: SparkSession, root: str, task: decoding.DecodeTask = TASK) -> dict[str, Any]:
    """Path below the root -> row."""
    root = files.qualify(root)
    listing = listings.listing_table(spark, listings.walk(root, by_folder=True)).persist()
    with decoding.batches(spark):
        return rows_below(root, decoding.decode_all(spark, listing, root, task))


def outcome(rows: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    return {path: (row[schema.SPECIES], row[schema.REASON]) for path, row in rows.items()}


# --- local files ----------------------------------------------------------------------------------------


def test_every_listed_file_ends_as_one_row_whatever_its_name(spark: SparkSession, tmp_path: Path) -> None:
    root = tmp_path / 'a "root" with {a,b}[0-9]* 100%25 é'
    expected = write_hostile(root, LOCAL_NAMES)
    (root / "Maize" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (root / "Maize" / "linked.png").symlink_to(root / "Maize" / "plain.png")
    os.mkfifo(root / "Maize" / "pipe.png")
    (root / os.fsdecode(b"Maize/caf\xe9.png")).write_bytes(png(1))
    for name, reason in [
        ("dangling.png", "unreadable"),
        ("linked.png", None),
        ("pipe.png", "unreadable"),
        ("/caf\\xe9.png", "unreadable"),
    ]:
        expected[f"Maize/{name}"] = ("Maize", reason)
    rows = read(spark, str(root))
    assert outcome(rows) == expected
    assert rows["Maize/dangling.png"][schema.DETAIL] == "dangling link"
    assert rows["Maize/dangling.png"][schema.STAGE] == "list"
    assert rows["Maize//caf\\xe9.png"][schema.DETAIL] == "the name is not UTF-8"
    assert rows["Fat Hen/empty.png"][schema.STAGE] == "list"
    assert rows["Fat Hen/long.png"][schema.DETAIL] == "4,908 bytes, at most 2,000"
    assert rows["Fat Hen/notes.txt"][schema.STAGE] == "decode"


def test_a_row_has_the_hash_of_the_bytes_and_the_pixels_of_the_decoder(
    spark: SparkSession, tmp_path: Path
) -> None:
    task = decoding.DecodeTask((4, 6), "pad", ("png",), 1_000, 2_000)
    contents = {f"Maize/{number}.png": png(number, 10 + number, 10 + number) for number in range(5)}
    contents["Maize/text.png"] = b"text"
    for path, content in contents.items():
        write(tmp_path, path, content)
    rows = read(spark, str(tmp_path), task)
    assert rows.keys() == contents.keys()
    for path, content in contents.items():
        assert rows[path][schema.CONTENT_HASH] == hashlib.sha256(content).hexdigest()
        if path != "Maize/text.png":
            pixels = images.decode(content, (4, 6), aspect="pad")
            assert bytes(rows[path][schema.IMAGE]) == pixels.tobytes()
    assert rows["Maize/text.png"][schema.IMAGE] is None


def test_a_file_deleted_after_it_was_listed_is_a_reject(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path, "Maize/1.png", png(1))
    gone = write(tmp_path, "Maize/2.png", png(2))
    replaced = write(tmp_path, "Maize/3.png", png(3))
    shrunk = write(tmp_path, "Maize/4.png", png(4))
    root = f"file://{tmp_path}"
    listing = listings.listing_table(spark, listings.walk(root, by_folder=True)).persist()
    assert listing.count() == 4
    gone.unlink()
    replaced.unlink()
    os.mkfifo(replaced)
    shrunk.write_bytes(b"")
    rows = rows_below(root, decoding.decode_all(spark, listing, root, TASK))
    assert outcome(rows) == {
        "Maize/1.png": ("Maize", None),
        "Maize/2.png": ("Maize", "unreadable"),
        "Maize/3.png": ("Maize", "unreadable"),
        "Maize/4.png": ("Maize", "changed"),
    }
    assert rows["Maize/2.png"][schema.DETAIL] == "No such file or directory"
    assert {rows[f"Maize/{number}.png"][schema.STAGE] for number in (2, 3, 4)} == {"read"}


def test_a_file_that_is_too_long_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = write(tmp_path, "long.png", png(1, 40, 40))
    row = {
        schema.PATH: f"file://{long}",
        schema.LENGTH: 4_908,
        schema.MODIFIED: -1,
        schema.SPECIES: None,
        schema.DETAIL: None,
    }

    def fail(*_: object) -> bytes:
        raise AssertionError("the file was opened")

    monkeypatch.setattr("os.open", fail)
    assert decoding.read_and_decode(TASK, row).reason == "too_large"
    with pytest.raises(AssertionError, match="was opened"):
        decoding.read_and_decode(TASK, {**row, schema.LENGTH: 2_000})


@pytest.mark.parametrize(
    ("length", "reason"), [(-1, "too_large"), (100, "too_large"), (0, "empty"), (4_908, "too_large")]
)
def test_a_length_that_is_wrong_or_unknown_lets_no_long_file_through(
    tmp_path: Path, length: int, reason: str
) -> None:
    long = write(tmp_path, "long.png", png(1, 40, 40))
    row = {
        schema.PATH: f"file://{long}",
        schema.LENGTH: length,
        schema.MODIFIED: -1,
        schema.SPECIES: None,
        schema.DETAIL: None,
    }
    assert decoding.read_and_decode(TASK, row).reason == reason


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing", "null byte", "device"])
def test_what_is_no_file_is_unreadable_and_does_not_block(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "null byte":
        path = tmp_path / "a\0b"
    elif kind == "device":
        path = Path("/dev/zero")
    row = {
        schema.PATH: f"file://{path}",
        schema.LENGTH: -1,
        schema.MODIFIED: -1,
        schema.SPECIES: None,
        schema.DETAIL: None,
    }
    found: list[decoding.Decoded] = []
    thread = threading.Thread(target=lambda: found.append(decoding.read_and_decode(TASK, row)), daemon=True)
    thread.start()
    thread.join(10)
    assert [(one.reason, one.stage) for one in found] == [("unreadable", "read")]
    assert found[0].detail


def test_hashes_are_those_of_the_bytes_and_null_where_there_are_none(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    expected = write_hostile(tmp_path / "images", NAMES)
    for root in (f"file://{tmp_path}/images", mount(tmp_path / "images")):
        listing = listings.listing_table(spark, listings.walk(root, by_folder=True)).persist()
        with decoding.batches(spark):
            table = decoding.hash_all(spark, listing, root, TASK)
            rows = {row[schema.PATH][len(root) + 1 :]: row for row in table.collect()}
        assert table.columns == [*schema.LISTING.names, schema.CONTENT_HASH]
        assert rows.keys() == expected.keys()
        for path, (species, reason) in expected.items():
            assert rows[path][schema.SPECIES] == species
            content = (tmp_path / "images" / path).read_bytes()
            is_read = reason not in ("empty", "too_large")
            assert rows[path][schema.CONTENT_HASH] == (
                hashlib.sha256(content).hexdigest() if is_read else None
            )


def test_large_images_leave_a_task_in_small_batches() -> None:

    row = {
        schema.PATH: "file:///missing",
        schema.LENGTH: 5,
        schema.MODIFIED: -1,
        schema.SPECIES: None,
        schema.DETAIL: None,
    }
    batch = pa.RecordBatch.from_pylist([row] * 100, schema=tables.arrow_schema(schema.LISTING))

    def sizes(side: int) -> list[int]:
        task = decoding.DecodeTask((side, side), "crop", ("png",), 1_000, 1_000)
        return [each.num_rows for each in decoding.decode_listed(task, iter([batch]))]

    assert sizes(64) == [64, 36]
    assert sizes(2048) == [1] * 100  # 12 MB each
    assert sizes(512) == [10] * 10  # 0.8 MB each


def test_the_next_files_are_read_while_those_before_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(write(tmp_path, f"{number}.png", png(number))) for number in range(4)]
    rows = [{**dict.fromkeys(schema.LISTING.names), schema.PATH: f"file://{path}"} for path in paths]
    rows = [{**row, schema.LENGTH: -1, schema.MODIFIED: -1} for row in rows]
    batch = pa.RecordBatch.from_pylist(rows, schema=tables.arrow_schema(schema.LISTING))
    monkeypatch.setattr(decoding, "_ROWS", 2)
    read_local, is_read = decoding._read_local, threading.Event()

    def spied(path: str, most: int) -> Any:
        found = read_local(path, most)
        if path.endswith("2.png"):
            is_read.set()
        return found

    monkeypatch.setattr(decoding, "_read_local", spied)
    decoded = decoding.decode_listed(TASK, iter([batch]))
    first = next(decoded)
    assert is_read.wait(10)
    found = pa.Table.from_batches([first, *decoded])
    assert found[schema.PATH].to_pylist() == [row[schema.PATH] for row in rows]
    assert found[schema.REASON].null_count == 4


def test_an_empty_listing_is_an_empty_table(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "images" / "Maize").mkdir(parents=True)
    assert read(spark, str(tmp_path / "images")) == {}


def test_a_missing_folder_and_a_file_are_no_folder_of_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder file:///.*missing\. Expected a folder of images"):
        list(listings.walk(str(tmp_path / "missing"), by_folder=True))
    with pytest.raises(InputError, match=r"1\.png, which is a file"):
        list(listings.walk(str(write(tmp_path, "1.png", png(1))), by_folder=True))


MEGA = 1024 * 1024


def _tasks(spark: SparkSession, lengths: list[int]) -> list[list[int]]:
    """The lengths of each task's files."""
    listing = [
        listings.Listed(f"file:///{at:06}", length, -1, None, None) for at, length in enumerate(lengths)
    ]
    table = decoding.spread(spark, listings.listing_table(spark, listing))
    return [[row[schema.LENGTH] for row in rows] for rows in table.rdd.glom().collect()]


def test_files_are_dealt_to_a_number_of_tasks_that_goes_by_their_bytes(spark: SparkSession) -> None:
    assert len(_tasks(spark, [])) == 1
    assert len(_tasks(spark, [100])) == 1
    assert len(_tasks(spark, [100] * 3)) == 3
    assert len(_tasks(spark, [100] * 50)) == 4  # twice the two slots of this session
    # At most 128 MB each, and as many for one slot as for the other.
    assert len(_tasks(spark, [10 * MEGA] * 128)) == 12
    # 128 kB where the length is not known, and 16 kB to open it
    assert len(_tasks(spark, [-1] * 10_240)) == 12


def test_a_hundred_thousand_small_files_are_at_most_64_tasks(spark: SparkSession) -> None:
    tasks = _tasks(spark, [1024] * 100_000)
    assert len(tasks) <= 64
    assert sum(map(len, tasks)) == 100_000
    assert max(map(len, tasks)) <= 1.01 * min(map(len, tasks)) + 1


def test_no_task_gets_more_bytes_than_its_share_and_one_file(spark: SparkSession) -> None:
    lengths = [30 * MEGA] * 32 + [64 * 1024] * 16_000  # 1 GB in a few files, 1 GB in many
    tasks = _tasks(spark, lengths)
    assert sorted(length for task in tasks for length in task) == sorted(lengths)
    sizes = [sum(task) for task in tasks]
    share = (sum(lengths) + len(lengths) * 16 * 1024) / len(tasks)  # what it costs to open a file counts too
    assert max(sizes) <= share + 30 * MEGA
    assert max(map(len, tasks)) > 20 * min(map(len, tasks))


# --- other file systems ---------------------------------------------------------------------------------


def test_another_file_system_gives_the_same_rows_as_the_local_one(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    folder = tmp_path / "a root {a,b}[0-9]* 100%25"
    expected = write_hostile(folder, NAMES)
    root = mount(tmp_path) + "/" + folder.name
    assert not files.is_local(root)
    rows, local_rows = read(spark, root), read(spark, str(folder))
    assert outcome(rows) == expected
    for path in expected:
        assert {**rows[path].asDict(), schema.PATH: ""} == {**local_rows[path].asDict(), schema.PATH: ""}


def test_a_neighbour_that_a_glob_would_match_is_not_read(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    for number, folder in enumerate(["a*", "ab", "a?", "a[b]", "{a,ab}", "a\\*"]):
        write(tmp_path, f"{folder}/Maize/{number}.png", png(number))
    base = mount(tmp_path)
    for number, folder in ((0, "a*"), (2, "a?"), (3, "a[b]"), (4, "{a,ab}"), (5, "a\\*")):
        source, silent = remote._binary_files(spark, [f"{base}/{folder}"])
        found = [row[schema.PATH] for row in source.collect()]
        assert not silent and found == [f"{base}/{folder}/Maize/{number}.png"]


def test_elsewhere_too_a_file_deleted_after_it_was_listed_is_a_reject(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    write(tmp_path, "Maize/1.png", png(1))
    before = write(tmp_path, "Maize/2.png", png(2))
    after = write(tmp_path, "Maize/3.png", png(3))
    root = mount(tmp_path)
    listing = listings.listing_table(spark, listings.walk(root, by_folder=True)).persist()
    assert listing.count() == 3
    before.unlink()
    write(tmp_path, "Maize/new.png", png(4))
    decoded = decoding.decode_all(spark, listing, root, TASK)
    after.unlink()  # Spark has listed it for itself by now
    rows = rows_below(root, decoded)
    assert outcome(rows) == {
        "Maize/1.png": ("Maize", None),
        "Maize/2.png": ("Maize", "unreadable"),
        "Maize/3.png": ("Maize", "unreadable"),
    }
    assert {rows[f"Maize/{number}.png"][schema.STAGE] for number in (2, 3)} == {"read"}


def test_a_file_with_a_wrong_checksum_is_one_reject_and_not_the_end(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    root = mount(tmp_path)
    files.write_bytes(f"{root}/Maize/1.png", png(1))
    files.write_bytes(f"{root}/Maize/2.png", png(2))
    assert (tmp_path / "Maize" / ".2.png.crc").exists()  # Hadoop's, as HDFS keeps them of its blocks
    (tmp_path / "Maize" / "2.png").write_bytes(png(3))
    assert outcome(read(spark, root)) == {
        "Maize/1.png": ("Maize", None),
        "Maize/2.png": ("Maize", "unreadable"),
    }


def test_what_the_driver_reads_for_spark_stays_within_its_budget(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write(tmp_path, f"Maize/_{number}.png", png(number))
    write(tmp_path, "Maize/5.png", png(5))
    monkeypatch.setattr(remote, "_DRIVER_BYTES", 3 * len(png(0)))
    rows = read(spark, mount(tmp_path))
    assert Counter(row[schema.REASON] for row in rows.values()) == {None: 4, "unreadable": 2}
    assert rows["Maize/5.png"][schema.REASON] is None
    assert rows["Maize/_4.png"][schema.REASON] == "unreadable"


def test_contents_enter_a_task_in_batches_of_few_bytes(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        write(tmp_path, f"Maize/{number}.png", png(number))
    monkeypatch.setattr(decoding, "_CONTENT_BATCH_BYTES", 2_000)  # four pictures and their names
    root = mount(tmp_path)

    def count(batches: Iterator[Any]) -> Iterator[Any]:

        yield from (pa.RecordBatch.from_pydict({"rows": [batch.num_rows]}) for batch in batches)

    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(name)
    contents = spark.read.format("binaryFile").load(f"{root}/Maize").coalesce(1).select("path", "content")
    with decoding.batches(spark):
        sizes = [row[0] for row in contents.mapInArrow(count, "rows long").collect()]
    assert sum(sizes) == 40
    assert max(sizes) <= 8
    assert spark.conf.get(name) == before


# --- tables of paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("file:///tables", "Maize/1.png", "file:///tables/Maize/1.png"),
        ("file:///tables", "../other/./1.png", "file:///other/1.png"),
        ("file:///tables", "/data/1.png", "file:///data/1.png"),
        ("file:///tables", "file:/data/1.png", "file:///data/1.png"),
        ("file:///tables", "12:30.png", "file:///tables/12:30.png"),
        ("file:///tables", "a%20b #1?.png", "file:///tables/a%20b #1?.png"),
        ("file:///tables", "hdfs://node/data/1.png", "hdfs://node/data/1.png"),
        ("hdfs://node:8020/tables", "Maize/1.png", "hdfs://node:8020/tables/Maize/1.png"),
        ("hdfs://node:8020/tables", "/data/1.png", "hdfs://node:8020/data/1.png"),
        ("hdfs://node:8020/tables", "file:///data/1.png", "file:///data/1.png"),
    ],
)
def test_a_path_in_a_table_is_looked_up_beside_it_or_on_its_file_system(
    base: str, path: str, expected: str
) -> None:
    assert references._full(base, path, " Maize ", references.Allowed()) == listings.Listed(
        expected, -1, -1, "Maize", None
    )


def test_a_malformed_path_in_a_table_is_a_row_with_an_error() -> None:
    found = references._full("file:///tables", "file://elsewhere/1.png", "", references.Allowed())
    assert (found.species, found.path) == (None, "file://elsewhere/1.png")
    assert found.error is not None
    assert "names another machine" in found.error


def test_a_table_may_name_files_of_several_file_systems(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    write(tmp_path, "local/1.png", png(1))
    write(tmp_path, "far/Maize/2.png", png(2))
    write(tmp_path, "far/Maize/_3.png", png(3))
    write(tmp_path, "far/Maize/empty.png", b"")
    write(tmp_path, "far/Maize/not listed.png", png(4))
    far = mount(tmp_path / "far")
    paths = {
        "1.png": None,
        "missing.png": "unreadable",
        f"{far}/Maize/2.png": None,
        f"{far}/Maize/_3.png": None,
        f"{far}/Maize/../Maize/missing.png": "unreadable",
        f"{far}/Maize/empty.png": "empty",
        f"{far}/no folder/1.png": "unreadable",
        "file://elsewhere/1.png": "unreadable",
    }
    table = spark.createDataFrame(
        [(path, "Maize") for path in [*paths, "1.png"]], "path string, species string"
    )
    listing, roots = references.listing_of_paths(spark, table, f"file://{tmp_path}/local")
    rows = decoding.decode_all(spark, listing.persist(), roots, TASK).collect()
    base = f"file://{tmp_path}/local/"
    full = {
        path if "://" in path else base + path: reason for path, reason in paths.items() if ".." not in path
    }
    full[f"{far}/Maize/missing.png"] = "unreadable"
    assert Counter((row[schema.PATH], row[schema.REASON]) for row in rows) == Counter(full.items())
    details = {row[schema.PATH]: row[schema.DETAIL] for row in rows}
    assert details[f"{far}/no folder/1.png"] == "No such file or directory"
    assert details[f"{far}/Maize/missing.png"] == "No such file or directory"


# --- tables as spreadsheets and editors write them -------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("\ufeffpath,species\nä.png,Maïs\n".encode(), [("ä.png", "Maïs")]),
        (b"path;species\r\na,1.png;Maize\r\n", [("a,1.png", "Maize")]),
        (b"\tpath\n0\ta;1.png\n", [("0", "a;1.png")]),  # pandas with its index
        (b'path,species\n\n"a ""1"",2.png",Maize\n', [('a "1",2.png', "Maize")]),
        (b"path\na;1.png\n", [("a;1.png",)]),
    ],
)
def test_a_csv_is_read_as_it_was_written(
    spark: SparkSession, tmp_path: Path, content: bytes, rows: list[tuple[str, ...]]
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    table = tables.read_table(spark, str(tmp_path / "t.csv"), "csv", "a table")
    assert [tuple(row) for row in table.collect()] == rows
    assert "path" in table.columns


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("t.csv", "path,species\nä.png,Maïs\n".encode("latin-1"), r"not UTF-8 \(byte 13: b'\\xe4.png"),
        ("t.csv", "path,species\nä.png,Maïs\n".encode("utf-16"), r"not UTF-8 \(byte 0: "),
        ("t.csv", "path,species\na.png,x\n".encode("utf-16-le"), r"not UTF-8 \(byte 1: "),
        ("t.csv", b"path,species\na.png,Ma\xc3", r"not UTF-8 \(byte 21: "),
        ("t.txt", b"a.png\n" * 300_000 + b"\xe4.png\n", r"not UTF-8 \(byte 1800000: "),
        (
            "t.csv",
            b"path,species\nb.png,x\na,1.png,Maize\n",
            r"1 rows of more or fewer cells.*'a,1.png,Maize'",
        ),
        ("t.csv", b"path,species\na.png\n", r"1 rows of more or fewer cells.*'a.png'"),
        ("t.csv", b'path,species\n"a\nb.png",Maize\n', "1 rows of more or fewer cells"),
        ("t.csv", b'path,species\n"a.png,Maize\nb.png,x\n', "1 rows of more or fewer cells"),
    ],
)
def test_a_text_that_would_be_read_as_something_else_is_refused(
    spark: SparkSession, tmp_path: Path, name: str, content: bytes, found: str
) -> None:
    (tmp_path / name).write_bytes(content)
    kind = "csv" if name.endswith("csv") else "text"
    with pytest.raises(InputError, match=found):
        tables.read_table(spark, str(tmp_path / name), kind, "a table").collect()


def test_csv_files_of_one_folder_have_one_head(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("path,species\na.png,Maize\n")
    (tmp_path / "2.csv").write_text("species,path\nMaize,b.png\n")
    with pytest.raises(InputError, match="CSV header does not conform"):
        tables.read_table(spark, str(tmp_path), "csv", "a table")


def test_what_a_table_names_in_vain_is_a_reject_with_the_cause(
    spark: SparkSession,
    tmp_path: Path,
    mount: Callable[[Path], str],
    free_port: int,
) -> None:
    configuration = spark.sparkContext._jsc.hadoopConfiguration()
    configuration.setInt("ipc.client.connect.max.retries", 0)
    write(tmp_path, "local/1.png", png(1))
    write(tmp_path, "far/Maize/2.png", png(2))
    far = mount(tmp_path / "far")
    causes = {
        "1.png": None,
        f"{far}/Maize/2.png": None,
        f"{far}/Maize": "a folder",
        f"{far}/Maize/": "",
        "nosuch://host/1.png": "nosuch",
        "gopher:/1.png": "gopher",
        f"hdfs://127.0.0.1:{free_port}/1.png": "refused",
        "hdfs://no-such-host.invalid/1.png": "no-such-host",
        "hdfs://[::1/1.png": "",
        "hdfs://a b/1.png": "",
        "s3a://": "",
        f"{far}/a:b/1.png": "",
        "http://127.0.0.1:1/1.png": "--allowed-roots",
        "WebHDFS://127.0.0.1:1/1.png": "--allowed-roots",
        "file:///": "a folder",
        "/proc/self/mem/1.png": "",
        "a\0b": "null",
        "x" * 300: "too long",
        f"file://{tmp_path}": "a folder",
    }
    table = spark.createDataFrame([(path, None) for path in causes], "path string, species string")
    listing, roots = references.listing_of_given_paths(spark, table, f"file://{tmp_path}/local")
    given = {row[schema.PATH]: row["given"] for row in listing.persist().collect()}
    rows = decoding.decode_all(spark, listing.select(*schema.LISTING.names), roots, TASK).collect()
    configuration.unset("ipc.client.connect.max.retries")
    found = {given[row[schema.PATH]]: (row[schema.REASON], row[schema.DETAIL]) for row in rows}
    assert len(rows) == len(found) == len(causes)
    for path, cause in causes.items():
        reason, detail = found[path]
        assert reason == (None if cause is None else "unreadable"), (path, detail)
        assert cause is None or cause.lower() in detail.lower(), (path, detail)


def test_a_file_system_that_falls_silent_after_some_answers_makes_rejects(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One does where it is to list a folder, another one when Spark has begun to read; one never answers."""
    silence_seconds = 8.0
    monkeypatch.setattr(systems, "ANSWER_SECONDS", silence_seconds)
    write(tmp_path, "1.png", png(1))
    ended, num_listings = threading.Event(), Counter[int]()

    class WebHdfs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urllib.parse.urlsplit(self.path)
            (operation,) = urllib.parse.parse_qs(address.query)["op"]
            kind = "FILE" if address.path.endswith(".png") else "DIRECTORY"
            status = {"type": kind, "length": 300, "permission": "755", "owner": "o", "group": "g"}
            status |= dict.fromkeys(("accessTime", "modificationTime", "blockSize", "replication"), 0)
            answer: dict[str, Any] = {"FileStatus": {**status, "pathSuffix": ""}}
            if operation.startswith("LIST"):
                port = int(self.server.server_address[1])
                num_listings[port] += 1
                if num_listings[port] > most[port]:
                    ended.wait()
                entries = {
                    "FileStatuses": {"FileStatus": [{**status, "type": "FILE", "pathSuffix": "2.png"}]}
                }
                answer = {"DirectoryListing": {"partialListing": entries, "remainingEntries": 0}}
            if operation == "GETHOMEDIRECTORY":
                answer = {"Path": "/"}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), WebHdfs) for _ in range(2)]
    most = {int(server.server_address[1]): number for number, server in enumerate(servers)}
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    places = [f"webhdfs://127.0.0.1:{port}" for port in most]
    assert files.exists(f"{places[0]}/")  # now: the first client of its kind takes the JVM seconds
    silent = socket.create_server(("127.0.0.1", 0))
    places.append(f"hdfs://127.0.0.1:{silent.getsockname()[1]}")
    local = f"file://{tmp_path}"
    try:
        paths = [f"{local}/1.png", *(f"{place}/Maize/2.png" for place in places)]
        table = spark.createDataFrame([(path, None) for path in paths], "path string, species string")
        listing, roots = references.listing_of_paths(spark, table, local, [local, *places])
        rows = decoding.decode_all(spark, listing, roots, TASK).collect()
    finally:
        ended.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        silent.close()
    found = {row[schema.PATH]: (row[schema.REASON], row[schema.DETAIL]) for row in rows}
    assert len(rows) == 4 and found[paths[0]] == (None, None)
    for path, place in ((paths[1], places[0]), (paths[3], places[2])):
        assert found[path] == ("unreadable", f"{place} does not answer within {silence_seconds:.0f} s")
    assert found[paths[2]][0] == "unreadable" and num_listings[list(most)[1]] > 1


def test_a_table_names_only_files_below_the_allowed_roots(
    spark: SparkSession, tmp_path: Path, mount: Callable[[Path], str]
) -> None:
    for name in (
        "open/1.png",
        "open/sub/2.png",
        "open but not this/3.png",
        "secret/4.png",
        "far/a/5.png",
        "far/b/6.png",
    ):
        write(tmp_path, name, png(1))
    (tmp_path / "open" / "link.png").symlink_to(tmp_path / "secret" / "4.png")
    (tmp_path / "open" / "links").symlink_to(tmp_path / "secret")
    (tmp_path / "alias").symlink_to(tmp_path / "open")
    far = mount(tmp_path / "far")
    paths = {
        "1.png": None,
        "./sub//2.png": None,
        "../alias/1.png": None,
        f"{far}/a/5.png": None,
        "../open but not this/3.png": "unreadable",
        "../secret/4.png": "unreadable",
        "sub/../../secret/./5.png": "unreadable",
        "link.png": "unreadable",
        "links/4.png": "unreadable",
        f"{far}/b/6.png": "unreadable",
        f"{far}/a/../b/6.png": "unreadable",
        "hdfs://elsewhere/1.png": "unreadable",
        "http://elsewhere/1.png": "unreadable",
    }
    table = spark.createDataFrame([(path, None) for path in paths], "path string, species string")
    listing, roots = references.listing_of_given_paths(
        spark, table, f"file://{tmp_path}/open", [str(tmp_path / "alias"), f"{far}/a/"]
    )
    given = {row[schema.PATH]: row["given"] for row in listing.persist().collect()}
    rows = decoding.decode_all(spark, listing.select(*schema.LISTING.names), roots, TASK).collect()
    assert {given[row[schema.PATH]]: row[schema.REASON] for row in rows} == paths
    assert {row[schema.DETAIL] for row in rows if row[schema.REASON]} == {"not below one of --allowed-roots"}


def test_a_table_with_a_class_in_its_metadata_runs_nothing(spark: SparkSession, tmp_path: Path) -> None:
    mark = tmp_path / "was here"
    for file in hostile.write_tables_with_a_class(tmp_path, mark):
        with pytest.raises(InputError, match="a column of the Python class"):
            tables.read_table(spark, f"file://{file}", "parquet", "a table")
    assert not mark.exists()
