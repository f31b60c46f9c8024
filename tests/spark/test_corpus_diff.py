"""What tells two corpora apart, compared with what was done to the pictures in between."""

import shutil
from pathlib import Path

from pyspark.sql import SparkSession

from seedlings_spark import corpus, fingerprint, images, schema
from seedlings_spark.corpus import Corpus, SplitRule, comparison, decoding
from tests.pictures import png, write

SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}


def prepare(spark: SparkSession, source: Path, target: Path, shares: dict[str, float] = SHARES) -> Corpus:
    task = decoding.DecodeTask((8, 8), "crop", images.FORMATS, images.MAX_PIXELS, 5_000)
    return corpus.prepare(spark, str(source), str(target), task, SplitRule(shares))


def test_each_change_is_told_once(spark: SparkSession, tmp_path: Path) -> None:
    may, june = tmp_path / "may", tmp_path / "june"
    for number in range(10):
        write(may, f"{('Maize', 'Rye')[number % 2]}/{number}.png", png(number))
    shutil.copytree(may, june)
    before = prepare(spark, may, tmp_path / "corpus-may")
    assert not corpus.diff(spark, before, before).changes
    (june / "Maize" / "0.png").unlink()
    (june / "Rye" / "1.png").rename(june / "Maize" / "1 is maize.png")
    shutil.copy(june / "Rye" / "3.png", june / "Rye" / "3 again.png")
    for number in (10, 11, 12):
        write(june, f"Wheat/{number}.png", png(number))
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    after = prepare(spark, june, tmp_path / "corpus-june", shares)
    found = corpus.diff(spark, before, after)
    moves: dict[tuple[str, str, str], int] = {}
    for row in before.images(spark).collect():
        then, now = (fingerprint.split_of(row.content_hash, each) for each in (SHARES, shares))
        if then != now and not row.path.endswith("/0.png"):
            moves["moved", then, now] = moves.get(("moved", then, now), 0) + 1
    assert moves
    assert found.changes == {
        ("added", "", "Wheat"): 3,
        ("added", "", "Rye"): 1,
        ("removed", "Maize", ""): 1,
        ("relabelled", "Rye", "Maize"): 1,
        **moves,
    }
    assert found.settings == {"split_shares": (SHARES, shares)}
    assert [path.rpartition("/")[2] for path in found.examples["removed"]] == ["0.png"]
    changed = corpus.changed(spark, before, after)
    assert {row.kind for row in changed.where(f"{schema.PATH} like '%maize.png'").collect()} >= {"relabelled"}
    # Backwards, what came has gone.
    back = corpus.diff(spark, after, before)
    assert back.changes == {
        (_OPPOSITE.get(kind, kind), now, then): count for (kind, then, now), count in found.changes.items()
    }
    told = {name: str(text) for name, text in comparison.summary(found) if name}
    assert told["added"] == "4 (3 Wheat, 1 Rye)" and told["relabelled"] == "1 (1 Rye -> Maize)"
    same = dict(comparison.summary(corpus.diff(spark, before, before)))
    assert str(same["difference"]).startswith("none")


_OPPOSITE = {"added": "removed", "removed": "added"}
