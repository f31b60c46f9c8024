"""Tables that hold the pictures themselves: the corpus and the scores are those of the same files in folders."""

from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

import seedlings_spark as ss
from seedlings_spark.corpus import synthetic
from seedlings_spark.errors import CorpusError, InputError
from seedlings_spark.scoring import sources


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos of tables")
    synthetic.write_corpus(folder / "all", images_per_species=4, size=24)
    photos = folder / "photos"
    photos.mkdir()
    for species in synthetic.SPECIES[:3]:
        (folder / "all" / species).rename(photos / species)
    return photos


def prepared(spark: SparkSession, images: Path, corpus: Path, **options: object) -> tuple[dict, list]:
    made = ss.prepare(
        spark, ss.PrepareOptions(images=str(images), corpus=str(corpus), image_size=16, **options)
    )
    images_of = spark.read.parquet(f"{corpus}/images").select("species", F.md5("image"), "split")
    return made.manifest, sorted(map(tuple, images_of.collect()))


def with_species(rows: DataFrame, path: str) -> DataFrame:
    return rows.withColumn("species", F.element_at(F.split(F.url_decode(path), "/"), -2))


def test_bytes_in_a_table_are_files_in_folders(spark: SparkSession, photos: Path, tmp_path: Path) -> None:
    expected, expected_images = prepared(spark, photos, tmp_path / "of folders")
    read = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(photos))
    named = with_species(read, "path").select("path", "species", F.col("content").alias("the bytes"))
    bad = spark.createDataFrame(
        [
            ("no bytes", "Maize", None),
            ("empty", "Maize", bytearray()),
            ("text", "Maize", bytearray(b"no picture")),
        ],
        named.schema,
    )
    named.union(bad).write.orc(str(tmp_path / "photos"))
    table = {"content_column": "the bytes", "table_format": "orc"}
    found, images = prepared(spark, tmp_path / "photos", tmp_path / "of a table", **table)
    assert images == expected_images and len(images) == 12
    for number in ("accepted", "images_of_split", "images_of_species", "duplicates"):
        assert found[number] == expected[number], number
    assert (found["found"], found["listed"], found["rejected"]) == (15, 15, 3)
    rejects = spark.read.parquet(f"{tmp_path}/of a table/rejects").select("path", "reason").collect()
    assert sorted(map(tuple, rejects)) == [
        ("empty", "empty"),
        ("no bytes", "unreadable"),
        ("text", "not_an_image"),
    ]
    _, some = prepared(spark, tmp_path / "photos", tmp_path / "sample", sample=0.5, **table)
    _, some_of_folders = prepared(spark, photos, tmp_path / "sample of folders", sample=0.5)
    assert some == some_of_folders and len(some) == 6


def test_images_as_spark_reads_them_have_the_same_pixels(
    spark: SparkSession, photos: Path, tmp_path: Path
) -> None:
    _, expected = prepared(spark, photos, tmp_path / "of folders")
    read = spark.read.format("image").option("recursiveFileLookup", "true").load(str(photos))
    with_species(read, "image.origin").write.parquet(str(tmp_path / "photos.parquet"))
    table = tmp_path / "photos.parquet"
    found, images = prepared(spark, table, tmp_path / "of a table", content_column="image")
    assert [each[:2] for each in images] == [
        each[:2] for each in expected
    ]  # the files are others, and so the splits
    assert found["rejected"] == 0

    scored = spark.read.parquet(str(table)).select(F.col("image.origin").alias("path"), "image")
    scored.write.parquet(str(tmp_path / "unknown.parquet"))
    source = sources.find(spark, str(tmp_path / "unknown.parquet"), content_column="image")
    assert source.contents is not None
    assert source.contents.where(F.substring("content", 2, 3) == F.lit("PNG").cast("binary")).count() == 12


def test_a_column_that_holds_no_bytes_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    table = str(tmp_path / "t.parquet")
    spark.createDataFrame([("a", "Maize", 3)], "path string, species string, size int").write.parquet(table)
    with pytest.raises(CorpusError, match=r"column size of type int .* Correct --content-column"):
        prepared(spark, Path(table), tmp_path / "c", content_column="size")
    with pytest.raises(InputError, match=r"column size of type int"):
        sources.find(spark, table, content_column="size")
    assert not (tmp_path / "c").exists()


def test_a_path_that_stands_twice_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    table = str(tmp_path / "t.parquet")
    rows = [("a", "Maize", bytearray(b"1")), ("a", "Wheat", bytearray(b"2")), ("b", "Wheat", bytearray(b"3"))]
    spark.createDataFrame(rows, "path string, species string, content binary").write.parquet(table)
    with pytest.raises(CorpusError, match="1 paths more than once, such as a 2 times"):
        prepared(spark, Path(table), tmp_path / "c", content_column="content")
