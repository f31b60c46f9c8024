"""Pictures in zip and tar archives, read where they are: nothing is unpacked on a disk.

A zip, or a tar that is not compressed, on this machine's file system is read in parts, by as many tasks as there are
slots; any other archive by one task. On other file systems Spark reads the archive's bytes, at most 2 GB of them: many
archives of some hundred megabytes each (shards, as WebDataset writes them) are read in parallel.
"""

import io
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import BinaryType, BooleanType, IntegerType, StringType, StructField, StructType

from seedlings_spark import files, schema
from seedlings_spark.cluster import session
from seedlings_spark.corpus import listings
from seedlings_spark.corpus.remote import contents_of, not_local
from seedlings_spark.corpus.tables import arrow_schema
from seedlings_spark.errors import InputError
from seedlings_spark.files import paths

HIDDEN, SPLIT, DEPTH = "is_hidden", "split", "depth"
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
_ROWS = StructType(
    [
        *schema.LISTING.fields,
        StructField(HIDDEN, BooleanType(), False),
        StructField(SPLIT, StringType(), True),
        StructField(DEPTH, IntegerType(), True),
        StructField(schema.CONTENT, BinaryType(), True),
    ]
)
_MOST_BYTES = 2**31 - 1  # that a cell of Spark's can hold
# Bytes of one Arrow batch of contents that leaves a task, and rows.
_BATCH_BYTES, _BATCH_ROWS = 32 * 1024 * 1024, 1024
_IS_UTF8 = 0x800  # of a zip's flags: the name is
_LABEL = ".cls"  # of WebDataset: beside 0001.jpg stands 0001.cls with its class
_MAX_LABEL_BYTES = 1000
_NOT_READABLE = (
    OSError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    NotImplementedError,
    RuntimeError,
)


def is_archive(images: str) -> bool:
    """Whether a path or glob is one of archives, by its name."""
    return images.lower().endswith(_ENDINGS) and not files.is_directory(images)


def archive_of(path: str) -> Column:
    """The name of the archive that a member is in, without its ending, by a column of the members' paths."""
    endings = "|".join(map(re.escape, _ENDINGS))
    return F.regexp_extract(path, f"^.*?/([^/]+)(?i:{endings})/", 1)


def members_of(
    spark: SparkSession, images: str, max_bytes: int, *, by_folder: bool
) -> tuple[DataFrame, DataFrame]:
    """What is in the archives that a path or glob stands for.

    Args:
        spark: The session.
        images: A path or glob.
        max_bytes: Of a longer member no more is read than shows that it is longer.
        by_folder: Whether a folder, or a file `.cls` beside the picture, names its species; files of systems and
            programs are then marked as hidden.

    Returns:
        The listing with the columns `is_hidden`, `split` (where the archive's folders are splits) and `depth` (in how
        many folders those of the species lie), made without reading the members; and the same with the column
        `content`. A path is that of the archive, with that of the member below it. An archive that cannot be read has a
        row of its own that says why, behind those of what could be.

    Raises:
        InputError: There is no such archive.
    """
    found = [images] if files.exists(images) else listings.matches(images)
    if not found:
        raise InputError(
            f"no archive {images}",
            f"files that end in {', '.join(_ENDINGS)}",
            "Check --images, and quote a glob for the shell",
        )
    found = [files.qualify(each) for each in found]
    here = [each for each in found if files.is_local(each)]
    there = [each for each in found if not files.is_local(each)]
    slots = session.num_slots(spark)

    def rows(*, read: bool) -> DataFrame:
        unpack = partial(_unpack, _Reading(by_folder, max_bytes if read else None))
        parts = []
        if here:
            tasks = [
                (each, part, num_parts)
                for each in here
                for num_parts in [1 if each.lower().endswith("gz") else 2 * slots]
                for part in range(num_parts)
            ]
            table = spark.createDataFrame(tasks, "path string, part int, num_parts int")
            parts.append(table.repartition(len(tasks)).mapInArrow(unpack, _ROWS))
        if there:
            listing = listings.listing_table(spark, (listings.listed(files.status(each)) for each in there))
            roots = not_local(listings.topmost(files.parent(each) for each in there))
            contents = contents_of(spark, listing, roots, _MOST_BYTES)
            parts.append(contents.mapInArrow(unpack, _ROWS))
        return parts[0] if len(parts) == 1 else parts[0].union(parts[1])

    return rows(read=False).drop(schema.CONTENT), rows(read=True)


@dataclass(frozen=True)
class _Reading:
    """What is asked of archives: `max_bytes` is None where the members' bytes are not."""

    by_folder: bool
    max_bytes: int | None


@dataclass(frozen=True)
class _Member:
    """One file in an archive: `read` gives its first bytes; `mark` differs where its bytes do."""

    name: str
    length: int
    mark: int
    read: Callable[[int], bytes]
    error: str | None = None


def _unpack(reading: _Reading, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    size = 0
    for batch in batches:
        for archive in batch.to_pylist():
            for row in _rows_of(reading, archive):
                rows.append(row)
                size += len(row[schema.CONTENT] or b"")
                if size > _BATCH_BYTES or len(rows) >= _BATCH_ROWS:
                    yield pa.RecordBatch.from_pylist(rows, arrow_schema(_ROWS))
                    rows, size = [], 0
    if rows:
        yield pa.RecordBatch.from_pylist(rows, arrow_schema(_ROWS))


def _rows_of(reading: _Reading, archive: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `_ROWS` of an archive, or of a part of its members."""
    path = archive[schema.PATH]
    part, num_parts = archive.get("part", 0), archive.get("num_parts", 1)
    content = archive.get(schema.CONTENT)
    members: list[_Member] = []
    error = ""
    # A file that cannot be opened any more ends its task, which Spark tries again.
    with io.BytesIO(content) if content is not None else files.local_path(path).open("rb") as file:
        try:
            for member in _zip(file) if path.lower().endswith(".zip") else _tar(file):
                members.append(member)
        except _NOT_READABLE as cause:  # what came before is there
            if isinstance(cause, OSError) and num_parts > 1:
                raise  # other tasks may have read on: their parts would not fit
            error = str(cause) or type(cause).__name__
        yield from _rows_of_members(reading, path, members, part, num_parts)
    if error and part == 0:
        yield _row(path, -1, -1, None, f"not a whole archive: {error}"[:500])


def _rows_of_members(
    reading: _Reading, path: str, members: list[_Member], part: int, num_parts: int
) -> Iterator[dict[str, Any]]:
    if not reading.by_folder:
        _refuse_twice(path, members)
    folders = [each.name.split("/")[:-1] for each in members if not _is_hidden(each.name)]
    depth, split_of = _layout(folders)
    beside = [each for each in members if each.name.endswith(_LABEL)] if reading.by_folder else []
    labels = {each.name.removesuffix(_LABEL): label for each in beside if (label := _label(each))}
    if beside:
        members = [each for each in members if not each.name.endswith(_LABEL)]
    for member in members[part * len(members) // num_parts : (part + 1) * len(members) // num_parts]:
        *above, name = member.name.split("/")
        species = above[depth] if len(above) > depth else None
        base = "/".join([*above, name.partition(".")[0]])
        is_hidden = reading.by_folder and _is_hidden(member.name)
        row = _row(f"{path}/{member.name}", member.length, member.mark, None, member.error)
        row[HIDDEN] = is_hidden
        if reading.by_folder and not is_hidden:
            row[schema.SPECIES] = labels.get(base, species)
            row[SPLIT] = split_of.get(above[depth - 1]) if split_of and len(above) >= depth else None
            row[DEPTH] = depth if species is not None and base not in labels else None
        if reading.max_bytes is not None and member.error is None and not is_hidden:
            try:
                row[schema.CONTENT] = member.read(reading.max_bytes + 1)
            except _NOT_READABLE as cause:
                row[schema.DETAIL] = (str(cause) or type(cause).__name__)[:500]
        yield row


def _refuse_twice(path: str, members: list[_Member]) -> None:
    """Refuse an archive in which a member is twice: each path has one row in an output."""
    counts = Counter(each.name for each in members)
    if (most := max(counts.values(), default=1)) > 1:
        twice = min(name for name, count in counts.items() if count == most)
        raise InputError(
            f"{path}, which has {twice} {most} times",
            "each path once, since each has one row in the output",
            "Remove the repeated ones",
        )


def _layout(folders: list[list[str]]) -> tuple[int, dict[str, str]]:
    """In how many folders those of the species lie, and folder -> split where they lie in splits.

    There may be one folder around all others, as most programs make it. A file beside it, such as a README, has no
    species.

    Args:
        folders: Above each member, the outermost first.
    """
    for depth in (0, 1):
        names = {each[depth] for each in folders if len(each) > depth}
        split_of = {each: split for each in names if (split := listings.split_of_folder(each))}
        splits = set(split_of.values())
        if schema.TRAIN in splits and len(splits) > 1 and len(split_of) == len(names):
            return depth + 1, split_of
        if len(names) != 1 or not any(len(each) > 1 for each in folders):
            break
    return depth, {}


def _label(member: _Member) -> str:
    """What a file of a class says; "" where it cannot be read: its picture then has no species."""
    try:
        return "" if member.error else member.read(_MAX_LABEL_BYTES).decode("utf-8", "replace").strip()
    except _NOT_READABLE:
        return ""


def _is_hidden(name: str) -> bool:
    *above, name = name.split("/")
    return listings.is_hidden_file(name) or any(map(listings.is_hidden_folder, above))


def _row(path: str, length: int, mark: int, species: str | None, detail: str | None) -> dict[str, Any]:
    return {
        schema.PATH: path,
        schema.LENGTH: length,
        schema.MODIFIED: mark,
        schema.SPECIES: species,
        schema.DETAIL: detail,
        HIDDEN: False,
        SPLIT: None,
        DEPTH: None,
        schema.CONTENT: None,
    }


def _zip(file: IO[bytes]) -> Iterator[_Member]:
    archive = zipfile.ZipFile(file)

    def read(info: zipfile.ZipInfo, num_bytes: int) -> bytes:
        with archive.open(info) as member:
            return member.read(num_bytes)

    for info in archive.infolist():
        if not info.is_dir():
            error = "encrypted" if info.flag_bits & 1 else None
            yield _Member(_name_in_zip(info), info.file_size, info.CRC, partial(read, info), error)


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """A member's name: of UTF-8 also where the archive does not say so, as that of some programs."""
    if info.flag_bits & _IS_UTF8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _tar(file: IO[bytes]) -> Iterator[_Member]:
    archive = tarfile.open(fileobj=file)  # noqa: SIM115 - its file is closed by who opened it

    def read(info: tarfile.TarInfo, num_bytes: int) -> bytes:
        member = archive.extractfile(info)
        content = member.read(num_bytes) if member is not None else b""
        if len(content) < min(num_bytes, info.size):
            raise tarfile.ReadError(f"the archive ends {info.size - len(content):,} bytes before the member")
        return content

    for info in archive:
        if not info.isdir():
            error = None if info.isfile() else "a link or a device, no file"
            name = info.name.removeprefix("./")
            if (shown := paths.printable(name)) != name:
                name, error = shown.replace("//", "/").removeprefix("/"), "a name that is not UTF-8"
            yield _Member(name, info.size, int(info.mtime * 1000), partial(read, info), error)
