"""Names of paths, what a listing says of them, and what a path on a file system can do."""

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

BLOCK_SIZE = 1 << 20  # bytes: large against the cost of a call into the JVM, small against memory
LOCAL_SCHEME = "file"
# Scheme and authority. A scheme has a slash after its colon, so that a local file may be called "12:30.png".
_ROOT = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):(?=/)(?://[^/]*)?)?")
# How the name of a file begins that is being written.
TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class FileStatus:
    r"""A file that was listed.

    Args:
        path: The folder that was walked, a slash, and the path inside it. Of a name that is not UTF-8 the strange
            bytes stand as `\xNN`, its backslashes are doubled, and it has a second slash before it, so that it reads
            as no other file's path; such a file has an `error`, and its path cannot be opened.
        length: Bytes; 0 where it could not be found out.
        modified: Seconds since 1970-01-01 UTC; 0 where it could not be found out.
        error: Why the file, or the folder of that path, cannot be read; None if nothing speaks against it.
    """

    path: str
    length: int
    modified: float
    error: str | None = None


def join(base: str, *names: str) -> str:
    """A path below `base`.

    Args:
        base: Any path.
        names: Names, or relative paths with slashes in them, used as they are.

    Raises:
        ValueError: A name is empty, begins with a slash or has a `..` in it: it would not be below `base`.
    """
    root, rest = split(base)
    for each in names:
        if not each or each.startswith("/") or ".." in each.split("/"):
            raise ValueError(f"{each!r} is not a name below {base!r}")
    return root + "/".join([rest.rstrip("/"), *names]) if names else base


def name(path: str) -> str:
    """The last name of a path; empty for the root of a file system."""
    return split(path)[1].rstrip("/").rpartition("/")[2]


def parent(path: str) -> str:
    """The path of the folder that a path is in; the root's is the root, that of a bare name is `.`."""
    root, rest = split(path)
    head, slash, _ = rest.rstrip("/").rpartition("/")
    if slash or root or rest.startswith("/"):
        return root + (head.rstrip("/") or "/")
    return "."


class AnyPath(Protocol):
    """A path on a file system. What is promised is said by the functions above."""

    @property
    def renames(self) -> bool: ...
    def exists(self) -> bool: ...
    def is_directory(self) -> bool: ...
    def size(self) -> int: ...
    def list_names(self) -> list[str]: ...
    def status(self, path: str) -> FileStatus: ...
    def entries(self) -> "Iterator[Entry]": ...
    def identity(self) -> "Identity | None": ...
    def child(self, relative: str) -> "AnyPath": ...
    def make_directory(self) -> None: ...
    def delete(self) -> None: ...
    def read_blocks(self) -> Iterator[bytes]: ...
    def write_bytes(self, data: bytes) -> None: ...
    def create(self, data: bytes) -> None: ...
    def put(self, local: Path) -> None: ...
    def get(self, local: Path) -> None: ...


Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Entry:
    """One name in a folder. `identity` tells folders apart where links can lead back to one."""

    name: str
    is_directory: bool = False
    length: int = 0
    modified: float = 0.0
    error: str | None = None
    identity: Identity | None = None

    @property
    def order(self) -> str:
        """Sorts a folder where the paths of the files in it belong: "a b" before "a/b" before "ab"."""
        return printable(self.name) + "/" * self.is_directory


def printable(path: str) -> str:
    """A path as Spark's texts can hold it; see `FileStatus.path`."""
    if path.isascii():
        return path
    return "/".join(map(_printable_name, path.split("/")))


def _printable_name(name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        doubled = name.replace("\\", "\\\\")
        return "/" + doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name


def reason(error: OSError) -> str:
    """Why a path could not be used, in the system's words."""
    return error.strerror or str(error)


def split(path: str) -> tuple[str, str]:
    """A path as scheme with authority (may be empty), and the rest."""
    if not path:
        raise ValueError("a path is empty")
    match = _ROOT.match(path)
    end = match.end() if match else 0
    return path[:end], path[end:]


def temporary_name() -> str:
    """A free name for a file that is being written."""
    # Without the target's name: that may already be as long as a name can be.
    return f"{TEMPORARY}{uuid.uuid4().hex}"
