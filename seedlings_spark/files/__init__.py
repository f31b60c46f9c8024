"""Paths on any Hadoop file system; a file appears whole or not at all.

A path is a string: a local path, a `file:` URI, or the URI of any file system that Hadoop knows (hdfs://,
s3a://). One rule holds for all of them: names stand in a path as they are, and nothing in it is ever
percent-encoded or decoded, as in Hadoop's own `Path`. `file:///data/100%25 sure?.png` is the file that
is called `100%25 sure?.png`.

Local files are handled by Python, without a JVM; all others by the JVM of the running Spark application. A
path without a scheme means what Spark would read: a path on `fs.defaultFS` while an application
runs in this process, a local path otherwise. Executors run none, so they are given qualified paths.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from seedlings_spark.files.hadoop import HadoopPath, default_is_local, spark_context
from seedlings_spark.files.local import LocalPath
from seedlings_spark.files.paths import (
    BLOCK_SIZE,
    LOCAL_SCHEME,
    TEMPORARY,
    AnyPath,
    Entry,
    FileStatus,
    Identity,
    join,
    name,
    parent,
    printable,
    reason,
    split,
)
from seedlings_spark.files.stores import Store

__all__ = [
    "BLOCK_SIZE",
    "FileStatus",
    "Store",
    "children",
    "create",
    "delete",
    "exists",
    "get",
    "glob",
    "is_directory",
    "is_local",
    "join",
    "left_behind",
    "list_names",
    "local_path",
    "make_directory",
    "name",
    "parent",
    "put",
    "qualify",
    "read_blocks",
    "read_bytes",
    "read_text",
    "rename",
    "renames",
    "size",
    "status",
    "store_of",
    "tree_size",
    "walk",
    "write_bytes",
    "write_text",
]


def qualify(path: str) -> str:
    """The full URI under which Spark reads a path.

    Local paths become `file:///...`, made absolute, with `.` and `..` resolved by name (links are kept, as in
    Hadoop). Spark itself writes such URIs with one slash (`file:/...` in the column of its `binaryFile`
    source): qualify those before comparing. `local_path(qualify(p))` names the same file as `p`.

    Raises:
        ValueError: The path is empty or malformed.
    """
    local = _local(path)
    if local is not None:
        return f"{LOCAL_SCHEME}://{local}"
    if spark_context() is None:
        return path
    return HadoopPath(path).path


def is_local(path: str) -> bool:
    """Whether a path is on this machine's own file system (which may well be a shared mount)."""
    return _local(path) is not None


def local_path(path: str) -> Path:
    """The absolute local path of a local path or `file:` URI.

    Raises:
        ValueError: The path is on another file system.
    """
    local = _local(path)
    if local is None:
        raise ValueError(f"{path} is not on the local file system; copy it with `get` first")
    return local


def exists(path: str) -> bool:
    """Whether there is a file or folder; False for a dangling link."""
    return _at(path).exists()


def is_directory(path: str) -> bool:
    """Whether there is a folder, or a link to one."""
    return _at(path).is_directory()


def size(path: str) -> int:
    """The length of a file in bytes.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
    """
    return _at(path).size()


def list_names(directory: str) -> list[str]:
    """The names in a folder, hidden ones too, in the order of their code points.

    A missing folder is an error, and not an empty list: a mistyped path must not look like "nothing to do".

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """
    return _at(directory).list_names()


def walk(directory: str, *, closed: Callable[[str], bool] = lambda name: False) -> Iterator[FileStatus]:
    """Every file below a folder, at any depth, in the order of the paths' code points.

    Nothing is left out for its name (hidden files, names beginning with `_`) or its length (zero bytes).
    Links are followed, except one that leads back into a folder which is being walked: its files are
    listed already. What cannot be used is listed with an `error`: dangling links, files and folders
    without permission, names that are not UTF-8 (no Spark string can hold one), pipes and devices.

    Memory holds the listing of one folder at a time, and of those that it is in. Files that come or go
    meanwhile may or may not be seen. Outside of the local file system nobody looks whether the files
    may be read, and 10,000 of them take 2 s; of S3 the folders in it are listed at once, 100,000 files in some seconds.

    Args:
        directory: The folder.
        closed: Whether a folder of this name is not to be entered: it is then listed itself, without an error.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
        OSError: The folder itself cannot be listed.
    """
    place = _at(directory)
    store = store_of(directory)
    if store is not None and place.is_directory():
        return store.walk(directory, closed)
    return _walk(place, directory, list(place.entries()), place.identity(), closed)


def store_of(path: str) -> Store | None:
    """The bucket that a path is in, as a process without a JVM reaches it; None where only Hadoop can."""
    if not split(path)[0].lower().startswith("s3a:"):
        return None
    return HadoopPath(path).store()


def tree_size(path: str) -> int:
    """Bytes of a file, or of all files below a folder; what cannot be read counts nothing."""
    return sum(each.length for each in walk(path)) if is_directory(path) else size(path)


def left_behind(directory: str) -> list[str]:
    """What writers that died in a folder have left half-written in it, where nobody is writing to it now."""
    names = list_names(directory) if is_directory(directory) else []
    return [join(directory, name) for name in names if name.startswith(TEMPORARY)]


def children(directory: str) -> Iterator[FileStatus]:
    """What is in a folder itself, as `walk` says it of files; a folder has the `error` that it is one.

    It is given as the file system tells it, so that somebody can see that this still answers.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """
    for entry in _at(directory).entries():
        path = join(directory, entry.name)
        shown = printable(path)
        error = "a folder" if entry.is_directory else entry.error
        error = error if shown == path else "the name is not UTF-8"
        yield FileStatus(shown, entry.length, entry.modified, error)


def status(path: str) -> FileStatus:
    """What `walk` would say of a file, or of a link to one.

    Raises:
        FileNotFoundError: There is no such file.
    """
    place = _at(path)
    return place.status(path)


def glob(pattern: str) -> list[str]:
    """The paths on a file system of Hadoop's, not the local one, that match a pattern of Hadoop's; in no order."""
    return HadoopPath(pattern).glob(pattern)


def make_directory(path: str) -> None:
    """Make a folder and those that it is in; one that exists is fine.

    Raises:
        FileExistsError: There is a file of that name.
    """
    _at(path).make_directory()


def delete(path: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing there is fine. A link goes, not its target.

    Raises:
        ValueError: The path is the root of a file system.
    """
    if not name(qualify(path)):
        raise ValueError(f"{path!r} is the root of a file system and will not be deleted")
    _at(path).delete()


def rename(source: str, target: str) -> None:
    """Give a file or folder another name on the same file system, at once, never over anything that exists.

    This is how a folder is published: of several that rename to one target, one succeeds. Where nothing `renames`,
    as on an object store, it is a copy, and not at once. A local file is for an instant found under both names. Two
    *empty* local folders renamed to one target at the same instant can both succeed.

    Raises:
        FileNotFoundError: There is no source, or no folder for the target to be in.
        FileExistsError: There is something at the target, be it an empty folder.
    """
    source_place, target_place = _at(source), _at(target)
    if isinstance(source_place, LocalPath) and isinstance(target_place, LocalPath):
        source_place.rename(target_place)
        return
    if isinstance(source_place, HadoopPath) and isinstance(target_place, HadoopPath):
        source_place.rename(target_place)
        return
    raise OSError(errno.EXDEV, "a rename cannot cross file systems", source, None, target)


def renames(path: str) -> bool:
    """Whether files and folders take another name at once there; on an object store (s3a://, gs://) they do not."""
    return _at(path).renames


def read_bytes(path: str) -> bytes:
    """All bytes of a file.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
    """
    return b"".join(read_blocks(path))


def read_blocks(path: str) -> Iterator[bytes]:
    """The bytes of a file in blocks of at most `BLOCK_SIZE`, for files that need not fit in memory.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
    """
    return _at(path).read_blocks()


def read_text(path: str) -> str:
    """The text of a UTF-8 file, line ends as they are."""
    return read_bytes(path).decode("utf-8")


def write_bytes(path: str, data: bytes) -> None:
    """Write a file in one piece, in place of one that exists; the folders that it is in are made.

    The bytes go to a hidden file in the same folder (`.tmp-` and a unique number) that is flushed to disk
    and then takes the name, so that a reader sees the old bytes or the new, and a crash leaves the old. An object store
    does that by itself. Of two writers the last wins. A link at `path` is replaced, not followed.

    Raises:
        IsADirectoryError: There is a folder of that name (another OSError outside of the local file system).
    """
    _at(path).write_bytes(data)


def create(path: str, data: bytes) -> None:
    """Write a file in one piece where there is none: of several that do so at once, one succeeds.

    On an object store this is one request with the condition `If-None-Match: *`, which the store itself decides on.

    Raises:
        FileExistsError: There is something of that name.
    """
    _at(path).create(data)


def write_text(path: str, text: str) -> None:
    """Write a UTF-8 file in one piece, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def put(local: Path, path: str) -> None:
    """Copy a local file or folder to any path, where it appears whole.

    A file takes the place of one that exists. A folder does not: its target must be free. On an object store a folder
    appears file by file.

    Raises:
        FileNotFoundError: There is nothing at `local`.
        FileExistsError: There is something at the target of a folder.
    """
    if local.is_dir() and exists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    _at(path).put(local)


def get(path: str, local: Path) -> None:
    """Copy a file or folder from any path to a local one, where it appears whole; otherwise as `put`."""
    if is_directory(path) and os.path.lexists(local):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(local))
    _at(path).get(local)


def _walk(
    root: AnyPath,
    base: str,
    entries: Sequence[Entry],
    identity: Identity | None,
    closed: Callable[[str], bool],
) -> Iterator[FileStatus]:
    # A stack of our own: folders can be nested deeper than Python's calls.
    stack = [("", iter(sorted(entries, key=lambda entry: entry.order)), identity)]
    while stack:
        prefix, remaining, _ = stack[-1]
        entry = next(remaining, None)
        if entry is None:
            stack.pop()
            continue
        relative = prefix + entry.name
        path = join(base, relative)
        error = entry.error
        if entry.is_directory and not closed(entry.name):
            if entry.identity is not None and any(entry.identity == above for _, _, above in stack):
                continue
            try:
                children = sorted(root.child(relative).entries(), key=lambda child: child.order)
            except OSError as cause:
                error = reason(cause)
            else:
                stack.append((relative + "/", iter(children), entry.identity))
                continue
        shown = printable(path)
        if shown != path:
            error = "the name is not UTF-8" + (f"; {error}" if error else "")
        yield FileStatus(shown, entry.length, entry.modified, error)


def _local(path: str) -> Path | None:
    """The absolute local path, or None if the path is on another file system."""
    root, rest = split(path)
    scheme = root.partition(":")[0].lower()
    if scheme not in ("", LOCAL_SCHEME):
        return None
    if path.lower().startswith("file:") and not rest.startswith("/"):
        raise ValueError(f"{path!r} is not a file URI, expected file:///absolute/path")
    if scheme and root.partition("//")[2] not in ("", "localhost"):
        raise ValueError(f"{path!r} names another machine, expected file:///absolute/path")
    if not scheme and not default_is_local():
        return None
    # POSIX leaves two leading slashes alone; Hadoop would take what follows them for a host.
    return Path(os.path.normpath(Path(re.sub("^/+", "/", rest)).absolute()))


def _at(path: str) -> AnyPath:
    local = _local(path)
    return HadoopPath(path) if local is None else LocalPath(local)
