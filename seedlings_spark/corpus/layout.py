"""Where the species stand: the folders' names, or a column of a table; and names that look alike."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import files, schema
from seedlings_spark.corpus import listings, references, tables
from seedlings_spark.errors import CorpusError, InputError

_FOLDERS = "one folder a species, as in plants/Maize/0001.png"
_TABLE = "a table with the columns path and species"
# Words in the names of folders that are the splits of a data set, and words beside them.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), schema.TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), schema.VALIDATION),
    **dict.fromkeys(("test", "testing", "holdout"), schema.TEST),
}
_BESIDE_SPLIT_WORDS = {"set", "data", "dataset", "images", "imgs", "split", "seg", "samples"}
# Letters of other alphabets that print as Latin ones: Cyrillic, then Greek.
_AS_LATIN = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0405\u0406\u0408"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",
    "ABEKMHOPCTYXSIJaeopcyxsijABEZHIKMNOPTYXo",
)
# Characters that take no or only white space without being of such a category.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"


def listing_of(
    spark: SparkSession, images: str
) -> tuple[DataFrame, tuple[str, ...], Sequence[listings.Listed]]:
    """What is to be prepared, as `schema.LISTING`, held by Spark so that it is listed once; its roots; the hidden."""
    hidden: list[listings.Listed] = []
    try:
        if files.exists(images) and (not files.is_directory(images) or _is_parquet(images)):
            listing, roots = _listing_of_table(spark, images)
            _refuse_look_alikes(listing, images)
            return listing, roots, hidden
        if files.is_directory(images):
            _refuse_splits(images)
        listing = listings.listing_table(spark, _visible(images, hidden)).persist()
    except InputError as error:
        raise CorpusError(error.found, f"{_FOLDERS}, or {_TABLE}", error.remedy) from None
    except OSError as error:
        raise CorpusError(
            f"{images}, which cannot be listed ({error})", _FOLDERS, "Check the folder's permissions"
        ) from None
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
    _refuse_look_alikes(listing, images)
    return listing, (images,), hidden


def _visible(images: str, hidden: list[listings.Listed]) -> Iterator[listings.Listed]:
    """The listing of a folder without what is hidden, which is put aside."""
    for entry in listings.walk(images, by_folder=True):
        if entry.is_hidden:
            hidden.append(entry)
        else:
            yield entry


def rejects_of_hidden(spark: SparkSession, hidden: Sequence[listings.Listed]) -> DataFrame:
    """What is hidden as rejects of `schema.DECODED`."""
    rows = [(one.path, None, None, None, None, "hidden", "list", one.error) for one in hidden]
    return spark.createDataFrame(rows, schema.DECODED)


def _refuse_splits(images: str) -> None:
    """Refuse folders of splits in place of species: they would become classes, and their species be lost."""
    folders = [
        name
        for name in files.list_names(images)
        if not listings.is_hidden_folder(name) and files.is_directory(files.join(images, name))
    ]
    split_of = {name: split for name in folders if (split := _split_of_folder(name))}
    given, num_splits = list(split_of), len(set(split_of.values()))
    with_species = [name for name in given if _has_folders(files.join(images, name))]
    if num_splits > 1 or with_species or (given and len(given) == len(folders)):
        raise CorpusError(
            f"{images} with the folder{'s' * (len(given) > 1)} {', '.join(given)}, which are splits and no species"
            + (f" ({with_species[0]} has folders of its own)" if with_species else ""),
            f"{_FOLDERS}; prepare deals the pictures to splits itself, by their content",
            "Merge these folders species by species, or give a table with the columns path and species as --images",
        )


def _split_of_folder(name: str) -> str | None:
    """The split that a folder is, by its name: `train`, `Test 1`, `training_set`, `val2017`."""
    words = set(re.findall(r"[a-z]+", name.casefold()))
    found = words & set(_SPLIT_WORDS)
    return _SPLIT_WORDS[min(found)] if found and words - found <= _BESIDE_SPLIT_WORDS else None


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


def _refuse_look_alikes(listing: DataFrame, images: str) -> None:
    species = [row[0] for row in listing.select(schema.SPECIES).distinct().dropna().collect()]
    if pair := look_alikes(species):
        raise CorpusError(
            f"{images} with two species that look alike, {pair[0]} and {pair[1]}",
            "names that a person can tell apart",
            "Give all pictures of a species one spelling of its name",
        )


def _is_parquet(images: str) -> bool:
    return images.endswith(".parquet") or "_SUCCESS" in files.list_names(images)


def _listing_of_table(spark: SparkSession, table: str) -> tuple[DataFrame, tuple[str, ...]]:
    rows = _table(spark, table)
    missing = [column for column in (schema.PATH, schema.SPECIES) if column not in rows.columns]
    if missing:
        raise CorpusError(
            f"{table} with the columns {', '.join(rows.columns)[:200]}",
            "the columns path and species",
            f"Add {' and '.join(missing)}; a relative path is looked up beside the table",
        )
    rows = rows.select(*(F.col(name).cast("string") for name in (schema.PATH, schema.SPECIES)))
    is_empty = F.coalesce(schema.PATH, F.lit("")) == ""
    (counts,) = rows.agg(F.count("*"), F.sum(is_empty.cast("int"))).collect()
    if counts[0] == 0 or counts[1]:
        raise CorpusError(
            f"{table} with {counts[1]} rows without a path" if counts[1] else f"{table} without a row",
            "a path and a species in every row",
            "Correct the table",
        )
    try:
        listing, roots = references.listing_of_paths(spark, rows, files.parent(table))
    except (InputError, OSError) as error:
        raise CorpusError(f"{table}: {error}", "paths of readable files", "Correct the table") from None
    return listing.persist(), roots


def _table(spark: SparkSession, table: str) -> DataFrame:
    name = files.name(table).lower()
    is_csv = name.endswith((".csv", ".csv.gz", ".txt"))
    if not (is_csv or name.endswith(".parquet") or files.is_directory(table)):
        raise CorpusError(
            f"{table}, which is neither a folder nor a .csv or .parquet table",
            f"{_FOLDERS}, or {_TABLE}",
            "Check --images",
        )
    try:
        return tables.read_table(spark, table, "csv" if is_csv else "parquet", _TABLE)
    except InputError as error:
        raise CorpusError(error.found, error.expected, error.remedy) from None
