"""Pictures that are nearly the same: found as by comparing each with each, told of, kept on one side."""

import io
import itertools
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from seedlings_spark import corpus, images, schema
from seedlings_spark.corpus import Corpus, SplitRule, decoding, near_duplicates
from seedlings_spark.errors import CorpusError, OptionError
from tests.pictures import write

TASK = decoding.DecodeTask((32, 32), "crop", images.FORMATS, images.MAX_PIXELS, 100_000)
SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}


def picture(number: int) -> Image.Image:
    """One with forms that are larger than a pixel, as a photograph has them."""
    coarse = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def file_of(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def copies(number: int) -> dict[str, bytes]:
    """Name -> the same picture under other bytes."""
    one = picture(number)
    return {
        f"{number}.png": file_of(one),
        f"{number} sent.jpg": file_of(one, "JPEG", quality=60),
        f"{number} small.png": file_of(one.resize((48, 48), Image.Resampling.LANCZOS)),
    }


def prepare(
    spark: SparkSession, source: Path, target: Path, near: str, parent: Corpus | None = None, **rule: str
) -> Corpus:
    split = SplitRule(SHARES, near_duplicates=near, **rule)  # type: ignore[arg-type]
    if parent is not None:
        split = SplitRule.of_parent(parent.manifest, near_duplicates=near)
    return corpus.prepare(spark, str(source), str(target), TASK, split, corpus.Selection(parent=parent))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for number in range(16):
        name = ("Maize", "Rye")[number % 2]
        for file, content in (
            copies(number).items() if number < 8 else {f"{number}.png": file_of(picture(number))}.items()
        ):
            write(root, f"{name}/{file}", content)
    # One of another's, under the wrong species.
    write(root, "Rye/not a rye.jpg", file_of(picture(0), "JPEG", quality=80))
    # Of one colour each: nothing tells them apart but that.
    for shade in range(6):
        write(root, f"Maize/shade {shade}.png", file_of(Image.new("RGB", (40, 40), (40 * shade,) * 3)))
    return root


def test_the_pairs_are_those_that_comparing_each_with_each_finds(
    spark: SparkSession, photographs: Path, tmp_path: Path
) -> None:
    prepared = prepare(spark, photographs, tmp_path / "corpus", "report")
    hash_of, row_of = {}, {}
    for row in prepared.images(spark).collect():
        pixels = np.frombuffer(row.image, np.uint8).reshape(32, 32, 3)
        hash_of[row.content_hash] = imagehash.phash(Image.fromarray(pixels), hash_size=16)
        row_of[row.path] = row
    # Of those of one hash each is paired with the first of them, which alone is compared with others.
    first_of: dict[str, str] = {}
    expected = {}
    for content in sorted(hash_of):
        first = first_of.setdefault(str(hash_of[content]), content)
        if first != content:
            expected[first, content] = 0
    for pair in itertools.combinations(sorted(first_of.values()), 2):
        if hash_of[pair[0]] - hash_of[pair[1]] <= 24:
            expected[pair] = hash_of[pair[0]] - hash_of[pair[1]]
    assert sorted(expected.values())[0] == 0 and sorted(expected.values())[-1] > 0
    table = prepared.near_duplicates(spark)
    assert table.schema.fieldNames() == schema.NEAR_DUPLICATES.names
    found = {}
    for row in table.collect():
        pair = [row_of[path] for path in (row.first_path, row.second_path)]
        assert [each.split for each in pair] == [row.first_split, row.second_split]
        assert [each.species for each in pair] == [row.first_species, row.second_species]
        found[pair[0].content_hash, pair[1].content_hash] = row.distance
    assert found == expected
    # All copies of a picture have been found, and nothing else.
    names = {
        row.content_hash: path.rpartition("/")[2].split(".")[0].split()[0] for path, row in row_of.items()
    }
    apart = {pair for pair in found if names[pair[0]] != names[pair[1]]}
    assert {names[each] for pair in apart for each in pair} <= {"0", "not"}
    assert {name for pair in found for name in pair if names[name] == "shade"} == {
        content for content, name in names.items() if name == "shade"
    }
    said = prepared.manifest["near_duplicates"]
    assert said["pairs"] == len(found) and said["of_two_species"] == len(apart)
    assert (
        said["in_two_splits"] > 0
        and said["examples"][0]["first_split"] != said["examples"][0]["second_split"]
    )
    printed = dict(corpus.summary(prepared))["near duplicates"]
    assert printed.startswith(f"{said['pairs']} pairs, {said['in_two_splits']} of them in two splits, ")
    (tmp_path / "corpus" / "near_duplicates").joinpath("part-0.parquet").write_bytes(b"more")
    with pytest.raises(CorpusError, match=r"near_duplicates/part-0\.parquet has been added"):
        corpus.load(str(tmp_path / "corpus")).near_duplicates(spark)


def test_the_search_finds_all_that_differ_in_so_many_bits_and_no_more(spark: SparkSession) -> None:
    rng = np.random.default_rng(0)
    rows, expected = [], set()
    for number, flips in enumerate([0, 1, 12, 23, 24, 24, 24, 25, 26, 60]):
        bits = rng.random(256) < 0.5
        other = bits.copy()
        other[rng.choice(256, flips, replace=False)] ^= True
        rows += [(f"{number:02} a", *near_duplicates.words_and_parts(bits))]
        rows += [(f"{number:02} b", *near_duplicates.words_and_parts(other))]
        if flips <= near_duplicates.MOST_BITS:
            expected.add((f"{number:02} a", f"{number:02} b", flips))
    hashes = spark.createDataFrame(rows, "content_hash string, words array<bigint>, parts array<int>")
    assert {tuple(row) for row in near_duplicates.near(hashes).collect()} == expected


def test_those_of_one_picture_are_in_one_split_also_beside_a_parent(
    spark: SparkSession, photographs: Path, tmp_path: Path
) -> None:
    first = prepare(spark, photographs, tmp_path / "first", "group")
    said = first.manifest["near_duplicates"]
    assert said["pairs"] > 0 and said["in_two_splits"] == 0
    splits = _splits(spark, first)
    for number in range(8):
        assert len({splits[name] for name in copies(number)}) == 1
    # What stands alone is where its bytes put it, as without.
    plain = _splits(spark, prepare(spark, photographs, tmp_path / "plain", "ignore"))
    assert {
        name: splits[name] for name in plain if name[:-4] in map(str, range(8, 16))
    }.items() <= plain.items()
    assert len(set(splits.values())) == 3

    new = tmp_path / "new"
    for number in (1, 2, 3, 9, 10, 11, 12, 13):
        write(new, f"Rye/{number} again.jpg", file_of(picture(number), "JPEG", quality=75))
    write(new, "Rye/30.png", file_of(picture(30)))
    grown = prepare(spark, new, tmp_path / "grown", "group", first)
    after = _splits(spark, grown)
    assert {name: split for name, split in after.items() if name in splits} == splits
    assert {
        after[f"{number} again.jpg"] == splits[f"{number}.png"] for number in (1, 2, 3, 9, 10, 11, 12, 13)
    } == {True}
    assert grown.manifest["near_duplicates"]["in_two_splits"] == 0
    assert {splits[f"{number}.png"] for number in (9, 10, 11, 12, 13)} != {"train"}


def _splits(spark: SparkSession, prepared: Corpus) -> dict[str, str]:
    rows = prepared.images(spark).select(schema.PATH, schema.SPLIT).collect()
    return {row.path.rpartition("/")[2]: row.split for row in rows}


def test_in_given_splits_they_are_leaks(spark: SparkSession, tmp_path: Path) -> None:
    source = tmp_path / "given"
    for number in range(4):
        write(source, f"train/{('Maize', 'Rye')[number % 2]}/{number}.png", file_of(picture(number)))
        write(source, f"test/{('Maize', 'Rye')[number % 2]}/{number + 4}.png", file_of(picture(number + 4)))
    write(source, "test/Rye/sent.jpg", file_of(picture(1), "JPEG", quality=60))
    with pytest.raises(CorpusError, match=r"nearly the same picture, in two splits: .*train.*; 1 such case"):
        prepare(spark, source, tmp_path / "corpus", "group")
    prepared = prepare(spark, source, tmp_path / "corpus", "group", leaks="drop")
    (reject,) = prepared.rejects(spark).collect()
    assert reject.path.endswith("/train/Rye/1.png") and reject.reason == "leak"
    told = prepare(spark, source, tmp_path / "told", "report")
    assert told.manifest["leaks"]["number"] == 0 and told.manifest["near_duplicates"]["in_two_splits"] == 1


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(OptionError, match="--near-duplicates group with --split-policy stratified"):
        SplitRule(SHARES, "stratified", near_duplicates="group")
    manifest = {"split_policy": "hash", "split_shares": SHARES, "groups": {"group_column": "plant"}}
    with pytest.raises(OptionError, match="a corpus with groups"):
        SplitRule.of_parent(manifest, near_duplicates="group")
