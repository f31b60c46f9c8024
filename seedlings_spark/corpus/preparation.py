"""From image files to a corpus that appears whole."""

import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import files, schema
from seedlings_spark.choices import CONFLICT_POLICIES
from seedlings_spark.cluster import session
from seedlings_spark.corpus import decoding, fixes, near_duplicates, tables
from seedlings_spark.corpus.layout import KEPT, Source, TableFormat, found, look_alikes, rejects_of_hidden
from seedlings_spark.corpus.manifest import (
    EXAMPLES,
    KEPT_COLUMNS,
    NEAR_DUPLICATES,
    PARENT,
    REJECTS,
    TABLES,
    Corpus,
    images_of,
    load,
    numbers_on_disk,
)
from seedlings_spark.corpus.splits import GIVEN, GROUP, JOINED, SETTLED, UNIT, SplitRule, sample_of
from seedlings_spark.errors import CorpusError, OptionError, OutputInUseError
from seedlings_spark.kinds import Kind
from seedlings_spark.lock import Lock, is_held

_log = logging.getLogger(__name__)
# Bytes of pixels in one Parquet file of a corpus, and in one of its row groups, which readers hold in memory.
_FILE_BYTES = 128 * 1024 * 1024
_ROW_GROUP_BYTES = 32 * 1024 * 1024
_BUILDING = ".building-"
# Where the manifest names no folder for them.
_OWN_TABLES = ("images", REJECTS, NEAR_DUPLICATES)


@dataclass(frozen=True)
class Selection:
    """Which of the images enter a corpus.

    Args:
        conflicts: What to do with the same bytes under two species: "error", or "drop" (reject all copies, of bytes
            that the parent has the new ones).
        sample: Share of each species' readable files to prepare, chosen by content; at least one of each.
        parent: A corpus that enters as it is, with its splits; files whose bytes it has are left out.
        fixes: A CSV file of labels that a person has corrected, as `fixes` has it; "" for none.

    Raises:
        OptionError: A value that cannot be.
    """

    conflicts: str = "error"
    sample: float = 1.0
    parent: Corpus | None = None
    fixes: str = ""

    def __post_init__(self) -> None:
        if self.conflicts not in CONFLICT_POLICIES:
            expected = f"one of {', '.join(CONFLICT_POLICIES)}"
            raise OptionError(f"conflicts {self.conflicts!r}", expected, "Choose one of them")
        if not 0 < self.sample <= 1:
            raise OptionError(f"sample {self.sample}", "a share above 0 and at most 1", "Correct it")
        if self.parent is not None and self.sample < 1:
            raise OptionError("--sample with --parent", "all that is new", "Leave out one of them")
        if self.parent is not None and self.fixes:
            raise OptionError(
                "--fixes with --parent, whose labels stay as they are",
                "the pictures of one corpus",
                "Prepare the parent anew with --fixes, or correct the labels of the new pictures first",
            )


def prepare(
    spark: SparkSession,
    images: str,
    corpus: str,
    task: decoding.DecodeTask,
    split: SplitRule,
    selection: "Selection | None" = None,
    *,
    table: TableFormat | None = None,
    overwrite: bool = False,
) -> Corpus:
    """Read image files into a corpus.

    What fails leaves no trace: a corpus that is to be replaced stays until the new one is complete and is
    put back if it cannot be published. Only a process that is killed in the instant between its renames
    leaves a corpus without a manifest, which no job reads, and the old tables in `CORPUS/.building-*/old`. On an object
    store nothing is renamed: the manifest names the folder of its tables, and one request puts it in place.

    Args:
        spark: The session.
        images: A folder with one folder a species, or a table with the columns `path` and `species`, whose relative
            paths are looked up beside the table if it does not hold the files' bytes itself. Where `species` is a
            column of lists, or `table` has a separator, pictures show any number of species; where it has a column of
            numbers they have these in place of species.
        corpus: The folder to write.
        task: How to decode.
        split: Which image goes into which split; of a corpus that grows `SplitRule.of_parent`.
        selection: Which images are taken; without one all.
        table: How a table holds the images; without one by its name, with paths. A corpus that grows keeps the columns
            that its parent keeps, whatever this says.
        overwrite: Whether a corpus that is already there may be replaced.

    Returns:
        The corpus.

    Raises:
        CorpusError: Nothing to prepare, one species only, conflicting labels, or a corpus is already there.
        OptionError: An option has a value it cannot have.
        OutputInUseError: Another run has written the corpus meanwhile.
    """
    selection = selection or Selection()
    table = _as_parent(table or TableFormat(), selection.parent)
    images, corpus = _qualified(images), _qualified(corpus)
    is_new = not files.exists(corpus)
    _check_target(images, corpus, overwrite)
    building = _place_to_build(corpus)
    try:
        # By its lock `clean` knows whether somebody is building here.
        with found(spark, images, split, table, task.max_bytes) as source, Lock(building, "prepare"):
            _check_selection(source, selection, images)
            _log.info("listed %d files of %s", num_found := source.num_found(), images)
            decoded, num_listed = _decode(spark, source, task, selection.sample, building)
            if selection.sample == 1:  # of which only what can be read is chosen
                decoded = decoded.union(rejects_of_hidden(spark, source.hidden))
                num_listed += len(source.hidden)
            _log.info("read and decoded %d of %d files", num_listed, num_found)
            labelled, about_fixes = _fixed(spark, decoded, selection.fixes)
            growth = _Growth.of(spark, _with_reasons(labelled, selection.conflicts, source.kind), selection)
            _check_species(growth.rows, images, growth.parent, source.kind)
            rows, about_splits, pairs = _with_units(growth, source, task, building)
            rows, growth = growth.without_told(rows)
            _write(rows, building, source, task, growth)
            about_splits |= _write_near_duplicates(pairs, building, source.rule) | about_fixes
            num_listed = growth.with_parent(num_listed)
            splits = list(source.rule.shares)
            written = numbers_on_disk(spark, building, num_listed, splits, task.size, source.kind)
            manifest = {
                **written,
                **_about_reading(task, table),
                **about_splits,
                "sample": selection.sample,
                "found": growth.with_parent(num_found),
                **growth.about(written["accepted"]),
                **_about_columns(_kept(source, selection.parent)),
            }
            (_publish if files.renames(corpus) else publish_in_place)(building, corpus, manifest, overwrite)
            _log_end(corpus, manifest)
    finally:
        clear(building, corpus if is_new else None)
    return load(corpus)


def _place_to_build(corpus: str) -> str:
    """A new folder in a corpus: tables stay in it where there is no renaming."""
    return files.join(corpus, f"{_BUILDING if files.renames(corpus) else 'tables-'}{uuid.uuid4().hex[:12]}")


def _as_parent(table: TableFormat, parent: Corpus | None) -> TableFormat:
    """How a table is read beside a parent: what that keeps is kept, where the table has it."""
    if parent is None:
        return table
    return replace(table, keep_columns=tuple(parent.kept_columns.names), keeps_missing=True)


def _check_selection(source: Source, selection: Selection, images: str) -> None:
    """Refuse what is for pictures of one species each, and columns that do not fit the parent's.

    Raises:
        CorpusError: It is asked for, of others.
    """
    if selection.parent is not None:
        _check_columns(source.kept, selection.parent, images)
    chosen = {"--parent": selection.parent, "--fixes": selection.fixes}
    asked = [flag for flag, value in chosen.items() if value]
    if source.kind != Kind.CLASSIFICATION and asked:
        raise CorpusError(
            f"{asked[0]} with pictures that {source.kind.of_pictures}",
            "pictures of one species each",
            f"Leave out {asked[0]}: correct or extend the table, and prepare all of it anew",
        )


def _kept(source: Source, parent: Corpus | None) -> StructType:
    """The columns that a corpus keeps: its source's, or those of its parent."""
    return source.kept if parent is None else parent.kept_columns


def _check_columns(kept: StructType, parent: Corpus, images: str) -> None:
    """Refuse columns of another type than in the parent, and say which there are not."""
    for one in kept:
        of_parent = parent.kept_columns[one.name].dataType
        if one.dataType != of_parent:
            raise CorpusError(
                f"{images} with a column {one.name} of type {one.dataType.simpleString()}",
                f"{of_parent.simpleString()}, as {parent.path} keeps it",
                "Convert the column",
            )
    if missing := [name for name in parent.kept_columns.names if name not in kept.names]:
        _log.warning(
            "%s has no column %s: it is empty for its images in the corpus", images, ", ".join(missing)
        )


def _about_columns(kept: StructType) -> dict[str, Any]:
    """What a manifest says of the columns that are kept."""
    return {KEPT_COLUMNS: {one.name: one.dataType.jsonValue() for one in kept}} if kept.names else {}


def _log_end(corpus: str, manifest: Mapping[str, Any]) -> None:
    species = f" of {len(manifest['images_of_species'])} species"
    _log.info(
        "wrote %d images%s (%d duplicates) and %d rejects",
        manifest["accepted"],
        "" if Kind.of(manifest) == Kind.REGRESSION else species,
        manifest["duplicates"],
        manifest["rejected"],
    )
    _log.info("published %s, fingerprint %s", corpus, manifest["fingerprint"])


def _about_reading(task: decoding.DecodeTask, table: TableFormat) -> dict[str, Any]:
    """What a manifest says of how images and their numbers were read."""
    return {
        **({"number_column": table.number_column} if table.number_column else {}),
        "image_size": list(task.size),
        "aspect": task.aspect,
        "formats": list(task.formats),
        "max_pixels": task.max_pixels,
        "max_bytes": task.max_bytes,
        "seed": None,  # nothing is drawn: splits and samples follow from the content
    }


def left_behind(path: str) -> list[str]:
    """What runs of `prepare` and `forget` that are dead have left in the folder of a corpus, and nothing needs.

    Raises:
        CorpusError: A run that died between two renames has left the tables of the former corpus in one of them.
    """
    names = files.list_names(path) if files.is_directory(path) else []
    made = [name for name in names if name.startswith(_BUILDING)]
    tables_of = [name for name in names if TABLES.fullmatch(name)]
    used = load(path).manifest.get("tables") if tables_of and "manifest.json" in names else None
    made += [name for name in tables_of if name != used]
    # Those that the tables in use have come in the place of.
    made += [name for name in _OWN_TABLES if used and name in names]
    found = [files.join(path, name) for name in made]
    found = [each for each in found if not is_held(each)]
    for each in [] if "manifest.json" in names else found:
        old = files.join(each, "old")
        if files.exists(files.join(old, "manifest.json")):
            raise CorpusError(
                f"{path} without a manifest.json, and in {old} the corpus that was there before",
                "a corpus",
                f"Move what is in {old} back into {path}, the manifest last, or run prepare again: then call clean",
            )
    return found


def _qualified(path: str) -> str:
    try:
        return files.qualify(path)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"the path {path!r} ({error})", "a path that Hadoop can read", "Correct the path"
        ) from None


def _check_target(images: str, corpus: str, overwrite: bool) -> None:
    """Refuse a folder in which anything would be lost or mixed up: what is replaced must be a corpus."""
    above, below = sorted((images.rstrip("/") + "/", corpus.rstrip("/") + "/"), key=len)
    if below.startswith(above):
        raise CorpusError(
            f"the corpus {corpus} and the images {images}, one of which is inside of the other",
            "two folders that are apart",
            "Give another --corpus",
        )
    if not files.exists(corpus):
        return
    if not files.is_directory(corpus):
        raise CorpusError(f"{corpus}, which is a file", "an empty or new folder", "Give another --corpus")
    names = files.list_names(corpus)
    if "manifest.json" in names and not overwrite:
        raise CorpusError(
            f"{corpus}, which already holds a corpus",
            "a new folder",
            "Give another --corpus, or add --overwrite",
        )
    strangers = [
        name
        for name in names
        if not name.startswith(".")
        and name != "manifest.json"
        and not TABLES.fullmatch(name)
        and not _is_our_table(corpus, name)
    ]
    if strangers:
        raise CorpusError(
            f"{corpus}, which holds {', '.join(strangers[:EXAMPLES])}, not written by prepare",
            "an empty or new folder",
            "Give a --corpus folder of its own",
        )


def _is_our_table(corpus: str, name: str) -> bool:
    """Whether `images` or `rejects` holds nothing but what Spark has written, and may be replaced."""
    folder = files.join(corpus, name)
    if name not in _OWN_TABLES or not files.is_directory(folder):
        return False
    kind = ("split=", "_", ".") if name == "images" else ("part-", "_", ".")
    return all(each.startswith(kind) for each in files.list_names(folder))


def _decode(
    spark: SparkSession, source: Source, task: decoding.DecodeTask, sample: float, building: str
) -> tuple[DataFrame, int]:
    """The decoded files, from disk (each file is read and decoded once), and how many were to be."""
    target = files.join(building, "decoded")
    listing, roots = source.listing, source.roots
    with decoding.batches(spark):
        # To choose by content all bytes have to be read, but only what is chosen is decoded.
        chosen = listing
        if sample < 1:
            chosen = sample_of(_hashed(spark, source, task), sample, source.kind).persist()
        num_chosen = chosen.count()
        if source.contents is None:
            decoded = decoding.decode_all(spark, chosen, roots, task)
        else:
            contents = source.contents
            if chosen is not listing:
                contents = contents.join(chosen, schema.PATH, "left_semi")
            decoded = decoding.decode_contents(spark, contents, task)
        decoded.write.options(**_parquet_options(task.size), **tables.write_options(target)).parquet(target)
        if chosen is not listing:
            chosen.unpersist()
    return tables.parquet(spark, target, schema.DECODED), num_chosen


def _fixed(spark: SparkSession, decoded: DataFrame, table: str) -> tuple[DataFrame, dict[str, Any]]:
    """The decoded files with the labels of a table of fixes, and what the manifest says of that.

    Raises:
        CorpusError: The table is none, or gives pictures a species that no other picture has.
    """
    if not table:
        return decoded, {}
    changes = fixes.read(spark, table)
    there = {row[0] for row in decoded.select(schema.SPECIES).distinct().collect()}
    corrections = changes.where(F.col(fixes.ACTION) == fixes.CORRECT)
    given = {row[0] for row in corrections.select(fixes.NEW_SPECIES).distinct().collect()}
    if new := sorted(given - there):
        raise CorpusError(
            f"{table}, which gives pictures the species {', '.join(new[:EXAMPLES])}",
            "a species that other pictures have",
            "Correct the column suggested, or move these pictures into a folder of the new species",
        )
    about = fixes.about(decoded, changes, table)
    _log.info("corrected %(corrected)d labels and dropped %(dropped)d pictures by %(table)s", about)
    if about["not_found"]:
        _log.warning(
            "%d fixes are of pictures that are not there, or have another label now", about["not_found"]
        )
    return fixes.applied(decoded, changes), {"fixes": about}


def _hashed(spark: SparkSession, source: Source, task: decoding.DecodeTask) -> DataFrame:
    if source.contents is None:
        return decoding.hash_all(spark, source.listing, source.roots, task)
    digest = F.when(F.octet_length(schema.CONTENT) > 0, F.sha2(schema.CONTENT, 256))
    return source.contents.select(*schema.LISTING.names, digest.alias(schema.CONTENT_HASH))


def _parquet_options(size: tuple[int, int]) -> dict[str, str]:
    """For tables of pixels: they do not repeat, and Parquet would look at memory after 100 rows at the earliest."""
    height, width = size
    return {
        **session.PARQUET_CHECKSUMS,
        "parquet.block.size": str(_ROW_GROUP_BYTES),
        "parquet.page.size.row.check.min": str(max(1, min(100, _ROW_GROUP_BYTES // (height * width * 3)))),
        f"parquet.enable.dictionary#{schema.IMAGE}": "false",
    }


def _with_reasons(decoded: DataFrame, conflicts: str, kind: Kind) -> DataFrame:
    """The decoded files, those without a usable label rejected too."""
    label, reason = F.col(schema.SPECIES), "no_species"
    detail = F.lit("neither in a species' folder nor given one by a table")
    if kind == Kind.REGRESSION:
        detail = F.concat(F.lit("the table says "), F.coalesce(label, F.lit("nothing")))
        label, reason = schema.number_in(label), "no_number"
    rows = _rejected(decoded, F.col(schema.REASON).isNull() & label.isNull(), reason, detail)
    of_content = rows.where(F.col(schema.REASON).isNull()).groupBy(schema.CONTENT_HASH)
    disputed = of_content.agg(F.countDistinct(schema.SPECIES).alias("claims")).where("claims > 1")
    if conflicts == "error":
        _refuse_conflicts(rows, disputed, kind)
        return rows
    disputed = disputed.select(schema.CONTENT_HASH, F.lit(True).alias("disputed"))
    marked = rows.join(disputed, schema.CONTENT_HASH, "left")
    condition = F.col(schema.REASON).isNull() & F.col("disputed").isNotNull()
    return _rejected(
        marked, condition, "conflicting_species", F.concat(F.lit("labelled "), F.col(schema.SPECIES))
    ).drop("disputed")


def _rejected(rows: DataFrame, condition: Column, reason: str, detail: Column) -> DataFrame:
    return rows.withColumns(
        {
            schema.DETAIL: F.when(condition, detail).otherwise(F.col(schema.DETAIL)),
            schema.STAGE: F.when(condition, F.lit("label")).otherwise(F.col(schema.STAGE)),
            schema.IMAGE: F.when(~condition, F.col(schema.IMAGE)),
            schema.REASON: F.when(condition, F.lit(reason)).otherwise(F.col(schema.REASON)),
        }
    )


def _refuse_conflicts(rows: DataFrame, disputed: DataFrame, kind: Kind) -> None:
    first = disputed.orderBy(schema.CONTENT_HASH).first()
    if first is None:
        return
    copies = (
        rows.where(F.col(schema.REASON).isNull() & (F.col(schema.CONTENT_HASH) == first[schema.CONTENT_HASH]))
        .groupBy(schema.SPECIES)
        .agg(F.min(schema.PATH).alias(schema.PATH))
        .orderBy(schema.SPECIES)
        .limit(EXAMPLES)
        .collect()
    )
    paths = " and ".join(f"{copy[schema.PATH]} ({copy[schema.SPECIES]})" for copy in copies)
    two, one = ("two numbers", "one number") if kind == Kind.REGRESSION else ("two species", "one species")
    raise CorpusError(
        f"the same bytes under {two}: {paths}; {disputed.count()} such image(s) in all",
        f"{one} for each image",
        "Remove the wrong copies, or reject all of them with --conflicts drop",
    )


def _with_units(
    growth: "_Growth", source: Source, task: decoding.DecodeTask, building: str
) -> tuple[DataFrame, dict[str, Any], DataFrame | None]:
    """Rows with what stays together (`UNIT`) and the given splits, leaks rejected; and what the manifest says of it.

    The third is pairs of near duplicates, where they are looked for.
    """
    rows, rule = growth.rows, source.rule
    about: dict[str, Any] = {"split_policy": rule.policy, "split_shares": dict(rule.shares)}
    rows = source.described(rows)
    accepted = rows.where(F.col(schema.REASON).isNull())
    if rule.has_groups:
        _refuse_without(accepted, GROUP, "group", "Correct the table, or the expression of --group-from-path")
    if rule.policy == "given":
        _refuse_without(accepted, GIVEN, "split", "Move those files, or correct the table")
    rows, joined = rule.with_units(rows)
    pairs = None if rule.near_duplicates == "ignore" else growth.near_duplicates(task.size, building)
    if pairs is not None and rule.near_duplicates == "group":
        rows = near_duplicates.together(rows, pairs, growth.images_of_parent())
    if rule.has_groups:
        units = rows.where(F.col(schema.REASON).isNull()).select(UNIT).distinct().count()
        about["groups"] = {
            "group_column": rule.group_column,
            "group_from_path": rule.group_from_path,
            "number": units,
            **({JOINED: dict(sorted(joined.items()))} if joined else {}),
        }
    if rule.time_column:
        about["split_time"] = rule.time_column
    if rule.policy == "given":
        rows, about["leaks"] = _without_leaks(rows, rule)
    return rows, about, pairs


def _without_leaks(rows: DataFrame, rule: SplitRule) -> tuple[DataFrame, dict[str, Any]]:
    """Rows of given splits, of which a unit is in one only, unless leaks are kept; and what was found."""
    rank = F.array_position(F.array(*map(F.lit, schema.SPLITS)), F.col(GIVEN))
    if SETTLED not in rows.columns:
        rows = rows.withColumn(SETTLED, F.lit(None).cast("string"))
    accepted = rows.where(F.col(schema.REASON).isNull())
    splits = F.array_distinct(F.array_compact(F.array_append(F.collect_set(GIVEN), F.first(SETTLED))))
    # What the parent has stays where it is.
    measured = F.coalesce(F.first(SETTLED), F.max_by(GIVEN, rank)).alias("measured")
    leaking = accepted.groupBy(UNIT).agg(splits.alias("splits"), measured)
    leaking = leaking.where(F.size("splits") > 1).select(UNIT, "measured")
    about = {"policy": rule.leaks, "number": leaking.count()}
    if not about["number"] or rule.leaks == "keep":
        return rows, about
    if rule.leaks == "error":
        _refuse_leaks(accepted, leaking, rule)
    marked = rows.join(leaking, UNIT, "left")
    condition = F.col(schema.REASON).isNull() & (F.col(GIVEN) != F.col("measured"))
    detail = F.concat(F.lit("in the split "), F.col(GIVEN), F.lit(", and also in "), F.col("measured"))
    return _rejected(marked, F.coalesce(condition, F.lit(False)), "leak", detail).drop("measured"), about


def _write_near_duplicates(pairs: DataFrame | None, building: str, rule: SplitRule) -> dict[str, Any]:
    """Write the table of them beside that of the images; what the manifest says of it."""
    if pairs is None:
        return {}
    spark, target = pairs.sparkSession, files.join(building, NEAR_DUPLICATES)
    table = near_duplicates.described(pairs, images_of(spark, building)).coalesce(1)
    table.write.options(**session.PARQUET_CHECKSUMS, **tables.write_options(building)).parquet(target)
    written = tables.parquet(spark, target, schema.NEAR_DUPLICATES)
    return {NEAR_DUPLICATES: near_duplicates.about(written, rule.near_duplicates, EXAMPLES)}


def _refuse_without(accepted: DataFrame, column: str, what: str, remedy: str) -> None:
    without = accepted.where(F.coalesce(column, F.lit("")) == "")
    if count := without.count():
        (first,) = without.select(schema.PATH).orderBy(schema.PATH).limit(1).collect()
        raise CorpusError(
            f"{count:,} pictures without a {what}, such as {first[0]}", f"one {what} for each", remedy
        )


def _refuse_leaks(accepted: DataFrame, leaking: DataFrame, rule: SplitRule) -> None:
    (first,) = leaking.orderBy(UNIT).limit(1).collect()
    copies = (
        accepted.where(F.col(UNIT) == first[UNIT])
        .groupBy(GIVEN)
        .agg(F.min(schema.PATH).alias(schema.PATH), F.first(SETTLED).alias(SETTLED))
        .orderBy(GIVEN)
        .collect()
    )
    places = [f"{copy[schema.PATH]} ({copy[GIVEN]})" for copy in copies]
    places += [f"the parent ({copies[0][SETTLED]})"] if copies[0][SETTLED] else []
    paths = " and ".join(places)
    what = "pictures of one group" if rule.has_groups else "the same bytes"
    what += ", or nearly the same picture," if rule.near_duplicates == "group" else ""
    raise CorpusError(
        f"{what} in two splits: {paths}; {leaking.count():,} such case(s) in all",
        "splits that have nothing in common: else what is measured was trained on",
        "Move them to one side; or reject those that are not measured on with --leaks drop, or --leaks keep",
    )


@dataclass(frozen=True)
class _Growth:
    """New rows beside those of a parent, or beside none."""

    rows: DataFrame
    parent: Corpus | None
    num_known: int = 0

    @classmethod
    def of(cls, spark: SparkSession, rows: DataFrame, selection: Selection) -> "_Growth":
        """The rows without those whose bytes the parent has.

        Raises:
            CorpusError: They have another species there, or one that looks alike.
        """
        parent = selection.parent
        if parent is None:
            return cls(rows, None)
        # A person has dropped these, whatever the names of their files are.
        dropped = parent.rejects(spark).where(F.col(schema.REASON) == fixes.DROPPED)
        dropped = dropped.select(schema.CONTENT_HASH, F.lit(True).alias("was_dropped")).distinct()
        rows = rows.join(F.broadcast(dropped), schema.CONTENT_HASH, "left")
        is_dropped = F.col(schema.REASON).isNull() & F.col("was_dropped").isNotNull()
        num_dropped = rows.where(is_dropped).count()
        rows = rows.where(~is_dropped).drop("was_dropped")
        known = (
            parent.images(spark)
            .groupBy(schema.CONTENT_HASH)
            .agg(F.min(schema.SPECIES).alias("species_there"))
        )
        rows = rows.join(known, schema.CONTENT_HASH, "left")
        is_known = F.col(schema.REASON).isNull() & F.col("species_there").isNotNull()
        is_disputed = F.coalesce(is_known & (F.col(schema.SPECIES) != F.col("species_there")), F.lit(False))
        if selection.conflicts == "error":
            disputed = rows.where(is_disputed)
            if count := disputed.count():
                (first,) = disputed.orderBy(schema.PATH).limit(1).collect()
                raise CorpusError(
                    f"{first[schema.PATH]} ({first[schema.SPECIES]}), whose bytes are {first['species_there']} in"
                    f" {parent.path}; {count:,} such image(s) in all",
                    "one species for each image",
                    "Correct the label, here or by a new parent; or reject those copies with --conflicts drop",
                )
        detail = F.concat(
            F.lit("labelled "), F.col(schema.SPECIES), F.lit(", in the parent "), F.col("species_there")
        )
        rows = _rejected(rows, is_disputed, "conflicting_species", detail)
        is_known = F.coalesce(
            F.col(schema.REASON).isNull() & F.col("species_there").isNotNull(), F.lit(False)
        )
        num_known = rows.where(is_known).count()
        rows = rows.where(~is_known).drop("species_there")
        new = [
            row[0]
            for row in rows.where(F.col(schema.REASON).isNull()).select(schema.SPECIES).distinct().collect()
        ]
        if pair := look_alikes([*parent.classes, *new]):
            raise CorpusError(
                f"two species that look alike, {pair[0]} and {pair[1]}, in {parent.path} and among the new images",
                "names that a person can tell apart",
                "Give the new images the name that the parent has",
            )
        return cls(rows, parent, num_known + num_dropped)

    def images_of_parent(self) -> DataFrame | None:
        """Those of the parent, if there is one."""
        return None if self.parent is None else self.parent.images(self.rows.sparkSession)

    def without_told(self, rows: DataFrame) -> tuple[DataFrame, "_Growth"]:
        """Rows without files that are rejected again, as the parent has told; and what is then known in all."""
        if self.parent is None:
            return rows, self
        names = (schema.PATH, schema.CONTENT_HASH, schema.REASON)
        there = self.parent.rejects(rows.sparkSession)
        there = there.select(*(F.col(name).alias(f"{name}_there") for name in names)).distinct()
        is_same = (F.col(name).eqNullSafe(F.col(f"{name}_there")) for name in names)
        rejected = rows.where(F.col(schema.REASON).isNotNull())
        left = rejected.join(there, reduce(Column.__and__, is_same), "left_anti")
        num_told = rejected.count() - left.count()
        accepted = rows.where(F.col(schema.REASON).isNull())
        return accepted.union(left), replace(self, num_known=self.num_known + num_told)

    def near_duplicates(self, size: tuple[int, int], building: str) -> DataFrame:
        """Pairs of near duplicates, among the new images and between them and the parent's."""
        columns = (schema.CONTENT_HASH, schema.IMAGE)
        images = self.rows.where(F.col(schema.REASON).isNull()).select(*columns)
        if (known := self.images_of_parent()) is not None:
            images = images.union(known.select(*columns))
        return near_duplicates.find(
            images.sparkSession, images, size, files.join(building, "decoded", "_near_duplicates")
        )

    def with_parent(self, num_files: int) -> int:
        """Of a number of files, those that the new corpus accounts for: what the parent has is not counted twice."""
        return num_files - self.num_known + (int(self.parent.manifest["listed"]) if self.parent else 0)

    def about(self, num_accepted: int) -> dict[str, Any]:
        """What the manifest says of the parent."""
        if self.parent is None:
            return {}
        before = int(self.parent.manifest["accepted"])
        former = sorted(self.parent.lineage - {self.parent.fingerprint})
        _log.info("%d images are new beside the %d of %s", num_accepted - before, before, self.parent.path)
        return {
            PARENT: {
                "path": self.parent.path,
                "fingerprint": self.parent.fingerprint,
                "accepted": before,
                "listed": self.parent.manifest["listed"],
                "rejected": self.parent.manifest["rejected"],
                **({"lineage": former} if former else {}),
            },
            "known": self.num_known,
        }


def _check_species(rows: DataFrame, images: str, parent: Corpus | None, kind: Kind) -> None:
    if parent is not None:  # which has two
        return
    labels, expected, remedy = {
        Kind.CLASSIFICATION: (
            "species",
            "at least two species, each with a folder",
            "Check that --images is the folder above the species' folders",
        ),
        Kind.MULTILABEL: (
            "species",
            "at least two species",
            "Check the column species, and what separates its names",
        ),
        Kind.REGRESSION: ("numbers", "at least two different numbers", "Check the column of --number-column"),
    }[kind]
    name = F.col(schema.SPECIES)
    name = F.explode(schema.species_in(name)) if kind == Kind.MULTILABEL else name
    accepted = rows.where(F.col(schema.REASON).isNull())
    some = accepted.select(name.alias(schema.SPECIES)).distinct().limit(EXAMPLES)
    species = [row[0] for row in some.collect()]
    if len(species) < 2:
        if kind == Kind.REGRESSION and len(species) == 1:
            labels = "number"
        reasons = rows.where(F.col(schema.REASON).isNotNull()).groupBy(schema.REASON).count().collect()
        found = ", ".join(f"{row['count']} {row[schema.REASON]}" for row in sorted(reasons))
        raise CorpusError(
            f"{images} with usable images of {len(species)} {labels}{f' ({species[0]})' if species else ''}"
            + (f"; rejected: {found}" if found else ""),
            expected,
            remedy,
        )


def _write(
    rows: DataFrame, building: str, source: Source, task: decoding.DecodeTask, growth: _Growth
) -> None:
    height, width = task.size
    kept = _kept(source, growth.parent)
    accepted = rows.where(F.col(schema.REASON).isNull())
    with_split = source.rule.applied(accepted, source.kind)
    laid_out = with_split.withColumns({schema.HEIGHT: F.lit(height), schema.WIDTH: F.lit(width)})
    values = [
        (F.col(KEPT).getField(one.name) if one.name in source.kept.names else F.lit(None).cast(one.dataType))
        for one in kept
    ]
    columns = [value.alias(one.name) for value, one in zip(values, kept, strict=True)]
    laid_out = laid_out.select(*schema.CORPUS.names, *columns)
    rejected = rows.where(F.col(schema.REASON).isNotNull()).select(*schema.REJECTS.names)
    count = accepted.count()
    if growth.parent is not None:
        laid_out = laid_out.union(growth.parent.described_images(rows.sparkSession))
        rejected = rejected.union(growth.parent.rejects(rows.sparkSession))
        count += int(growth.parent.manifest["accepted"])
    write_tables(laid_out, rejected, building, task.size, count)


def write_tables(
    images: DataFrame, rejected: DataFrame, building: str, size: tuple[int, int], num_images: int
) -> None:
    """Write the tables of a corpus.

    Args:
        images: As `schema.CORPUS`, with the columns that the corpus keeps.
        rejected: As `schema.REJECTS`.
        building: Folder that they are written into.
        size: (height, width) of the images in pixels.
        num_images: How many these are.
    """
    height, width = size
    num_files = max(1, -(-num_images * height * width * 3 // _FILE_BYTES), min(8, num_images // 200))
    (
        # The mark goes into the files: who reads them without us gets the same shards.
        schema.with_content_hash(images)
        .repartition(num_files, schema.CONTENT_HASH)
        .sortWithinPartitions(schema.SPLIT, schema.CONTENT_HASH, schema.PATH)
        .write.options(**_parquet_options(size), **tables.write_options(building))
        .partitionBy(schema.SPLIT)
        .parquet(files.join(building, "images"))
    )
    options = {**session.PARQUET_CHECKSUMS, **tables.write_options(building)}
    rejected.coalesce(1).write.options(**options).parquet(files.join(building, REJECTS))


def _publish(building: str, corpus: str, manifest: Mapping[str, Any], overwrite: bool) -> None:
    """Put the tables into place: the manifest goes first and comes last, and a failure takes all steps back."""
    overtaken = _overtaken(corpus)
    if not overwrite and files.exists(files.join(corpus, "manifest.json")):
        raise overtaken
    files.write_bytes(files.join(building, "manifest.json"), _as_json(manifest))
    old = files.join(building, "old")
    files.make_directory(old)
    tables_of = [name for name in files.list_names(corpus) if TABLES.fullmatch(name)]
    names = ("manifest.json", *_OWN_TABLES, *tables_of)
    moves = [(corpus, old, name) for name in names if files.exists(files.join(corpus, name))]
    moves += [
        (building, corpus, name) for name in reversed(names) if files.exists(files.join(building, name))
    ]
    done: list[tuple[str, str, str]] = []
    try:
        for source, target, name in moves:
            files.rename(files.join(source, name), files.join(target, name))
            done.append((source, target, name))
    except BaseException as error:
        for source, target, name in reversed(done):
            files.rename(files.join(target, name), files.join(source, name))
        if isinstance(error, FileExistsError):
            raise overtaken from None
        raise


def publish_in_place(building: str, corpus: str, manifest: Mapping[str, Any], overwrite: bool) -> None:
    """Let tables stay where they were made, and the manifest name them: one write, or on an object store one request.

    Args:
        building: Their folder, one in that of the corpus.
        corpus: Path of the corpus.
        manifest: That goes with them.
        overwrite: Whether the manifest takes the place of one, whose tables are then deleted.

    Raises:
        OutputInUseError: Another run has written the corpus meanwhile.
    """
    path = files.join(corpus, "manifest.json")
    before = _tables_in_use(corpus)
    content = _as_json({**manifest, "tables": files.name(building)})
    if not overwrite:
        try:
            files.create(path, content)
        except FileExistsError:
            raise _overtaken(corpus) from None
        return
    files.write_bytes(path, content)
    if _tables_in_use(corpus) != files.name(building):
        raise _overtaken(corpus)
    for name in [before] if before else _OWN_TABLES:
        files.delete(files.join(corpus, name))


def _tables_in_use(corpus: str) -> str | None:
    """The folder that the manifest of a corpus names; None if it names none, or there is none."""
    try:
        manifest = json.loads(files.read_bytes(files.join(corpus, "manifest.json")))
    except (FileNotFoundError, ValueError):
        return None
    return manifest.get("tables") if isinstance(manifest, dict) else None


def _overtaken(corpus: str) -> OutputInUseError:
    return OutputInUseError(
        f"{corpus}, which another run has written meanwhile",
        "one run for one --corpus",
        "Use what the other run has written, or run prepare again with --overwrite",
    )


def _as_json(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def clear(building: str, new_corpus: str | None) -> None:
    """Remove what a run leaves behind; a corpus' folder too if this run has made it for nothing."""
    try:
        is_used = _tables_in_use(files.parent(building)) == files.name(building)
        files.delete(files.join(building, "decoded") if is_used else building)
        if new_corpus is not None and files.exists(new_corpus) and not files.list_names(new_corpus):
            files.delete(new_corpus)
    except OSError as error:
        _log.warning("%s could not be removed (%s)", building, error)
