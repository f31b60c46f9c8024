"""A corpus on disk, and the manifest that its tables are compared with."""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import display, files, fingerprint, schema
from seedlings_spark.corpus import tables
from seedlings_spark.errors import CorpusError
from seedlings_spark.kinds import Kind

EXAMPLES = 3
# What every reader of a manifest may rely on.
_MANIFEST_KEYS: Mapping[str, type] = {
    "listed": int,
    "accepted": int,
    "rejected": int,
    "rejected_by_reason": dict,
    "duplicates": int,
    "images_of_species": dict,
    "images_of_split": dict,
    "fingerprint": str,
    "image_size": list,
    "aspect": str,
}
KEPT_COLUMNS = "kept_columns"
# The corpus that it has grown from, and what was forgotten, one entry a call.
PARENT, FORGOTTEN = "parent", "forgotten"
# What corpora of earlier releases, or of other kinds, do not have.
_LATER_KEYS: Mapping[str, type] = {
    "files": dict,
    "tables": str,
    PARENT: dict,
    FORGOTTEN: list,
    "numbers": dict,
    KEPT_COLUMNS: dict,
}
REJECTS = "rejects"
NEAR_DUPLICATES = "near_duplicates"
# The name of a folder of tables where they are not in that of the corpus itself.
TABLES = re.compile(r"tables-[0-9a-f]*")


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus on disk.

    Args:
        path: The folder.
        manifest: What `manifest.json` says.
    """

    path: str
    manifest: Mapping[str, Any]
    _compared: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def tables_path(self) -> str:
        """The folder of its tables: that of the corpus, or one in it, which the manifest names.

        It names one on an object store, and wherever pictures were forgotten.
        """
        return tables_path(self.path, self.manifest)

    @property
    def images_path(self) -> str:
        """Parquet of `schema.CORPUS`, partitioned by split."""
        return files.join(self.tables_path, "images")

    @property
    def rejects_path(self) -> str:
        """Parquet of `schema.REJECTS`."""
        return files.join(self.tables_path, REJECTS)

    @property
    def fingerprint(self) -> str:
        """Of content and labels."""
        return str(self.manifest["fingerprint"])

    @property
    def lineage(self) -> frozenset[str]:
        """The fingerprints of this corpus, now and before it forgot pictures, and of those that it has grown from.

        A version that was trained on one of them has seen training images of this one, and none of its test images.
        """
        parent = self.manifest.get(PARENT) or {}
        before = [str(entry["fingerprint"]) for entry in self.manifest.get(FORGOTTEN, ())]
        of_parent = [str(parent["fingerprint"]), *parent.get("lineage", ())] if parent else []
        return frozenset((self.fingerprint, *before, *of_parent))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.manifest["image_size"]
        return int(height), int(width)

    @property
    def kind(self) -> Kind:
        """What the labels are.

        The column `species` holds them as text, of which `schema.species_in` makes lists of names and
        `schema.number_in` numbers.
        """
        return Kind.of(self.manifest)

    @property
    def kept_columns(self) -> StructType:
        """Further columns of the table that it was prepared of, in the order in which they were asked for.

        They are no part of the fingerprint, and nothing is trained on them.
        """
        kept = self.manifest.get(KEPT_COLUMNS, {})
        fields = [{"name": name, "type": kind, "nullable": True} for name, kind in kept.items()]
        return StructType.fromJson({"fields": fields})

    def require_one_species(self, what: str) -> "Corpus":
        """The corpus, if its pictures show one species each.

        Args:
            what: What relies on that, as a person has asked for it.

        Raises:
            CorpusError: They do not.
        """
        if self.kind != Kind.CLASSIFICATION:
            raise CorpusError(
                f"{what} with {self.path}, whose pictures {self.kind.of_pictures}",
                "pictures of one species each",
                "Give another corpus; prepare, train and evaluate take this one",
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the species, sorted; none where pictures have numbers."""
        return tuple(sorted(self.manifest["images_of_species"]))

    @property
    def num_outputs(self) -> int:
        """Outputs of a network for it."""
        return 1 if self.kind == Kind.REGRESSION else len(self.classes)

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the training images' numbers.

        Raises:
            CorpusError: There are no such images, or all have the same number.
        """
        found = self.manifest["numbers"].get(schema.TRAIN)
        if not found or not found["deviation"] > 0:
            raise CorpusError(
                f"{self.path}, whose training images have "
                + (f"the number {found['mean']:g} all" if found else "no numbers"),
                "numbers that differ",
                "Prepare the corpus with more images, or with --split-policy stratified",
            )
        return float(found["mean"]), float(found["deviation"])

    def num_images(self, split: str) -> int:
        """Accepted images of a split."""
        return int(self.manifest["images_of_split"].get(split, 0))

    def images(self, spark: SparkSession, *splits: str) -> DataFrame:
        """The images of these splits (all without one), as `schema.CORPUS`.

        When a split is asked for the first time its files and rows are read once and compared with the manifest.

        Raises:
            CorpusError: They are not what `prepare` has written; names a file where one is to blame.
        """
        splits = splits or tuple(self.manifest["images_of_split"])
        self._compare_images(spark, splits)
        return images_of(spark, self.tables_path, *splits)

    def described_images(self, spark: SparkSession, *splits: str) -> DataFrame:
        """As `images`, with the kept columns after those of `schema.CORPUS`."""
        splits = splits or tuple(self.manifest["images_of_split"])
        self._compare_images(spark, splits)
        return images_of(spark, self.tables_path, *splits, kept=self.kept_columns)

    def rejects(self, spark: SparkSession) -> DataFrame:
        """The rejected files, as `schema.REJECTS`, compared with the manifest as the images are."""
        if REJECTS not in self._compared:
            self._compare_files(REJECTS)
            with self._refusing_damage():
                reasons, checksums = _numbers_of_rejects(spark, self.tables_path)
            self._compare_checksums(REJECTS, checksums)
            expected = self.manifest["rejected_by_reason"]
            if reasons != expected:
                raise self._not_as_written(f"its rejects are {reasons}", str(expected))
            self._compared.add(REJECTS)
        return rejects_of(spark, self.tables_path)

    def near_duplicates(self, spark: SparkSession) -> DataFrame:
        """The pictures that are nearly the same, as `schema.NEAR_DUPLICATES`.

        Raises:
            CorpusError: Nobody has looked for them, or files are not what `prepare` has written.
        """
        if NEAR_DUPLICATES not in self.manifest:
            raise CorpusError(
                f"{self.path}, in which nobody has looked for near duplicates",
                "a corpus that was prepared with --near-duplicates report or group",
                "Prepare it so",
            )
        self._compare_files(NEAR_DUPLICATES)
        return tables.parquet(spark, files.join(self.tables_path, NEAR_DUPLICATES), schema.NEAR_DUPLICATES)

    def _compare_images(self, spark: SparkSession, splits: Sequence[str]) -> None:
        """Refuse images that are not those of the manifest: in part lost, twice there, damaged or of another corpus."""
        # Without files the fingerprint tells corpora apart, which is of all splits together.
        wanted = list(splits) if "files" in self.manifest else list(self.manifest["images_of_split"])
        if self._compared.issuperset(wanted):
            return
        folders = [f"images/{schema.SPLIT}={split}" for split in wanted]
        for folder in folders:
            self._compare_files(folder)
        self._compare_files("images", strangers_only=True)
        with self._refusing_damage():
            images = images_of(spark, self.tables_path, *wanted)
            found = _numbers_of_images(images, self.image_size, self.kind)
        for split, folder in zip(wanted, folders, strict=True):
            self._compare_checksums(folder, found.checksums)
            self._compare_numbers(split, found)
        if "files" not in self.manifest and found.fingerprint != self.fingerprint:
            raise self._not_as_written(
                f"its images have the fingerprint {found.fingerprint[:12]}...", f"{self.fingerprint[:12]}..."
            )
        self._compared.update(wanted)

    def _compare_numbers(self, split: str, found: "_Numbers") -> None:
        of_species = {
            name: splits.get(split, 0) for name, splits in self.manifest["images_of_species"].items()
        }
        there_are = found.images_of_species(split)
        names = sorted(
            name for name in {*of_species, *there_are} if of_species.get(name, 0) != there_are.get(name, 0)
        )
        if names or found.of_split.get(split, 0) != self.num_images(split):
            shown = ", ".join(f"{there_are.get(name, 0):,} of {name}" for name in names[:EXAMPLES])
            wanted = ", ".join(f"{of_species.get(name, 0):,} of {name}" for name in names[:EXAMPLES])
            raise self._not_as_written(
                f"its split {split} has {found.of_split.get(split, 0):,} images ({shown})",
                f"{self.num_images(split):,} ({wanted})",
            )
        if found.misfits.get(split):
            height, width = self.image_size
            raise self._not_as_written(
                f"{found.misfits[split]:,} images of its split {split} have another size",
                f"{height}x{width} pixels",
            )

    def _compare_files(self, folder: str, *, strangers_only: bool = False) -> None:
        """Refuse files that are not those of the manifest, where it names them: Spark reads whatever there is."""
        if "files" not in self.manifest:
            return
        found, expected = _lengths(self.tables_path, folder), self._listed(folder)
        for path in sorted({*found, *expected}):
            if path not in expected:
                raise self._not_as_written(f"{path} has been added", "the files that the manifest names")
            if not strangers_only and found.get(path) != expected[path]["bytes"]:
                raise self._not_as_written(
                    f"{path} has {found[path]:,} bytes" if path in found else f"{path} is missing",
                    f"{expected[path]['bytes']:,} bytes",
                )

    def _compare_checksums(self, folder: str, found: Mapping[str, str]) -> None:
        """Refuse files with other rows than were written into them, where their checksums are known."""
        for path, expected in self._listed(folder).items():
            if found.get(path, _NO_ROWS) != expected["checksum"]:
                raise self._not_as_written(
                    f"{path} has other rows than were written into it", "its rows' checksum"
                )

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """What the manifest says of the files in a folder."""
        listed = self.manifest.get("files", {})
        return {path: of_file for path, of_file in listed.items() if path.startswith(f"{folder}/")}

    @contextlib.contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        """Name the file that Spark cannot read."""
        try:
            yield
        except (Py4JError, PySparkException) as error:
            unreadable = tables.unreadable_file(error)
            if unreadable is None:
                raise
            raise self._not_as_written(
                f"{unreadable[0]} is damaged ({unreadable[1]})", "a file that can be read"
            ) from None

    def _not_as_written(self, found: str, expected: str) -> CorpusError:
        return CorpusError(
            f"{self.path} is not as prepare has written it: {found}",
            f"{expected}, as {files.join(self.path, 'manifest.json')} says",
            "Restore the corpus from a copy, or run prepare again with --overwrite",
        )


def load(path: str) -> Corpus:
    """Open a corpus that `prepare` has written.

    Raises:
        CorpusError: There is none, it is half-written or damaged, or of a format that this version does not know.
    """
    manifest_path = files.join(path, "manifest.json")
    try:
        manifest = json.loads(files.read_text(manifest_path))
    except FileNotFoundError:
        missing = not files.exists(path)
        raise CorpusError(
            f"no folder {path}" if missing else f"{path}, which has no manifest.json",
            "a corpus that `prepare` has finished (the manifest is written last)",
            "Run prepare"
            if missing
            else "It is half-written or something else: run prepare again with this --corpus",
        ) from None
    except ValueError as error:
        raise CorpusError(
            f"{manifest_path}, which is not JSON ({error})",
            "the manifest that `prepare` wrote",
            "Run prepare again",
        ) from None
    known = [kind.manifest_format for kind in Kind]
    if not isinstance(manifest, dict) or manifest.get("format") not in known:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise CorpusError(
            f"{manifest_path} of format {found!r}",
            f"format {' or '.join(map(str, known))}",
            "Use the version of seedlings_spark that wrote it, or run prepare again",
        )
    damage = _damage(path, manifest)
    if damage:
        raise CorpusError(
            f"{manifest_path}, {damage}",
            "a corpus as `prepare` has written it",
            "Restore the file from a copy, or run prepare again with --overwrite",
        )
    return Corpus(path, manifest)


def _damage(path: str, manifest: Mapping[str, Any]) -> str:
    """What is wrong with a corpus whose manifest has the right format; empty if nothing is."""
    there_too = {key: kind for key, kind in _LATER_KEYS.items() if key in manifest}
    for key, kind in {**_MANIFEST_KEYS, **there_too}.items():
        if not isinstance(manifest.get(key), kind):
            return f"whose {key} is {manifest.get(key)!r}"
    listed, accepted, rejected = (manifest[key] for key in ("listed", "accepted", "rejected"))
    if listed != accepted + rejected or accepted != sum(manifest["images_of_split"].values()):
        return f"in which {accepted:,} accepted and {rejected:,} rejected files do not make {listed:,} listed"
    kind = manifest.get("kind", Kind.CLASSIFICATION.value)
    if kind not in list(Kind) or manifest["format"] != Kind(kind).manifest_format:
        return f"of format {manifest['format']}, whose kind is {kind!r}"
    if kind == Kind.REGRESSION and "numbers" not in manifest:
        return "which says nothing of its numbers"
    if not TABLES.fullmatch(manifest.get("tables", "tables-")):
        return f"whose tables are {manifest['tables']!r}"
    kept = manifest.get(KEPT_COLUMNS, {})
    try:
        # A type that is no text may name a class, which Spark would import.
        is_known = (
            all(isinstance(each, str) for each in kept.values()) and Corpus(path, manifest).kept_columns
        )
    except ValueError:
        is_known = None
    if kept and not is_known:
        return f"whose {KEPT_COLUMNS} are {kept}"
    place = tables_path(path, manifest)
    missing = [name for name in ("images", REJECTS) if not files.is_directory(files.join(place, name))]
    return f"beside which there is no {' and no '.join(missing)} folder" if missing else ""


def tables_path(path: str, manifest: Mapping[str, Any]) -> str:
    """Where the tables of a corpus are."""
    return files.join(path, manifest["tables"]) if "tables" in manifest else path


def corpus_fingerprint(images: DataFrame) -> str:
    """`fingerprint.corpus_fingerprint` of a table with content hashes and species, summed by Spark."""
    (row,) = images.agg(F.count("*"), *_fingerprint_words()).collect()
    return fingerprint.combine(int(row[0]), [int(value or 0) for value in row[1:]])


def _fingerprint_words() -> list[Column]:
    """Sums over images: what `fingerprint.combine` makes a corpus fingerprint of."""
    digest = F.sha2(F.concat_ws(" ", F.col(schema.CONTENT_HASH), F.col(schema.SPECIES)), 256)
    return [
        F.sum(F.conv(F.substring(digest, 8 * word + 1, 8), 16, 10).cast("long"))
        for word in range(fingerprint.FINGERPRINT_WORDS)
    ]


def summary(corpus: Corpus) -> list[tuple[str, object]]:
    """What `prepare` prints at its end."""
    manifest = corpus.manifest
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["rejected_by_reason"].items())
    splits = ", ".join(f"{count:,} {split}" for split, count in manifest["images_of_split"].items())
    sampled = f" (a sample of {manifest['found']:,})" if manifest.get("sample", 1) < 1 else ""
    return [
        ("corpus", display.Whole(corpus.path)),
        ("listed", f"{manifest['listed']:,}{sampled}"),
        ("accepted", f"{manifest['accepted']:,} {_labels_in_words(corpus)} ({splits})"),
        ("rejected", f"{manifest['rejected']:,}" + (f" ({reasons})" if reasons else "")),
        ("duplicates", f"{manifest['duplicates']:,}"),
        *_near_duplicates_in_words(manifest),
        ("fingerprint", corpus.fingerprint),
    ]


def _labels_in_words(corpus: Corpus) -> str:
    manifest = corpus.manifest
    if corpus.kind == Kind.REGRESSION:
        if not manifest["numbers"]:  # all were forgotten
            return "with numbers"
        least = min(each["least"] for each in manifest["numbers"].values())
        most = max(each["most"] for each in manifest["numbers"].values())
        return f"with {display.shown(manifest['number_column'])} from {least:g} to {most:g}"
    none = f", {manifest['without_species']:,} show none" if corpus.kind == Kind.MULTILABEL else ""
    return f"of {len(corpus.classes)} species{none}"


def _near_duplicates_in_words(manifest: Mapping[str, Any]) -> list[tuple[str, object]]:
    if NEAR_DUPLICATES not in manifest:
        return []
    said = manifest[NEAR_DUPLICATES]
    text = f"{said['pairs']:,} pairs, {said['in_two_splits']:,} of them in two splits"
    if said["of_two_species"]:
        two = "with two numbers" if Kind.of(manifest) == Kind.REGRESSION else "under two species"
        text += f", {said['of_two_species']:,} {two}"
    examples = [
        (
            "",
            display.Whole(
                f"{one['first_path']} ({one['first_species']}, {one['first_split']}) and"
                f" {one['second_path']} ({one['second_species']}, {one['second_split']})"
            ),
        )
        for one in said["examples"]
    ]
    return [("near duplicates", text), *examples]


def numbers_on_disk(
    spark: SparkSession,
    building: str,
    num_listed: int,
    splits: Sequence[str],
    size: tuple[int, int],
    kind: Kind,
) -> dict[str, Any]:
    """The numbers of what lies on disk now, checked against what was listed."""
    accepted = images_of(spark, building)
    found = _numbers_of_images(accepted, size, kind)
    reasons, checksums_of_rejects = _numbers_of_rejects(spark, building)
    checksums = {**found.checksums, **checksums_of_rejects}
    lengths = {
        path: n
        for folder in ("images", REJECTS, NEAR_DUPLICATES)
        for path, n in _lengths(building, folder).items()
    }
    of_species = {
        name: {split: found.images_of_species(split).get(name, 0) for split in splits}
        for name in sorted({name for name, _ in found.counts})
    }
    of_split = {name: found.of_split.get(name, 0) for name in splits}
    num_accepted, num_rejected = sum(of_split.values()), sum(reasons.values())
    if num_accepted + num_rejected != num_listed:
        raise CorpusError(
            f"{num_accepted:,} accepted and {num_rejected:,} rejected files",
            f"the {num_listed:,} that were listed, each exactly once",
            "This is a fault of the program or of the file system; nothing was published. Run prepare again",
        )
    return {
        "format": kind.manifest_format,
        **_about_labels(accepted, kind),
        "listed": num_listed,
        "accepted": num_accepted,
        "rejected": num_rejected,
        "rejected_by_reason": reasons,
        "duplicates": num_accepted - accepted.select(schema.CONTENT_HASH).distinct().count(),
        "images_of_species": of_species,
        "images_of_split": of_split,
        "fingerprint": found.fingerprint,
        "files": {
            path: {"bytes": length, "checksum": checksums.get(path, _NO_ROWS)}
            for path, length in lengths.items()
        },
    }


def _about_labels(images: DataFrame, kind: Kind) -> dict[str, Any]:
    """What a manifest says of labels that are no species, or not one."""
    if kind == Kind.CLASSIFICATION:
        return {}
    if kind == Kind.REGRESSION:
        return {"kind": kind.value, "numbers": _numbers_of_splits(images)}
    shows_none = F.col(schema.SPECIES) == schema.BETWEEN_SPECIES
    return {"kind": kind.value, "without_species": images.where(shows_none).count()}


def _numbers_of_splits(images: DataFrame) -> dict[str, dict[str, float]]:
    """Split -> mean, standard deviation, least and most of the numbers of its images.

    They are summed as whole multiples of 2^-40 of the largest: sums of floating-point numbers would depend on how the
    rows lie in partitions, and with them the bits of all that is trained.
    """
    value = schema.number_in(F.col(schema.SPECIES))
    (largest,) = images.agg(F.max(F.abs(value))).first() or (0.0,)
    unit = math.ldexp(1.0, max(math.frexp(largest or 0.0)[1] - 40, -1000))
    whole = F.round(value / F.lit(unit)).cast("decimal(20,0)")
    rows = images.groupBy(schema.SPLIT).agg(
        F.count("*"), F.sum(whole), F.sum(whole * whole), F.min(value), F.max(value)
    )
    found = {}
    for split, count, total, squares, least, most in rows.orderBy(schema.SPLIT).collect():
        total = int(total)
        spread = count * int(squares) - total * total
        found[split] = {
            "mean": total / count * unit,
            "deviation": math.sqrt(spread) / count * unit,
            "least": least,
            "most": most,
        }
    return found


@dataclass(frozen=True)
class _Numbers:
    """What one pass over images has counted.

    Args:
        counts: (species, split) -> images that show it.
        of_split: Split -> images.
        misfits: Split -> images that are not of the corpus' size.
        checksums: Path below the corpus -> `_checksum` of a file's rows.
        fingerprint: Fingerprint of all these images.
    """

    counts: Mapping[tuple[str, str], int]
    of_split: Mapping[str, int]
    misfits: Mapping[str, int]
    checksums: Mapping[str, str]
    fingerprint: str

    def images_of_species(self, split: str) -> dict[str, int]:
        return {name: count for (name, of), count in self.counts.items() if of == split}


def _numbers_of_images(images: DataFrame, size: tuple[int, int], kind: Kind) -> _Numbers:
    # There may be as many lists of species as images: these are counted name by name, apart from the rest. Numbers are
    # no species.
    whole = F.col(schema.SPECIES) if kind == Kind.CLASSIFICATION else F.lit("")
    height, width = size
    fits = (F.col(schema.HEIGHT) == height) & (F.col(schema.WIDTH) == width)
    fits &= F.length(schema.IMAGE) == height * width * 3
    rows = (
        images.groupBy(whole, schema.SPLIT, F.col("_metadata.file_name"))
        .agg(
            F.count("*"),
            F.sum(F.when(F.coalesce(fits, F.lit(False)), 0).otherwise(1)),
            F.sum(_row_hash(schema.CORPUS.names)),
            *_fingerprint_words(),
        )
        .collect()
    )
    counts: Counter[tuple[str, str]] = Counter()
    of_split: Counter[str] = Counter()
    misfits: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    words = [0] * fingerprint.FINGERPRINT_WORDS
    for species, split, file, count, num_misfits, total, *of_words in rows:
        counts[str(species), split] += int(count)
        of_split[split] += int(count)
        misfits[split] += int(num_misfits)
        sums[f"images/{schema.SPLIT}={split}/{file}"] += int(total)
        words = [word + int(value or 0) for word, value in zip(words, of_words, strict=True)]
    if kind != Kind.CLASSIFICATION:
        counts.clear()
    if kind == Kind.MULTILABEL:
        name = F.explode(schema.species_in(F.col(schema.SPECIES))).alias(schema.SPECIES)
        named = images.select(name, schema.SPLIT).groupBy(schema.SPECIES, schema.SPLIT).count().collect()
        counts = Counter({(str(species), split): int(count) for species, split, count in named})
    total = fingerprint.combine(sum(of_split.values()), words)
    return _Numbers(counts, of_split, misfits, _checksums(sums), total)


def _numbers_of_rejects(spark: SparkSession, path: str) -> tuple[dict[str, int], dict[str, str]]:
    """Rejects by reason, and the checksum of each file's rows."""
    rows = (
        rejects_of(spark, path)
        .groupBy(schema.REASON, F.col("_metadata.file_name"))
        .agg(F.count("*"), F.sum(_row_hash(schema.REJECTS.names)))
        .collect()
    )
    reasons: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for reason, file, count, total in rows:
        reasons[str(reason)] += int(count)
        sums[f"{REJECTS}/{file}"] += int(total)
    return dict(sorted(reasons.items())), _checksums(sums)


def _row_hash(columns: Sequence[str]) -> Column:
    """64 bits of all of a row, as a number that sums do not overflow; a null adds nothing to it.

    It finds what breaks, not what somebody forges.
    """
    return F.xxhash64(*columns).cast("decimal(20,0)")


def _checksums(sums: Mapping[str, int]) -> dict[str, str]:
    """Sums of `_row_hash`, whatever the order of the rows, as 16 hexadecimal digits each."""
    return {path: f"{total % 2**64:016x}" for path, total in sums.items()}


_NO_ROWS = f"{0:016x}"


def images_of(spark: SparkSession, path: str, *splits: str, kept: StructType | None = None) -> DataFrame:
    """The images of a corpus' folder, as they lie there, and the columns that are kept with them."""
    layout = StructType([*schema.CORPUS.fields, *(kept or ())])
    table = tables.parquet(spark, files.join(path, "images"), layout)
    if splits:
        table = table.where(F.col(schema.SPLIT).isin(*splits))
    return schema.with_content_hash(table.select(*map(schema.column, layout.names)))


def rejects_of(spark: SparkSession, path: str) -> DataFrame:
    """The rejects of a corpus' folder, as they lie there."""
    return tables.parquet(spark, files.join(path, REJECTS), schema.REJECTS).select(*schema.REJECTS.names)


def _lengths(path: str, folder: str) -> dict[str, int]:
    """Path below a corpus -> length, of the files in a folder of it that Spark reads."""
    below = files.join(path, folder)
    if not files.is_directory(below):
        return {}
    found = {f"{folder}{status.path[len(below) :]}": status.length for status in files.walk(below)}
    return {
        name: length
        for name, length in found.items()
        if not any(part.startswith((".", "_")) for part in name.split("/"))
    }
