"""Which files there are below a folder: a listing of ours.

Spark's file sources silently drop zero-byte files, names that begin with `_` or `.` and dangling links.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from seedlings_spark import files, schema
from seedlings_spark.errors import InputError

# Listed paths that travel to the JVM at once.
_LISTING_CHUNK = 100_000
# What systems and programs put beside pictures.
_BRACES = re.compile(r"\{([^{}]*)\}")
_SYSTEM_FOLDER = re.compile(
    r"\..*|@eaDir|@tmp|@Recycle|@Recently-Snapshot|#recycle|#snapshot|__MACOSX|__pycache__|\$RECYCLE\.BIN|\$Extend"
    r"|Recycle[rd]|System Volume Information|found\.\d{3}|lost\+found|Network Trash Folder|Temporary Items|_temporary",
    re.IGNORECASE | re.DOTALL,
)
_SYSTEM_FILE = re.compile(r"(eh)?thumbs(_vista)?\.db|desktop\.ini|\.DS_Store|Icon\r", re.IGNORECASE)
# Of macOS' resource forks; of pictures that Android has in its bin or not written yet; of NFS, FUSE and Syncthing.
_SYSTEM_PREFIXES = ("._", ".trashed-", ".pending-", ".nfs", ".fuse_hidden", ".syncthing.", "~syncthing~")


# Words in the names of folders that are the splits of a data set, and words beside them.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), schema.TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), schema.VALIDATION),
    **dict.fromkeys(("test", "testing", "holdout"), schema.TEST),
}
_BESIDESPLIT_WORDS = {"set", "data", "dataset", "images", "imgs", "split", "seg", "samples"}


@dataclass(frozen=True)
class Listed:
    """One file of a listing.

    Args:
        path: The full URI.
        length: In bytes; -1 where the listing does not know it.
        modified: Milliseconds since 1970-01-01 UTC; -1 where the listing does not know it.
        species: By its folder, or None.
        error: Why it cannot be read, or None.
        is_hidden: Whether it is nobody's picture but a file of a system's or a program's own, or a folder of such.
    """

    path: str
    length: int
    modified: int
    species: str | None
    error: str | None
    is_hidden: bool = False


def walk(root: str, *, by_folder: bool, depth: int = 0) -> Iterator[Listed]:
    """Every file below a folder, at any depth, in the order of their names.

    Args:
        root: A path; the listing has the full URIs below it.
        by_folder: Whether a folder names a file's species. Hidden folders are then listed in place of what is in them.
        depth: Folders between the root and those of the species.

    Raises:
        InputError: There is no such folder.
    """
    root = files.qualify(root)
    if not files.is_directory(root):
        raise InputError(
            f"{root}, which is a file" if files.exists(root) else f"no folder {root}",
            "a folder of images",
            "Check --images; a path without a scheme is looked up where Spark's fs.defaultFS says",
        )
    if not by_folder:
        yield from map(listed, files.walk(root))
        return
    for status in files.walk(root, closed=is_hidden_folder):
        parts = status.path[len(root) :].strip("/").split("/")
        if is_hidden_folder(parts[-1]) and files.is_directory(status.path):
            yield _hidden(status, "a hidden or system folder, with all that is in it")
        elif is_hidden_file(parts[-1]):
            yield _hidden(status, "a file of a system's or a program's own")
        else:
            yield listed(status, parts[depth] if len(parts) > depth + 1 else None)


def is_hidden_folder(name: str) -> bool:
    """Whether a folder is a system's or a program's own: thumbnails, versions, bins."""
    return _SYSTEM_FOLDER.fullmatch(name) is not None


def split_of_folder(name: str) -> str | None:
    """The split that a folder is, by its name: `train`, `Test 1`, `training_set`, `val2017`."""
    words = set(re.findall(r"[a-z]+", name.casefold()))
    found = words & set(SPLIT_WORDS)
    return SPLIT_WORDS[min(found)] if found and words - found <= _BESIDESPLIT_WORDS else None


def is_hidden_file(name: str) -> bool:
    """Whether a file is a system's or a program's own."""
    return _SYSTEM_FILE.fullmatch(name) is not None or name.startswith(_SYSTEM_PREFIXES)


def _hidden(status: files.FileStatus, detail: str) -> Listed:
    return Listed(status.path, status.length, -1, None, detail, is_hidden=True)


def listed(status: files.FileStatus, species: str | None = None) -> Listed:
    """A file of a listing, from its status."""
    modified = int(status.modified * 1000) if status.modified else -1
    return Listed(status.path, status.length, modified, species, status.error)


def listing_table(spark: SparkSession, listing: Iterable[Listed]) -> DataFrame:
    """A listing as a table of `schema.LISTING`."""
    return as_table(spark, in_columns(listing))


def in_columns(listing: Iterable[Listed]) -> Iterator[pa.Table]:
    """A listing in parts of `schema.LISTING`, which take less memory than its entries."""
    entries = iter(listing)
    while chunk := list(islice(entries, _LISTING_CHUNK)):
        yield pa.table(
            {
                schema.PATH: pa.array([entry.path for entry in chunk], pa.string()),
                schema.LENGTH: pa.array([entry.length for entry in chunk], pa.int64()),
                schema.MODIFIED: pa.array([entry.modified for entry in chunk], pa.int64()),
                schema.SPECIES: pa.array([entry.species for entry in chunk], pa.string()),
                schema.DETAIL: pa.array([entry.error for entry in chunk], pa.string()),
            }
        )


def as_table(spark: SparkSession, parts: Iterable[pa.Table]) -> DataFrame:
    """Parts of a listing as one table of Spark's."""
    tables = list(parts)
    if not tables:
        return spark.createDataFrame([], schema.LISTING)
    return spark.createDataFrame(pa.concat_tables(tables), schema.LISTING)


def milliseconds(status: os.stat_result) -> int:
    """When a local file was last written, in milliseconds since 1970-01-01 UTC."""
    return int(status.st_mtime * 1000)


def topmost(folders: Iterable[str]) -> tuple[str, ...]:
    """These folders without those that lie in another of them."""
    kept: list[str] = []
    for folder in sorted({folder.rstrip("/") + "/" for folder in folders}):
        if not (kept and folder.startswith(kept[-1])):
            kept.append(folder)
    return tuple(folder.rstrip("/") if folder.count("/") > 3 else folder for folder in kept)


def matches(pattern: str) -> list[str]:
    """The full URIs that a glob stands for, in the order of their names."""
    return sorted({match for each in without_braces(pattern) for match in _matches(each)})


def without_braces(pattern: str) -> list[str]:
    """`a{b,c}` as `ab` and `ac`, as shells and Hadoop have it, and Python's own globs do not."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    alternatives = match[1].split(",")
    return [
        each
        for alternative in alternatives
        for each in without_braces(pattern[: match.start()] + alternative + pattern[match.end() :])
    ]


def _matches(pattern: str) -> list[str]:
    if files.is_local(pattern):
        local = str(files.local_path(pattern))
        # `Path.glob` has no way to take hidden files in.
        found = glob.glob(local, recursive=True, include_hidden=True)  # noqa: PTH207
        return [files.qualify(each) for each in found]
    return files.glob(pattern)
