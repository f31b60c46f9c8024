"""Archives of pictures: the corpus and the scores are those of the same files in folders."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

import seedlings_spark as ss
from seedlings_spark import errors, files
from seedlings_spark.corpus import synthetic
from seedlings_spark.errors import CorpusError, InputError, OptionError
from seedlings_spark.scoring import sources
from tests.conftest import with_all
from tests.pictures import png

SPECIES = synthetic.SPECIES[:3]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos of archives")
    synthetic.write_corpus(folder / "all", images_per_species=4, size=24)
    (folder / "photos").mkdir()
    for species in SPECIES:
        (folder / "all" / species).rename(folder / "photos" / species)
    return folder / "photos"


def prepared(spark: SparkSession, images: object, corpus: Path, **options: object) -> tuple[dict, list]:
    made = ss.prepare(
        spark, ss.PrepareOptions(images=str(images), corpus=str(corpus), image_size=16, **options)
    )
    rows = spark.read.parquet(f"{corpus}/images").select("species", F.md5("image"), "split", "content_hash")
    return made.manifest, sorted(map(tuple, rows.collect()))


@pytest.fixture(scope="module")
def expected(spark: SparkSession, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list:
    """The images of a corpus of the folders."""
    return prepared(spark, photos, tmp_path_factory.mktemp("corpora") / "of folders")[1]


def rejects(spark: SparkSession, corpus: Path) -> dict[str, str]:
    rows = spark.read.parquet(f"{corpus}/rejects").select("path", "reason").collect()
    return {row[0].rpartition("/")[2]: row[1] for row in rows}


def test_a_zip_is_the_folder_that_it_was_made_of(
    spark: SparkSession, photos: Path, expected: list, tmp_path: Path
) -> None:
    archive = tmp_path / "my photos #1.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(photos.rglob("*.png")):
            made.write(file, f"photos/{file.relative_to(photos)}")
        made.writestr(f"photos/{SPECIES[0]}/broken.png", b"")
        made.writestr(f"photos/{SPECIES[0]}/.DS_Store", b"x")
        made.writestr(f"__MACOSX/photos/{SPECIES[0]}/._0000.png", b"x")
    found, images = prepared(spark, archive, tmp_path / "of a zip")
    assert images == expected and len(images) == 12
    assert (found["found"], found["listed"], found["rejected"]) == (15, 15, 3)
    hidden = {".DS_Store": "hidden", "._0000.png": "hidden"}
    assert rejects(spark, tmp_path / "of a zip") == {"broken.png": "empty", **hidden}
    with pytest.raises(OptionError, match="--group-column plant with a folder"):
        prepared(spark, archive, tmp_path / "no", group_column="plant")

    # A damaged member, found by its checksum, is one reject; of a cut archive nothing is taken for whole.
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as made:
        info = made.getinfo(f"photos/{SPECIES[1]}/0002.png")
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(content)
    found, images = prepared(spark, tmp_path / "damaged.zip", tmp_path / "of a damaged zip")
    assert len(images) == 11 and rejects(spark, tmp_path / "of a damaged zip")["0002.png"] == "unreadable"
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(CorpusError, match=r"cut\.zip with no picture in a folder"):
        prepared(spark, tmp_path / "cut.zip", tmp_path / "of a cut zip")

    source = sources.find(spark, files.qualify(str(archive)))
    assert source.listing.count() == 15 and source.contents is not None
    lengths = source.contents.where("length != octet_length(content)").count()
    assert lengths == 0 and source.contents.where("content IS NULL").count() == 0


@with_all
def test_shards_of_a_file_system_that_is_not_local_are_read_by_spark(
    spark: SparkSession, photos: Path, expected: list, mounted: tuple[str, Path], tmp_path: Path
) -> None:
    """WebDataset's layout: beside each picture a file with its class."""
    uri, behind = mounted
    pictures = sorted(photos.rglob("*.png"))
    for number in range(3):
        with tarfile.open(behind / f"shard-{number:03d}.tar", "w") as made:
            for index, file in enumerate(pictures[number::3]):
                for ending, content in (("png", file.read_bytes()), ("cls", file.parent.name.encode())):
                    info = tarfile.TarInfo(f"{index:05d}.{ending}")
                    info.size = len(content)
                    made.addfile(info, io.BytesIO(content))
    found, images = prepared(spark, f"{uri}/shard-*.tar", tmp_path / "of shards")
    assert images == expected and (found["found"], found["rejected"]) == (12, 0)

    # A shard whose upload was cut: what is in it, and a reject that says so.
    cut = behind / "shard-001.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    found, images = prepared(spark, f"{uri}/shard-*.tar", tmp_path / "of cut shards")
    assert 8 < len(images) < 12 and set(images) < set(expected)
    assert rejects(spark, tmp_path / "of cut shards")["shard-001.tar"] == "unreadable"
    assert found["found"] == found["listed"] == found["accepted"] + found["rejected"]


@with_all
def test_a_compressed_tar_is_read_too(
    spark: SparkSession, photos: Path, expected: list, tmp_path: Path
) -> None:
    """With folders of splits in it."""
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as made:
        for number, file in enumerate(sorted(photos.rglob("*.png"))):
            split = ("train", "train", "val", "test")[number % 4]
            made.add(file, f"./{split}/{file.parent.name}/{file.name}")
    found, images = prepared(spark, tmp_path / "photos.tar.gz", tmp_path / "of a tar")
    assert [each[:2] for each in images] == [each[:2] for each in expected]
    assert found["images_of_split"] == {"train": 6, "validation": 3, "test": 3}


def zipped(archive: Path, photos: Path, place: Callable[[int, Path], str], **more: bytes) -> Path:
    """An archive of all pictures, each at the place that it is given."""
    with zipfile.ZipFile(archive, "w") as made:
        for number, file in enumerate(sorted(photos.rglob("*.png"))):
            made.writestr(place(number, file), file.read_bytes())
        for name, content in more.items():
            made.writestr(name.replace("__", "."), content)
    return archive


def split_of(number: int) -> str:
    return ("train", "train", "val", "test")[number % 4]


def test_splits_in_an_archive_are_found_below_a_folder_and_beside_a_file_and_never_become_species(
    spark: SparkSession, photos: Path, expected: list, tmp_path: Path
) -> None:
    def in_splits(top: str, number: int, file: Path) -> str:
        return f"{top}{split_of(number)}/{file.parent.name}/{file.name}"

    for top in ("", "data/"):
        places = partial(in_splits, top)
        archive = zipped(tmp_path / "one.zip", photos, places, README__txt=b"read me")
        found, images = prepared(spark, archive, tmp_path / f"corpus of {top.strip('/')}")
        assert [each[:2] for each in images] == [each[:2] for each in expected]
        assert found["images_of_split"] == {"train": 6, "validation": 3, "test": 3}
        assert (found["split_policy"], found["rejected"]) == ("given", 1)

    (tmp_path / "more").mkdir()
    for name in ("train", "test"):
        shutil.copy(
            zipped(tmp_path / "each.zip", photos, lambda _, file: f"{file.parent.name}/{file.name}"),
            tmp_path / "more" / f"{name}.zip",
        )
    with pytest.raises(CorpusError, match="the archives test, train, which are splits and no species"):
        prepared(spark, tmp_path / "more" / "t*.zip", tmp_path / "refused")
    places = partial(in_splits, "")
    zipped(tmp_path / "mixed.zip", photos, places, **{"extra/Maize/1__png": png(1)})
    for policy in ("auto", "hash"):
        with pytest.raises(CorpusError, match="the folders test, train, val, which are splits"):
            prepared(spark, tmp_path / "mixed.zip", tmp_path / "refused", split_policy=policy)
    # As WebDataset has it, with the species in files beside the pictures.
    (tmp_path / "shards").mkdir()
    for name in ("train-0000", "val-0000"):
        with zipfile.ZipFile(tmp_path / "shards" / f"{name}.zip", "w") as made:
            for number, file in enumerate(sorted(photos.rglob("*.png"))):
                made.writestr(f"{number:04}.png", file.read_bytes() + name.encode())
                made.writestr(f"{number:04}.cls", file.parent.name)
    shards = tmp_path / "shards" / "*.zip"
    with pytest.raises(CorpusError, match="the archives train-0000, val-0000, which are splits"):
        prepared(spark, shards, tmp_path / "refused")
    assert len(prepared(spark, shards, tmp_path / "anew", split_policy="hash")[1]) == 24
    (tmp_path / "more" / "test.zip").rename(tmp_path / "more" / "shard-1.zip")
    only = zipped(tmp_path / "plots.zip", photos, lambda number, file: f"Rye/plot{number % 2}/{number}.png")
    only.rename(tmp_path / "more" / "shard-2.zip")
    with pytest.raises(CorpusError, match="lie in 0 folders in shard-1 and in 1 folders in shard-2"):
        prepared(spark, tmp_path / "more" / "shard-*.zip", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_names_in_archives_are_those_of_the_files_also_where_the_archive_does_not_say_how_they_are_written(
    spark: SparkSession, photos: Path, tmp_path: Path
) -> None:
    archive = zipped(tmp_path / "photos.zip", photos, lambda _, file: f"{file.parent.name}/{file.name}")
    with zipfile.ZipFile(archive, "a") as made:
        for number, file in enumerate(sorted(photos.rglob("*.png"))[:3]):
            made.writestr(
                f"M\N{LATIN SMALL LETTER O WITH DIAERESIS}hre/{number}.png", file.read_bytes() + b"x"
            )
    content = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flags of both headers
        at = content.find(mark)
        while at >= 0:
            content[at + place + 1] &= ~0x08
            at = content.find(mark, at + 4)
    archive.write_bytes(content)
    found, _ = prepared(spark, archive, tmp_path / "corpus", conflicts="drop")
    assert "M\N{LATIN SMALL LETTER O WITH DIAERESIS}hre" in found["images_of_species"]

    with tarfile.open(tmp_path / "photos.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as made:
        for number, file in enumerate(sorted(photos.rglob("*.png"))):
            made.add(file, f"{file.parent.name}/{file.name}")
            if number == 3:
                made.add(file, f"{file.parent.name}/M\N{LATIN SMALL LETTER O WITH DIAERESIS}hre.png")
        made.add(file, f"{file.parent.name}/{file.name}")
    with pytest.raises(CorpusError, match="which has 1 paths more than once"):
        prepared(spark, tmp_path / "photos.tar", tmp_path / "twice")
    with pytest.raises(PySparkException) as caught:
        sources.find(spark, files.qualify(str(tmp_path / "photos.tar"))).listing.collect()
    error = errors.for_user(caught.value)
    assert isinstance(
        error, InputError
    ) and f"photos.tar, which has {file.parent.name}/{file.name} 2 times" in str(error)
    with tarfile.open(tmp_path / "once.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as made:
        for number, file in enumerate(sorted(photos.rglob("*.png"))):
            name = "M\N{LATIN SMALL LETTER O WITH DIAERESIS}hre.png" if number == 3 else file.name
            made.add(file, f"{file.parent.name}/{name}")
    found, images = prepared(spark, tmp_path / "once.tar", tmp_path / "of a tar")
    assert len(images) == 11 and found["rejected"] == 1
    (detail,) = spark.read.parquet(str(tmp_path / "of a tar" / "rejects")).collect()
    assert "a name that is not UTF-8" in detail.detail
