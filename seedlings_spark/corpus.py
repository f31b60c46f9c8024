"""From image files to a corpus: a table of pixels, a table of rejects, a manifest that adds up.

Files are decoded once, into a table beside the corpus; what needs to see all of them (conflicting labels, exact
shares, a sample) then works on hashes and names alone. The manifest is written last: a corpus without one is
half-written, and no job reads it.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import files, fingerprint, reading, schema, session
from seedlings_spark.errors import CorpusError, InputError, OptionError

FORMAT = 1
SPLIT_POLICIES = ("hash", "stratified")
CONFLICT_POLICIES = ("error", "drop")
# Bytes of pixels in one Parquet file of a corpus.
_FILE_BYTES = 128 * 1024 * 1024
_EXAMPLES = 3


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus on disk.

    Args:
        path: The folder.
        manifest: What `manifest.json` says.
    """

    path: str
    manifest: Mapping[str, Any]

    @property
    def images_path(self) -> str:
        """Parquet of `schema.CORPUS`, partitioned by split."""
        return files.join(self.path, "images")

    @property
    def rejects_path(self) -> str:
        """Parquet of `schema.REJECTS`."""
        return files.join(self.path, "rejects")

    @property
    def fingerprint(self) -> str:
        """Of content and labels."""
        return str(self.manifest["fingerprint"])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.manifest["image_size"]
        return int(height), int(width)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the species, sorted."""
        return tuple(sorted(self.manifest["images_of_species"]))

    def num_images(self, split: str) -> int:
        """Accepted images of a split."""
        return int(self.manifest["images_of_split"].get(split, 0))

    def images(self, spark: SparkSession, *splits: str) -> DataFrame:
        """The images of these splits (all without one), as `schema.CORPUS`."""
        table = spark.read.schema(schema.CORPUS).parquet(self.images_path)
        if splits:
            table = table.where(F.col(schema.SPLIT).isin(*splits))
        return table.select(*schema.CORPUS.names)

    def rejects(self, spark: SparkSession) -> DataFrame:
        """The rejected files, as `schema.REJECTS`."""
        return spark.read.schema(schema.REJECTS).parquet(self.rejects_path).select(*schema.REJECTS.names)


def load(path: str) -> Corpus:
    """Open a corpus that `prepare` has written.

    Raises:
        CorpusError: There is none, it is half-written, or of a format that this version does not know.
    """
    manifest_path = files.join(path, "manifest.json")
    try:
        manifest = json.loads(files.read_text(manifest_path))
    except FileNotFoundError:
        missing = not files.exists(path)
        raise CorpusError(
            f"no folder {path}" if missing else f"{path}, which has no manifest.json",
            "a corpus that `prepare` has finished (the manifest is written last)",
            "Run prepare" if missing else "It is half-written or something else: run prepare again with this --corpus",
        ) from None
    except ValueError as error:
        raise CorpusError(
            f"{manifest_path}, which is not JSON ({error})", "the manifest that `prepare` wrote", "Run prepare again"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise CorpusError(
            f"{manifest_path} of format {found!r}",
            f"format {FORMAT}",
            "Use the version of seedlings_spark that wrote it, or run prepare again",
        )
    return Corpus(path, manifest)


def prepare(
    spark: SparkSession,
    images: str,
    corpus: str,
    task: reading.DecodeTask,
    *,
    split_policy: str = "hash",
    shares: Mapping[str, float],
    conflicts: str = "error",
    sample: float = 1.0,
    overwrite: bool = False,
) -> Corpus:
    """Read image files into a corpus.

    Args:
        spark: The session.
        images: Full URI of a folder with one folder a species, or of a CSV or Parquet table with the columns
            `path` and `species`.
        corpus: Full URI of the folder to write.
        task: How to decode.
        split_policy: "hash": an image's split depends on its bytes alone. "stratified": exact shares in every
            species, for which images that are added later may move others.
        shares: Split -> share, adding up to 1.
        conflicts: What to do with the same bytes under two species: "error", or "drop" (reject all copies).
        sample: Share of each species to prepare, chosen by content hash.
        overwrite: Whether a corpus that is already there may be replaced.

    Returns:
        The corpus.

    Raises:
        CorpusError: Nothing to prepare, one species only, conflicting labels, or a corpus is already there.
    """
    _check_choice("split_policy", split_policy, SPLIT_POLICIES)
    _check_choice("conflicts", conflicts, CONFLICT_POLICIES)
    _check_target(corpus, overwrite)
    building = files.join(corpus, f".building-{uuid.uuid4().hex[:12]}")
    try:
        listing = _listing(spark, images)
        decoded, num_listed = _decode(spark, listing, images, task, sample, building)
        rows = _with_reasons(decoded, conflicts)
        _check_species(rows, images)
        _write(rows, building, split_policy, shares, task)
        manifest = _manifest(spark, building, num_listed, task, split_policy, shares, sample, listing.count())
        _publish(building, corpus, manifest)
    finally:
        files.delete(building)
    return load(corpus)


def corpus_fingerprint(images: DataFrame) -> str:
    """`fingerprint.corpus_fingerprint` of a table with content hashes and species, summed by Spark."""
    digest = F.sha2(F.concat_ws(" ", F.col(schema.CONTENT_HASH), F.col(schema.SPECIES)), 256)
    words = [
        F.sum(F.conv(F.substring(digest, 8 * word + 1, 8), 16, 10).cast("long"))
        for word in range(fingerprint.FINGERPRINT_WORDS)
    ]
    row = images.agg(F.count("*"), *words).first()
    assert row is not None
    return fingerprint.combine(int(row[0]), [int(value or 0) for value in row[1:]])


def summary(corpus: Corpus) -> list[tuple[str, object]]:
    """What `prepare` prints at its end."""
    manifest = corpus.manifest
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["rejected_by_reason"].items())
    splits = ", ".join(f"{count:,} {split}" for split, count in manifest["images_of_split"].items())
    return [
        ("corpus", corpus.path),
        ("listed", f"{manifest['listed']:,}"),
        ("accepted", f"{manifest['accepted']:,} of {len(corpus.classes)} species ({splits})"),
        ("rejected", f"{manifest['rejected']:,}" + (f" ({reasons})" if reasons else "")),
        ("duplicates", f"{manifest['duplicates']:,}"),
        ("fingerprint", corpus.fingerprint),
    ]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} {value!r}", f"one of {', '.join(choices)}", "Choose one of them")


def _check_target(corpus: str, overwrite: bool) -> None:
    if files.exists(files.join(corpus, "manifest.json")) and not overwrite:
        raise CorpusError(
            f"{corpus}, which already holds a corpus", "a new folder", "Give another --corpus, or add --overwrite"
        )
    strangers = [
        name
        for name in (files.list_names(corpus) if files.exists(corpus) else [])
        if name not in ("images", "rejects", "manifest.json") and not name.startswith(".")
    ]
    if strangers:
        raise CorpusError(
            f"{corpus}, which holds {', '.join(strangers[:_EXAMPLES])}",
            "an empty or new folder",
            "Give a --corpus folder of its own",
        )


def _listing(spark: SparkSession, images: str) -> DataFrame:
    """What is to be prepared, as `schema.LISTING`, held by Spark so that it is listed once."""
    if files.exists(images) and (not files.is_directory(images) or _is_parquet(images)):
        return _listing_of_table(spark, images).persist()
    try:
        listing = reading.listing_table(spark, reading.walk(images, by_folder=True)).persist()
    except InputError as error:
        raise CorpusError(error.found, "one folder a species, as in plants/Maize/0001.png", error.remedy) from None
    counts = listing.agg(F.count("*"), F.count(schema.SPECIES)).first()
    assert counts is not None
    if counts[0] == 0:
        raise CorpusError(
            f"{images} is empty",
            "one folder a species, as in plants/Maize/0001.png",
            "Check --images, and put each picture into a folder named for its species",
        )
    if counts[1] == 0:
        raise CorpusError(
            f"{images} has {counts[0]} files and no class folders",
            "one folder a species, as in plants/Maize/0001.png",
            "Move each picture into a folder named for its species",
        )
    return listing


def _is_parquet(images: str) -> bool:
    return images.endswith(".parquet") or "_SUCCESS" in files.list_names(images)


def _listing_of_table(spark: SparkSession, table: str) -> DataFrame:
    name = files.name(table).lower()
    if name.endswith((".csv", ".csv.gz", ".txt")):
        rows = spark.read.csv(table, header=True)
    elif _is_parquet(table) or name.endswith(".parquet"):
        rows = spark.read.parquet(table)
    else:
        raise CorpusError(
            f"{table}, which is neither a folder nor a .csv or .parquet table",
            "a folder with one folder a species, or a table with the columns path and species",
            "Check --images",
        )
    missing = [column for column in (schema.PATH, schema.SPECIES) if column not in rows.columns]
    if missing:
        raise CorpusError(
            f"{table} with the columns {', '.join(rows.columns)}",
            "the columns path and species",
            f"Add {' and '.join(missing)}; a relative path is looked up beside the table",
        )
    base = files.parent(table)
    path = F.col(schema.PATH)
    full = (
        F.when(path.rlike("^[A-Za-z][A-Za-z0-9+.-]*:/"), path)
        .when(path.startswith("/"), F.concat(F.lit("file://" if files.is_local(table) else ""), path))
        .otherwise(F.concat(F.lit(base.rstrip("/") + "/"), path))
    )
    species = F.when(F.trim(F.col(schema.SPECIES)) != "", F.trim(F.col(schema.SPECIES)))
    return (
        rows.where(path.isNotNull())
        .select(
            full.alias(schema.PATH),
            F.lit(-1).cast("long").alias(schema.LENGTH),
            species.alias(schema.SPECIES),
            F.lit(None).cast("string").alias(schema.DETAIL),
        )
        .select(*schema.LISTING.names)
        .distinct()
    )


def _decode(
    spark: SparkSession, listing: DataFrame, images: str, task: reading.DecodeTask, sample: float, building: str
) -> tuple[DataFrame, int]:
    """The decoded files, from disk (each file is read and decoded once), and how many were to be."""
    target = files.join(building, "decoded")
    chosen = listing
    if sample < 1:
        # To choose by content the bytes have to be read, but only the chosen ones are decoded.
        hashed = reading.hash_all(spark, listing, images, task)
        window = Window.partitionBy(schema.SPECIES).orderBy(schema.CONTENT_HASH, schema.PATH)
        everyone = Window.partitionBy(schema.SPECIES)
        ranked = hashed.withColumn("place", F.row_number().over(window)).withColumn("all", F.count("*").over(everyone))
        chosen = ranked.where(F.col("place") <= F.ceil(F.col("all") * F.lit(sample))).select(*schema.LISTING.names)
        chosen = chosen.persist()
    height, width = task.size
    with session.arrow_batches(spark, 1024):
        reading.decode_all(spark, chosen, images, task).write.option(
            "parquet.block.size", str(max(_FILE_BYTES, height * width * 3))
        ).parquet(target)
    return spark.read.schema(schema.DECODED).parquet(target), chosen.count()


def _with_reasons(decoded: DataFrame, conflicts: str) -> DataFrame:
    """The decoded files, those without a usable label rejected too."""
    no_species = F.col(schema.REASON).isNull() & F.col(schema.SPECIES).isNull()
    rows = _rejected(decoded, no_species, "no_species", F.lit("not in a species' folder"))
    of_content = rows.where(F.col(schema.REASON).isNull()).groupBy(schema.CONTENT_HASH)
    disputed = of_content.agg(F.countDistinct(schema.SPECIES).alias("claims")).where("claims > 1")
    if conflicts == "error":
        _refuse_conflicts(rows, disputed)
        return rows
    marked = rows.join(
        F.broadcast(disputed.select(schema.CONTENT_HASH, F.lit(True).alias("disputed"))), schema.CONTENT_HASH, "left"
    )
    condition = F.col(schema.REASON).isNull() & F.col("disputed").isNotNull()
    return _rejected(marked, condition, "conflicting_species", F.concat(F.lit("labelled "), F.col(schema.SPECIES)))


def _rejected(rows: DataFrame, condition: Column, reason: str, detail: Column) -> DataFrame:
    return rows.withColumns(
        {
            schema.DETAIL: F.when(condition, detail).otherwise(F.col(schema.DETAIL)),
            schema.STAGE: F.when(condition, F.lit("label")).otherwise(F.col(schema.STAGE)),
            schema.IMAGE: F.when(~condition, F.col(schema.IMAGE)),
            schema.REASON: F.when(condition, F.lit(reason)).otherwise(F.col(schema.REASON)),
        }
    ).select(*schema.DECODED.names)


def _refuse_conflicts(rows: DataFrame, disputed: DataFrame) -> None:
    first = disputed.orderBy(schema.CONTENT_HASH).first()
    if first is None:
        return
    copies = (
        rows.where(F.col(schema.REASON).isNull() & (F.col(schema.CONTENT_HASH) == first[schema.CONTENT_HASH]))
        .groupBy(schema.SPECIES)
        .agg(F.min(schema.PATH).alias(schema.PATH))
        .orderBy(schema.SPECIES)
        .limit(_EXAMPLES)
        .collect()
    )
    paths = " and ".join(f"{copy[schema.PATH]} ({copy[schema.SPECIES]})" for copy in copies)
    raise CorpusError(
        f"the same bytes under two species: {paths}; {disputed.count()} such image(s) in all",
        "one species for each image",
        "Remove the wrong copies, or reject all of them with --conflicts drop",
    )


def _check_species(rows: DataFrame, images: str) -> None:
    species = [
        row[0]
        for row in rows.where(F.col(schema.REASON).isNull()).select(schema.SPECIES).distinct().limit(_EXAMPLES).collect()
    ]
    if len(species) < 2:
        reasons = rows.where(F.col(schema.REASON).isNotNull()).groupBy(schema.REASON).count().collect()
        found = ", ".join(f"{row['count']} {row[schema.REASON]}" for row in reasons)
        raise CorpusError(
            f"{images} with usable images of {len(species)} species{f' ({species[0]})' if species else ''}"
            + (f"; rejected: {found}" if found else ""),
            "at least two species, each with a folder",
            "Check that --images is the folder above the species' folders",
        )


def _write(
    rows: DataFrame, building: str, split_policy: str, shares: Mapping[str, float], task: reading.DecodeTask
) -> None:
    height, width = task.size
    accepted = rows.where(F.col(schema.REASON).isNull())
    if split_policy == "hash":
        with_split = accepted.withColumn(schema.SPLIT, _split_by_hash(shares))
    else:
        with_split = accepted.join(_stratified(accepted, shares), [schema.CONTENT_HASH, schema.SPECIES])
    count = accepted.count()
    num_files = max(1, -(-count * height * width * 3 // _FILE_BYTES), min(8, count // 200))
    (
        with_split.withColumns({schema.HEIGHT: F.lit(height), schema.WIDTH: F.lit(width)})
        .select(*schema.CORPUS.names)
        .repartition(num_files, schema.CONTENT_HASH)
        .sortWithinPartitions(schema.SPLIT, schema.CONTENT_HASH, schema.PATH)
        .write.partitionBy(schema.SPLIT)
        .parquet(files.join(building, "images"))
    )
    rows.where(F.col(schema.REASON).isNotNull()).select(*schema.REJECTS.names).coalesce(1).write.parquet(
        files.join(building, "rejects")
    )


def _split_by_hash(shares: Mapping[str, float]) -> Column:
    """`fingerprint.split_of` in Spark SQL."""
    digits = F.substring(schema.CONTENT_HASH, 1, fingerprint.DIGITS)
    place = F.conv(digits, 16, 10).cast("long").cast("double") / F.lit(float(16**fingerprint.DIGITS))
    names, edge = list(shares), 0.0
    split: Column | None = None
    for name in names[:-1]:
        edge += shares[name]
        split = (F if split is None else split).when(place < F.lit(edge), F.lit(name))
    return F.lit(names[-1]) if split is None else split.otherwise(F.lit(names[-1]))


def _stratified(accepted: DataFrame, shares: Mapping[str, float]) -> DataFrame:
    """Exact shares of each species' different images, in the order of their hashes."""
    contents = accepted.select(schema.CONTENT_HASH, schema.SPECIES).distinct()
    by_hash = Window.partitionBy(schema.SPECIES).orderBy(schema.CONTENT_HASH)
    place = F.row_number().over(by_hash)
    total = F.count("*").over(Window.partitionBy(schema.SPECIES))
    names, edge = list(shares), 0.0
    split: Column | None = None
    for name in names[:-1]:
        edge += shares[name]
        split = (F if split is None else split).when(F.col("place") <= F.round(F.col("total") * edge), F.lit(name))
    chosen = F.lit(names[-1]) if split is None else split.otherwise(F.lit(names[-1]))
    return (
        contents.withColumns({"place": place, "total": total})
        .withColumn(schema.SPLIT, chosen)
        .select(schema.CONTENT_HASH, schema.SPECIES, schema.SPLIT)
    )


def _manifest(
    spark: SparkSession,
    building: str,
    num_listed: int,
    task: reading.DecodeTask,
    split_policy: str,
    shares: Mapping[str, float],
    sample: float,
    num_found: int,
) -> dict[str, Any]:
    """The numbers of what lies on disk now, checked against what was listed."""
    written = Corpus(building, {})
    accepted, rejected = written.images(spark), written.rejects(spark)
    reasons = {row[0]: int(row[1]) for row in rejected.groupBy(schema.REASON).count().collect()}
    counts = accepted.groupBy(schema.SPECIES, schema.SPLIT).count().collect()
    of_species: dict[str, dict[str, int]] = {}
    for row in sorted(counts):
        of_species.setdefault(row[0], dict.fromkeys(shares, 0))[row[1]] = int(row[2])
    of_split = {name: sum(split[name] for split in of_species.values()) for name in shares}
    num_accepted, num_rejected = sum(of_split.values()), sum(reasons.values())
    if num_accepted + num_rejected != num_listed:
        raise CorpusError(
            f"{num_accepted:,} accepted and {num_rejected:,} rejected files",
            f"the {num_listed:,} that were listed, each exactly once",
            "This is a fault of the program or of the file system; nothing was published. Run prepare again",
        )
    distinct = accepted.select(schema.CONTENT_HASH).distinct().count()
    return {
        "format": FORMAT,
        "listed": num_listed,
        "accepted": num_accepted,
        "rejected": num_rejected,
        "rejected_by_reason": dict(sorted(reasons.items())),
        "duplicates": num_accepted - distinct,
        "images_of_species": of_species,
        "images_of_split": of_split,
        "fingerprint": corpus_fingerprint(accepted),
        "image_size": list(task.size),
        "aspect": task.aspect,
        "formats": list(task.formats),
        "max_pixels": task.max_pixels,
        "max_bytes": task.max_bytes,
        "split_policy": split_policy,
        "split_shares": dict(shares),
        "seed": None,  # nothing is drawn: splits and samples follow from the content
        "sample": sample,
        "found": num_found,
    }


def _publish(building: str, corpus: str, manifest: Mapping[str, Any]) -> None:
    """Put the tables into place; the manifest goes first and comes last."""
    manifest_path = files.join(corpus, "manifest.json")
    files.delete(manifest_path)
    for table in ("images", "rejects"):
        files.delete(files.join(corpus, table))
        files.rename(files.join(building, table), files.join(corpus, table))
    files.write_text(manifest_path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


