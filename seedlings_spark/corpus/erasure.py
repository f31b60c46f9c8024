"""Pictures that a corpus is to forget: tables are written anew without them, and one write of the manifest swaps them.

A picture goes with all copies of its bytes. Until the manifest is written the corpus is the old one, from then on the
new one; what a call that was killed has left beside it goes with the next one.
"""

import datetime
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import files, lock, schema
from seedlings_spark.cluster import session
from seedlings_spark.corpus import near_duplicates, preparation, tables
from seedlings_spark.corpus.manifest import (
    EXAMPLES,
    FORGOTTEN,
    NEAR_DUPLICATES,
    REJECTS,
    Corpus,
    load,
    numbers_on_disk,
)
from seedlings_spark.errors import OutputInUseError

_log = logging.getLogger(__name__)
IMAGES = "images"
_OF_PATH, _OF_BYTES, _IS_ONE = "seedlings_of_path", "seedlings_of_bytes", "seedlings_is_one"


@dataclass(frozen=True)
class Pictures:
    """What is to be forgotten.

    Args:
        paths: As tables hold them.
        hashes: Content hashes: other paths with these bytes are the same pictures.
        copies: Those other paths in scores, as far as they are known: a ledger knows no bytes.
    """

    paths: frozenset[str]
    hashes: frozenset[str] = frozenset()
    copies: frozenset[str] = frozenset()

    def of(self, rows: DataFrame) -> DataFrame:
        """The rows of these pictures, by the columns `path` and, where there is one, `content_hash`."""
        return self._marked(rows).where(_IS_ONE).select(*map(schema.column, rows.columns))

    def others(self, rows: DataFrame) -> DataFrame:
        """All other rows."""
        return self._marked(rows).where(~F.col(_IS_ONE)).select(*map(schema.column, rows.columns))

    def _marked(self, rows: DataFrame) -> DataFrame:
        def with_mark(rows: DataFrame, values: frozenset[str], column: str, mark: str) -> DataFrame:
            return rows.join(F.broadcast(marks(rows.sparkSession, values, column, mark)), column, "left")

        marked, is_one = with_mark(rows, self.paths, schema.PATH, _OF_PATH), F.col(_OF_PATH).isNotNull()
        if schema.CONTENT_HASH in rows.columns:
            marked = with_mark(marked, self.hashes, schema.CONTENT_HASH, _OF_BYTES)
            is_one |= F.col(_OF_BYTES).isNotNull()
        return marked.withColumn(_IS_ONE, is_one)


def marks(spark: SparkSession, values: frozenset[str], column: str, mark: str) -> DataFrame:
    """A small table of texts, each with a mark."""
    names = sorted(values)
    table = pa.table({column: pa.array(names, pa.string()), mark: pa.array([True] * len(names), pa.bool_())})
    return spark.createDataFrame(table)


@dataclass(frozen=True)
class Row:
    """A row of a table that is of one of the pictures.

    Args:
        table: Name of the table.
        path: Of the picture.
        content_hash: Of its bytes, where that is known and they are a picture's.
        part: In which part of the whole it is: a split, or a run.
    """

    table: str
    path: str
    content_hash: str | None
    part: str | None


@dataclass(frozen=True)
class Held:
    """What a place holds of some pictures.

    Args:
        rows: The rows of its tables.
    """

    rows: tuple[Row, ...] = ()

    @property
    def paths(self) -> frozenset[str]:
        """The paths of the pictures there."""
        return frozenset(row.path for row in self.rows)

    @property
    def hashes(self) -> frozenset[str]:
        """Their content hashes."""
        return frozenset(row.content_hash for row in self.rows if row.content_hash)

    def count(self, table: str) -> int:
        """How many rows of a table."""
        return sum(row.table == table for row in self.rows)


def held(spark: SparkSession, corpus: Corpus, pictures: Pictures) -> Held:
    """What a corpus holds of pictures.

    Raises:
        CorpusError: It is not as `prepare` has written it.
    """
    names, nothing = (schema.PATH, schema.CONTENT_HASH), F.lit(None).cast("string")
    of_images = (F.lit(IMAGES).alias("table"), F.lit(True).alias("is_picture"))
    images = corpus.images(spark).select(*names, schema.SPLIT, *of_images)
    # What has no label that can be used is a picture, too: its copies may be somewhere. What is none may be in many
    # places that have nothing to do with each other, such as an empty file.
    rejects = corpus.rejects(spark).select(*names, nothing, F.lit(REJECTS), F.col(schema.STAGE) == "label")
    digest = F.when(F.col("is_picture"), F.col(schema.CONTENT_HASH))
    found = pictures.of(images.union(rejects)).select("table", schema.PATH, digest, schema.SPLIT)
    return Held(tuple(Row(*row) for row in found.collect()))


@dataclass(frozen=True)
class Erased:
    """What a corpus has forgotten.

    Args:
        corpus: As it is now.
        images_of_split: Split -> images that are gone.
        rejected: Rejects that are gone.
    """

    corpus: Corpus
    images_of_split: Mapping[str, int]
    rejected: int

    @property
    def num_images(self) -> int:
        """Images that are gone."""
        return sum(self.images_of_split.values())


def erase(
    spark: SparkSession,
    corpus: Corpus,
    pictures: Pictures,
    found: Held,
    request: str,
    check: Callable[[], None],
) -> Erased:
    """Let a corpus forget pictures.

    Args:
        spark: The session.
        corpus: The corpus, which nobody else may be writing.
        pictures: What is to be forgotten.
        found: What it holds of that.
        request: What names the call in the manifest.
        check: Raises if the corpus is another's by now.

    Raises:
        CorpusError: It is not as `prepare` has written it.
        OutputInUseError: Another run has written it meanwhile.
    """
    splits = Counter(str(row.part) for row in found.rows if row.table == IMAGES)
    erased = Erased(corpus, splits, found.count(REJECTS))
    if found.rows:
        building = files.join(corpus.path, f"tables-{uuid.uuid4().hex[:12]}")
        try:
            # By its lock `clean` knows whether somebody is building here.
            with lock.Lock(building, "forget"):
                written = _write(spark, erased, pictures, found, building)
                before = corpus.manifest.get(FORGOTTEN, ())
                manifest = {**corpus.manifest, **written, FORGOTTEN: [*before, _entry(erased, request)]}
                check()
                if load(corpus.path).manifest != corpus.manifest:
                    raise OutputInUseError(
                        f"{corpus.path}, which another run has written meanwhile",
                        "one run for one --corpus",
                        "Call forget again",
                    )
                preparation.publish_in_place(building, corpus.path, manifest, overwrite=True)
        finally:
            preparation.clear(building, None)
        _log.info(
            "%s has forgotten %d images and %d rejects", corpus.path, erased.num_images, erased.rejected
        )
    for path in preparation.left_behind(corpus.path):
        files.delete(path)
    now = load(corpus.path)
    if now.tables_path != now.path:
        # Of a call that was killed when its tables were in use already.
        files.delete(files.join(now.tables_path, lock.NAME))
    return replace(erased, corpus=now)


def _write(
    spark: SparkSession, erased: Erased, pictures: Pictures, found: Held, building: str
) -> dict[str, Any]:
    """Write the tables of a corpus without pictures; what its manifest says of them."""
    before = erased.corpus
    images = pictures.others(before.described_images(spark))
    rejects = pictures.others(before.rejects(spark))
    num_gone = erased.num_images + erased.rejected
    size, num_images = before.image_size, int(before.manifest["accepted"]) - erased.num_images
    preparation.write_tables(images, rejects, building, size, num_images)
    about = _write_near_duplicates(spark, before, found.paths, building)
    splits, num_listed = list(before.manifest["images_of_split"]), int(before.manifest["listed"]) - num_gone
    if "found" in before.manifest:
        about["found"] = int(before.manifest["found"]) - num_gone
    return {**numbers_on_disk(spark, building, num_listed, splits, size, before.kind), **about}


def _entry(erased: Erased, request: str) -> dict[str, Any]:
    """What a manifest says of a call."""
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "request": request,
        "fingerprint": erased.corpus.fingerprint,
        "images_of_split": dict(erased.images_of_split),
        "rejected": erased.rejected,
    }


def _write_near_duplicates(
    spark: SparkSession, corpus: Corpus, gone: frozenset[str], building: str
) -> dict[str, Any]:
    """Write the pairs without these paths, where a corpus has any; what the manifest says of it."""
    if NEAR_DUPLICATES not in corpus.manifest:
        return {}
    of_gone: Column = F.lit(False)
    pairs = corpus.near_duplicates(spark)
    for side in ("first_path", "second_path"):
        mark = f"seedlings_{side}"
        pairs = pairs.join(F.broadcast(marks(spark, gone, side, mark)), side, "left")
        of_gone |= F.col(mark).isNotNull()
    target = files.join(building, NEAR_DUPLICATES)
    table = pairs.where(~of_gone).select(*schema.NEAR_DUPLICATES.names)
    table = table.orderBy("distance", "first_path", "second_path").coalesce(1)
    table.write.options(**session.PARQUET_CHECKSUMS, **tables.write_options(building)).parquet(target)
    written = tables.parquet(spark, target, schema.NEAR_DUPLICATES)
    policy = str(corpus.manifest[NEAR_DUPLICATES]["policy"])
    return {NEAR_DUPLICATES: near_duplicates.about(written, policy, EXAMPLES)}
