"""Where species and splits stand: the folders' names, or columns of a table; and names that look alike."""

import contextlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DateType,
    NumericType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from seedlings_spark import files, schema
from seedlings_spark.corpus import archives, contents, listings, references, tables
from seedlings_spark.corpus.splits import GIVEN, GROUP, TIME, SplitRule
from seedlings_spark.errors import CorpusError, InputError, OptionError
from seedlings_spark.kinds import Kind

_MOST_FOLDERS = 100_000  # species' folders of archives, looked at for whether they are splits
_FOLDERS = "one folder a species, as in plants/Maize/0001.png"
_TABLE = "a table with the columns path and species"
# Letters of other alphabets that print as Latin ones: Cyrillic, then Greek.
_AS_LATIN = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0405\u0406\u0408"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",
    "ABEKMHOPCTYXSIJaeopcyxsijABEZHIKMNOPTYXo",
)
# Of each row the columns that a corpus keeps, and what their types may be.
KEPT = "seedlings_kept"
_KEPT_TYPES = (StringType, NumericType, BooleanType, DateType, TimestampType, TimestampNTZType)
# Characters that take no or only white space without being of such a category.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"


@dataclass(frozen=True)
class Source:
    """What is to be prepared.

    Args:
        listing: As `schema.LISTING`, held by Spark so that it is listed once.
        roots: What `decode_all` is given.
        rule: How it is split, with a policy that is not "auto".
        hidden: What is a system's or a program's own.
        split_of: Name of a folder of the root -> split, where these are splits.
        known: Path -> `GIVEN`, `GROUP` and `TIME`, as a table says, and `KEPT` where columns are kept; None where it
            says nothing.
        contents: As `listing`, with the files' bytes, where the source holds them.
        kind: Of its labels, in the column `species`: lists are there as `schema.BETWEEN_SPECIES` has them, numbers as
            text, as the table has it where `schema.number_in` finds none in it.
        kept: The columns that a corpus keeps, as they are in `KEPT`.
    """

    listing: DataFrame
    roots: tuple[str, ...]
    rule: SplitRule
    hidden: Sequence[listings.Listed] = ()
    split_of: Mapping[str, str] = field(default_factory=dict)
    known: DataFrame | None = None
    contents: DataFrame | None = None
    kind: Kind = Kind.CLASSIFICATION
    kept: StructType = field(default_factory=StructType)

    def num_found(self) -> int:
        """How many files there are, hidden ones too."""
        return self.listing.count() + len(self.hidden)

    def described(self, rows: DataFrame) -> DataFrame:
        """Rows with a path, with what is known of each besides: the columns of `known`."""
        if self.known is not None:
            rows = rows.join(self.known, schema.PATH, "left")
        else:
            rows = rows.withColumns(
                {
                    GIVEN: self._split_of_path(),
                    GROUP: F.lit(None).cast("string"),
                    TIME: F.lit(None).cast("double"),
                }
            )
        if not self.rule.group_from_path:
            return rows
        pattern = self.rule.group_from_path
        number = min(1, re.compile(pattern).groups)
        return rows.withColumn(GROUP, F.nullif(F.regexp_extract(schema.PATH, pattern, number), F.lit("")))

    def _split_of_path(self) -> Column:
        split = F.lit(None).cast("string")
        if not self.split_of:
            return split
        folder = F.substring_index(
            F.substr(F.col(schema.PATH), F.lit(len(self.roots[0].rstrip("/")) + 2)), "/", 1
        )
        for name, its in self.split_of.items():
            split = F.when(folder == name, F.lit(its)).otherwise(split)
        return split


@dataclass(frozen=True)
class TableFormat:
    """How a table holds images.

    Args:
        format: As Spark calls it; "" goes by the name.
        content_column: Name of the column of the files' bytes, or of images as Spark's source `image` reads them; ""
            where the table names files.
        label_separator: What stands between the names of several species in one cell; "" where a cell is one name. A
            column of lists needs none.
        number_column: Name of the column with a number for each picture, which stands in place of its species; "" where
            they have species.
        keep_columns: Names of further columns that a corpus keeps.
        keeps_missing: Whether some of these may be missing, as where a corpus grows from one that keeps them.
    """

    format: str = ""
    content_column: str = ""
    label_separator: str = ""
    number_column: str = ""
    keep_columns: tuple[str, ...] = ()
    keeps_missing: bool = False

    def __post_init__(self) -> None:
        names = [name.lower() for name in self.keep_columns]
        if own := [name for name in self.keep_columns if name.lower() in schema.CORPUS.names]:
            raise OptionError(
                f"--keep-columns {own[0]}",
                f"columns other than the corpus' own: {', '.join(schema.CORPUS.names)}",
                f"Leave out {own[0]}, or call the table's column otherwise",
            )
        if len(set(names)) < len(names):
            raise OptionError(
                f"--keep-columns {' '.join(self.keep_columns)}", "each name once, in any case", "Correct it"
            )


@contextlib.contextmanager
def found(
    spark: SparkSession, images: str, rule: SplitRule, table: TableFormat, max_bytes: int
) -> Iterator[Source]:
    """What is to be prepared of a folder or a table; what Spark holds of it is given free in the end.

    Raises:
        CorpusError: There is nothing, or what is there cannot be taken for species or splits.
        OptionError: A column is asked for, of a folder; or an expression is none.
    """
    _check_expression(rule.group_from_path)
    with contextlib.ExitStack() as held:
        is_table = bool(table.format or table.content_column) or _is_table(images)
        if archives.is_archive(images) or not is_table:
            _refuse_of_tables(table)
        if archives.is_archive(images):
            source = _of_archives(spark, images, rule, max_bytes, held)
        elif is_table:
            source = _of_table(spark, images, rule, table, held)
        else:
            source = _of_folder(spark, images, rule, held)
        if source.kind != Kind.REGRESSION:
            _refuse_look_alikes(source, images)
        yield source


def _held(table: DataFrame, held: contextlib.ExitStack) -> DataFrame:
    """A table that Spark computes once; a later one over the same files must not be given its rows."""
    held.callback(table.unpersist)
    return table.persist()


def _of_folder(spark: SparkSession, images: str, rule: SplitRule, held: contextlib.ExitStack) -> Source:
    hidden: list[listings.Listed] = []
    split_of: dict[str, str] = {}
    try:
        if files.is_directory(images):
            split_of = _given_splits(images)
        _refuse_columns(rule)
        visible = _visible(images, hidden, int(bool(split_of)))
        listing = _held(listings.listing_table(spark, visible), held)
    except InputError as error:
        raise CorpusError(error.found, f"{_FOLDERS}, or {_TABLE}", error.remedy) from None
    except OSError as error:
        raise _unlistable(images, error) from None
    (counts,) = listing.agg(F.count("*"), F.count(schema.SPECIES)).collect()
    if counts[0] == 0:
        raise CorpusError(
            f"{images} is empty" + (" but for hidden and system folders and files" if hidden else ""),
            _FOLDERS,
            "Check --images, and put each picture into a folder named for its species",
        )
    if counts[1] == 0:
        raise CorpusError(
            f"{images} has {counts[0]} files and no class folders",
            _FOLDERS,
            "Move each picture into a folder named for its species",
        )
    return Source(listing, (images,), rule.resolved(is_given=bool(split_of)), hidden, split_of)


def _check_expression(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise OptionError(
            f"--group-from-path {pattern!r} ({error})",
            "a regular expression",
            "Correct it, as in '/(plant_[0-9]+)_'",
        ) from None


def _refuse_columns(rule: SplitRule) -> None:
    for flag, column in (("--group-column", rule.group_column), ("--split-time", rule.time_column)):
        if column:
            groups = "; of a folder --group-from-path finds groups" if flag.startswith("--g") else ""
            raise _no_table(flag, column, groups)


def _refuse_of_tables(table: TableFormat) -> None:
    kept = () if table.keeps_missing else table.keep_columns
    asked = {
        "--label-separator": table.label_separator,
        "--number-column": table.number_column,
        "--keep-columns": " ".join(kept),
    }
    for flag, value in asked.items():
        if value:
            raise _no_table(flag, value)


def _no_table(flag: str, value: str, otherwise: str = "") -> OptionError:
    return OptionError(
        f"{flag} {value} with a folder of images, or an archive, where folders are the species",
        "a table as --images, whose columns say more of each",
        f"Give the table{otherwise}",
    )


def _visible(images: str, hidden: list[listings.Listed], depth: int) -> Iterator[listings.Listed]:
    """The listing of a folder without what is hidden, which is put aside."""
    for entry in listings.walk(images, by_folder=True, depth=depth):
        if entry.is_hidden:
            hidden.append(entry)
        else:
            yield entry


def rejects_of_hidden(spark: SparkSession, hidden: Sequence[listings.Listed]) -> DataFrame:
    """What is hidden as rejects of `schema.DECODED`."""
    rows = [(one.path, None, None, None, None, "hidden", "list", one.error) for one in hidden]
    return spark.createDataFrame(rows, schema.DECODED)


def _given_splits(images: str) -> dict[str, str]:
    """Folder -> split, where all folders of the root are splits, the training split among them; else empty.

    Raises:
        CorpusError: Some of them are, or they have no species in them: they would become species.
    """
    folders = [
        name
        for name in files.list_names(images)
        if not listings.is_hidden_folder(name) and files.is_directory(files.join(images, name))
    ]
    split_of = {name: split for name in folders if (split := listings.split_of_folder(name))}
    given, num_splits = list(split_of), len(set(split_of.values()))
    with_species = [name for name in given if _has_folders(files.join(images, name))]
    if num_splits > 1 and schema.TRAIN in split_of.values() and len(with_species) == len(folders):
        return split_of
    if num_splits > 1 or with_species or (given and len(given) == len(folders)):
        raise CorpusError(
            f"{images} with the folder{'s' * (len(given) > 1)} {', '.join(given)}, which are splits and no species"
            + (f" ({with_species[0]} has folders of its own)" if with_species else ""),
            f"{_FOLDERS}; or nothing but folders of splits, train among them, with the species' folders in each",
            "Put the species' folders into those of the splits, or give a table with the columns path, species and"
            " split as --images",
        )
    return {}


def _has_folders(folder: str) -> bool:
    return any(
        not listings.is_hidden_folder(name) and files.is_directory(files.join(folder, name))
        for name in files.list_names(folder)
    )


def look_alikes(names: Iterable[str]) -> tuple[str, str] | None:
    """Two different names that a person would take for one, escaped so that both can be told apart; None without.

    They differ in case, in white space, in invisible or composed characters, or in letters that print alike.
    """
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        other = seen.setdefault(_as_printed(name), name)
        if other != name:
            return ascii(other), ascii(name)
    return None


def _as_printed(name: str) -> str:
    """What two names have in common that look alike."""
    straight = re.sub("[\u2018\u2019\u02bc\u00b4`]", "'", name)
    letters = unicodedata.normalize("NFKC", straight).translate(_AS_LATIN)
    letters = "".join(char for char in letters if not _is_invisible(char)).casefold()
    dashes = ("-" if unicodedata.category(char) == "Pd" or char == "\u2212" else char for char in letters)
    return " ".join(unicodedata.normalize("NFKC", "".join(dashes)).split())


def _is_invisible(char: str) -> bool:
    is_mark = char in _INVISIBLE or "\ufe00" <= char <= "\ufe0f"
    return is_mark or (unicodedata.category(char) in ("Cf", "Cc") and not char.isspace())


def _refuse_look_alikes(source: Source, images: str) -> None:
    names = F.col(schema.SPECIES)
    if source.kind == Kind.MULTILABEL:
        names = F.explode(schema.species_in(names))
    species = [row[0] for row in source.listing.select(names.alias("name")).distinct().dropna().collect()]
    if pair := look_alikes(species):
        raise CorpusError(
            f"{images} with two species that look alike, {pair[0]} and {pair[1]}",
            "names that a person can tell apart",
            "Give all pictures of a species one spelling of its name",
        )


def _is_table(images: str) -> bool:
    try:
        if not files.exists(images):
            return False
        return (
            not files.is_directory(images)
            or images.endswith(".parquet")
            or files.exists(files.join(images, "_SUCCESS"))
        )
    except OSError as error:
        raise _unlistable(images, error) from None


def _unlistable(images: str, error: OSError) -> CorpusError:
    return CorpusError(
        f"{images}, which cannot be listed ({error})", _FOLDERS, "Check the folder's permissions"
    )


def _of_table(
    spark: SparkSession, table: str, rule: SplitRule, its: TableFormat, held: contextlib.ExitStack
) -> Source:
    rows = _table(spark, table, its.format)
    if its.content_column:
        rows = contents.with_path(rows, its.content_column)
    is_given = schema.SPLIT in rows.columns
    rule = rule.resolved(is_given=is_given)
    wanted = [schema.PATH, its.number_column or schema.SPECIES]
    wanted += filter(None, (rule.group_column, rule.time_column, its.content_column))
    tables.require_columns(
        rows, table, wanted, "; a relative path is looked up beside the table", CorpusError
    )
    kind, species = _labels(rows, table, its)
    kept = _kept(rows, table, its)
    rows = rows.select(
        F.col(schema.PATH).cast("string").alias(schema.PATH),
        species.alias(schema.SPECIES),
        _given_split(rows, table) if rule.policy == "given" else F.lit(None).cast("string").alias(GIVEN),
        (schema.column(rule.group_column) if rule.group_column else F.lit(None)).cast("string").alias(GROUP),
        _time(rows, rule.time_column, table).alias(TIME),
        *([F.struct(*map(schema.column, kept.names)).alias(KEPT)] if kept.names else []),
        *_content(rows, table, its.content_column),
    )
    is_empty = F.coalesce(schema.PATH, F.lit("")) == ""
    (counts,) = rows.agg(F.count("*"), F.sum(is_empty.cast("int"))).collect()
    if counts[0] == 0 or counts[1]:
        raise CorpusError(
            f"{table} with {counts[1]} rows without a path" if counts[1] else f"{table} without a row",
            "a path and a species in every row",
            "Correct the table",
        )
    if its.content_column:
        return _of_contents(rows, table, rule, held, kind, kept)
    try:
        named, roots = references.listing_of_given_paths(spark, rows, files.parent(table))
    except (InputError, OSError) as error:
        raise CorpusError(f"{table}: {error}", "paths of readable files", "Correct the table") from None
    named = _held(named, held)
    listing = named.select(*schema.LISTING.names).distinct()
    if not (rule.policy == "given" or rule.group_column or rule.time_column or kept.names):
        return Source(listing, roots, rule, kind=kind)
    said = rows.select(F.col(schema.PATH).alias("given"), *_known(kept)).distinct()
    known = said.join(named.select(schema.PATH, "given").distinct(), "given").drop("given").distinct()
    known = _held(known, held)
    _refuse_two_rows(known, table)
    return Source(listing, roots, rule, known=known, kind=kind, kept=kept)


def _known(kept: StructType) -> list[str]:
    """Columns of what a table says of its pictures."""
    return [GIVEN, GROUP, TIME, *([KEPT] if kept.names else [])]


def _kept(rows: DataFrame, table: str, its: TableFormat) -> StructType:
    """The columns of a table that a corpus keeps.

    Raises:
        CorpusError: One is missing, or is neither text nor a number, a truth value, a date or a time.
    """
    names = [name for name in its.keep_columns if not its.keeps_missing or name in rows.columns]
    tables.require_columns(rows, table, names, ", or leave it out of --keep-columns", CorpusError)
    kept = StructType([StructField(name, rows.schema[name].dataType) for name in names])
    for one in kept:
        if not isinstance(one.dataType, _KEPT_TYPES):
            raise CorpusError(
                f"{table} with a column {one.name} of type {one.dataType.simpleString()}",
                "text, numbers, truth values, dates or times",
                "Convert the column, or leave it out of --keep-columns",
            )
    return kept


def _labels(rows: DataFrame, table: str, its: TableFormat) -> tuple[Kind, Column]:
    """What the labels of a table are, and the column `species` that a corpus has of them.

    Raises:
        CorpusError: A column that cannot hold such labels.
    """
    if not its.number_column:
        return _species(rows, table, its.label_separator)
    kind, value = rows.schema[its.number_column].dataType, schema.column(its.number_column)
    if not isinstance(kind, NumericType | StringType):
        raise CorpusError(
            f"{table} with a column {its.number_column} of type {kind.simpleString()}",
            "a number in each row",
            "Correct the table, or name another --number-column",
        )
    text = F.nullif(F.trim(value.cast("string")), F.lit(""))
    # Of zero there is one only.
    return Kind.REGRESSION, F.coalesce((schema.number_in(text) + F.lit(0.0)).cast("string"), text)


def _species(rows: DataFrame, table: str, separator: str) -> tuple[Kind, Column]:
    """The same of names of species.

    Raises:
        CorpusError: Lists of something else than names, or names that cannot be told apart from a list.
    """
    kind, value = rows.schema[schema.SPECIES].dataType, F.col(schema.SPECIES)
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType):
        listed = value
    elif isinstance(kind, ArrayType):
        raise CorpusError(
            f"{table} with a column species of type {kind.simpleString()}",
            "a species' name in each row, or a list of names",
            "Correct the table",
        )
    elif separator:
        # What is empty says nothing; a list of none is written as the separator alone.
        text = F.nullif(F.trim(value.cast("string")), F.lit(""))
        listed = F.split(text, f"\\Q{separator}\\E")
    else:
        return Kind.CLASSIFICATION, value.cast("string")
    wrong = F.exists(listed, lambda name: name.isNull() | name.contains(schema.BETWEEN_SPECIES))
    bad = rows.where(wrong).select(F.to_json(F.struct(listed.alias(schema.SPECIES))))
    if count := bad.count():
        (first,) = bad.limit(1).collect()
        raise CorpusError(
            f"{table} with {count:,} rows whose species cannot be told, such as {first[0]}",
            f"lists of names, none of which is NULL or has a {schema.BETWEEN_SPECIES} in it",
            "Correct the table",
        )
    # Given `trim` itself, Spark would hand it each name's place in the list as what is to be trimmed.
    trimmed = F.transform(listed, lambda name: F.trim(name))
    names = F.filter(trimmed, lambda name: name != "")
    return Kind.MULTILABEL, schema.as_text(F.array_sort(F.array_distinct(names)))


def _of_archives(
    spark: SparkSession, images: str, rule: SplitRule, max_bytes: int, held: contextlib.ExitStack
) -> Source:
    _refuse_columns(rule)
    try:
        members, whole = archives.members_of(spark, images, max_bytes, by_folder=True)
    except (InputError, OSError) as error:
        raise CorpusError(f"{images}: {error}", "archives that can be read", "Check --images") from None
    members = _held(members, held)
    _refuse_layouts(members, images, rule)
    visible = members.where(~F.col(archives.HIDDEN))
    listing = visible.select(*schema.LISTING.names)
    (counts,) = visible.agg(F.count(schema.SPECIES), F.count(archives.SPLIT)).collect()
    if not counts[0]:
        raise CorpusError(
            f"{images} with no picture in a folder",
            "one folder a species in it, or a file .cls with the species beside each picture",
            "Unpack it, or pack the species' folders",
        )
    _refuse_twice(listing, images)
    hidden = [
        listings.Listed(row[0], row[1], -1, None, "a file of a system's or a program's own", is_hidden=True)
        for row in members.where(archives.HIDDEN).select(schema.PATH, schema.LENGTH).collect()
    ]
    bytes_ = whole.where(~F.col(archives.HIDDEN)).select(*schema.LISTING.names, schema.CONTENT)
    rule = rule.resolved(is_given=bool(counts[1]))
    nothing = F.lit(None)
    known = visible.select(
        schema.PATH,
        F.col(archives.SPLIT).alias(GIVEN),
        nothing.cast("string").alias(GROUP),
        nothing.cast("double").alias(TIME),
    )
    return Source(listing, (), rule, hidden, known=known, contents=bytes_)


def _refuse_layouts(members: DataFrame, images: str, rule: SplitRule) -> None:
    """Refuse archives whose splits would become species, or be dealt anew, and those that do not fit together.

    Raises:
        CorpusError: It is so.
    """
    found = members.where(~F.col(archives.HIDDEN) & F.col(schema.SPECIES).isNotNull())
    is_given = F.col(archives.SPLIT).isNotNull().alias("is_given")
    rows = (
        found.select(
            archives.archive_of(schema.PATH).alias("archive"), schema.SPECIES, archives.DEPTH, is_given
        )
        .distinct()
        .limit(_MOST_FOLDERS)
        .collect()
    )
    # Where files beside the pictures name the species, folders do not.
    by_folder = [row for row in rows if row[archives.DEPTH] is not None]
    archive_of_depth = {row[archives.DEPTH]: row["archive"] for row in by_folder}
    if len(archive_of_depth) > 1:
        places = " and ".join(
            f"in {depth} folders in {its}" for depth, its in sorted(archive_of_depth.items())
        )
        raise CorpusError(
            f"{images}, in which the species' folders lie {places}",
            "archives that are laid out alike",
            "Pack them again: the species' folders at the top of each",
        )
    if any(row["is_given"] for row in rows):
        return
    _refuse_splits(images, "folders", {str(row[schema.SPECIES]) for row in by_folder}, "Pack it so")
    if rule.policy in ("auto", "given"):
        remedy = "Pack it so; or deal the pictures of these archives anew with --split-policy hash"
        _refuse_splits(images, "archives", {str(row["archive"]) for row in rows}, remedy)


def _refuse_splits(images: str, what: str, names: set[str], remedy: str) -> None:
    split_of = {each: split for each in sorted(names) if (split := listings.split_of_folder(each))}
    if schema.TRAIN in split_of.values() and len(set(split_of.values())) > 1:
        raise CorpusError(
            f"{images} with the {what} {', '.join(split_of)}, which are splits and no species",
            "nothing but folders of splits, train among them, with the species' folders in each, in one archive",
            remedy,
        )


def _refuse_twice(rows: DataFrame, images: str) -> None:
    twice = rows.groupBy(schema.PATH).count().where("count > 1")
    if count := twice.count():
        (first,) = twice.orderBy(schema.PATH).limit(1).collect()
        raise CorpusError(
            f"{images}, which has {count:,} paths more than once, such as {first[0]} {first[1]} times",
            "each path once: it is an image's name in the corpus",
            "Remove the repeated ones",
        )


def _content(rows: DataFrame, table: str, column: str) -> list[Column]:
    try:
        return [contents.of_column(rows, column, table)] if column else []
    except InputError as error:
        raise CorpusError(error.found, error.expected, error.remedy) from None


def _of_contents(
    rows: DataFrame, table: str, rule: SplitRule, held: contextlib.ExitStack, kind: Kind, kept: StructType
) -> Source:
    """What is to be prepared of a table that holds the files' bytes."""
    _refuse_twice(rows, table)
    rows = rows.withColumns(
        {
            schema.LENGTH: F.lit(-1).cast("long"),
            schema.MODIFIED: F.lit(-1).cast("long"),
            schema.SPECIES: F.nullif(F.trim(schema.SPECIES), F.lit("")),
        }
    )
    unread = rows.withColumn(schema.DETAIL, F.lit(None).cast("string")).select(*schema.LISTING.names)
    missing = F.when(F.col(schema.CONTENT).isNull(), F.lit(contents.MISSING))
    whole = rows.withColumn(schema.DETAIL, missing).select(*schema.LISTING.names, schema.CONTENT)
    known = rows.select(schema.PATH, *_known(kept))
    return Source(_held(unread, held), (), rule, known=known, contents=whole, kind=kind, kept=kept)


def _given_split(rows: DataFrame, table: str) -> Column:
    """The split that a table's column says.

    Raises:
        CorpusError: It has other values.
    """
    value = F.lower(F.trim(F.col(schema.SPLIT).cast("string")))
    split = F.lit(None).cast("string")
    for word, its in listings.SPLIT_WORDS.items():
        split = F.when(value == word, F.lit(its)).otherwise(split)
    wrong = rows.where(split.isNull()).groupBy(F.col(schema.SPLIT).cast("string").alias(schema.SPLIT)).count()
    first = wrong.orderBy(F.desc("count"), schema.SPLIT).first()
    if first is not None:
        raise CorpusError(
            f"{table} with the split {first[0]!r} in {first[1]:,} rows",
            f"one of {', '.join(schema.SPLITS)} in the column split",
            "Correct the table, or deal the pictures anew with --split-policy hash",
        )
    return split.alias(GIVEN)


def _time(rows: DataFrame, column: str, table: str) -> Column:
    """A column as a number that grows with time: numbers as they are, dates and times in seconds.

    Raises:
        CorpusError: It has values that are neither.
    """
    if not column:
        return F.lit(None).cast("double")
    value = schema.column(column)
    kind = rows.schema[column].dataType
    if isinstance(kind, StringType):
        number, moment = value.try_cast("double"), F.try_to_timestamp(value).cast("double")
        # Numbers all, or times all: 2024 is a year beside 2023-12-31.
        (only_numbers,) = rows.agg(F.count(value) == F.count(number)).first() or (False,)
        seconds = number if only_numbers else moment
    else:
        seconds = (
            value.cast("double") if isinstance(kind, NumericType) else value.cast("timestamp").cast("double")
        )
    wrong = rows.where(seconds.isNull() | F.isnan(seconds)).select(value.cast("string").alias("value"))
    if count := wrong.count():
        (first,) = wrong.limit(1).collect()
        raise CorpusError(
            f"{table} with {count:,} rows without a time in the column {column}, such as {first[0]!r}",
            "a date, a time or a number in every row, all of one kind",
            "Correct the table, or name another --split-time",
        )
    return seconds


def _refuse_two_rows(known: DataFrame, table: str) -> None:
    """Refuse a file of which a table says two things."""
    twice = known.groupBy(schema.PATH).count().where("count > 1")
    if count := twice.count():
        (path,) = (
            known.join(twice.select(schema.PATH), schema.PATH)
            .select(schema.PATH)
            .orderBy(schema.PATH)
            .limit(1)
            .collect()
        )
        raise CorpusError(
            f"{table} with {count:,} files in rows that contradict each other, such as {path[0]}",
            "one split, group, time and value of each kept column for each file",
            "Correct the table",
        )


def _table(spark: SparkSession, table: str, kind: str) -> DataFrame:
    name = files.name(table).lower()
    is_csv = name.endswith((".csv", ".csv.gz", ".txt"))
    if not (kind or is_csv or name.endswith(".parquet") or files.is_directory(table)):
        raise CorpusError(
            f"{table}, which is neither a folder nor a .csv or .parquet table",
            f"{_FOLDERS}, or {_TABLE}",
            "Check --images",
        )
    try:
        return tables.read_table(spark, table, kind or ("csv" if is_csv else "parquet"), _TABLE)
    except InputError as error:
        raise CorpusError(error.found, error.expected, error.remedy) from None
