"""Paths on any Hadoop file system; a file appears whole or not at all.

A path is a string: a local path, a `file:` URI, or the URI of any file system that Hadoop knows (hdfs://,
s3a://). One rule holds for all of them: names stand in a path as they are, and nothing in it is ever
percent-encoded or decoded, as in Hadoop's own `Path`. `file:///data/100%25 sure?.png` is the file that
is called `100%25 sure?.png`.

Local files are handled by Python, without a JVM; all others by the JVM of the running Spark application. A
path without a scheme means what Spark would read: a path on `fs.defaultFS` while an application
runs in this process, a local path otherwise. Executors run none, so they are given qualified paths.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from seedlings_spark.errors import ClusterError

BLOCK_SIZE = 1 << 20  # bytes: large against the cost of a call into the JVM, small against memory

_LOCAL_SCHEME = "file"
# Scheme and authority. A scheme has a slash after its colon, so that a local file may be called "12:30.png".
_ROOT = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):(?=/)(?://[^/]*)?)?")

# How the name of a file begins that is being written.
_TEMPORARY = ".tmp-"


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
        return f"{_LOCAL_SCHEME}://{local}"
    if _context() is None:
        return path
    return _HadoopPlace(path).path


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


def join(base: str, *names: str) -> str:
    """A path below `base`.

    Args:
        base: Any path.
        names: Names, or relative paths with slashes in them, used as they are.

    Raises:
        ValueError: A name is empty, begins with a slash or has a `..` in it: it would not be below `base`.
    """
    root, rest = _split(base)
    for each in names:
        if not each or each.startswith("/") or ".." in each.split("/"):
            raise ValueError(f"{each!r} is not a name below {base!r}")
    return root + "/".join([rest.rstrip("/"), *names]) if names else base


def name(path: str) -> str:
    """The last name of a path; empty for the root of a file system."""
    return _split(path)[1].rstrip("/").rpartition("/")[2]


def parent(path: str) -> str:
    """The path of the folder that a path is in; the root's is the root, that of a bare name is `.`."""
    root, rest = _split(path)
    head, slash, _ = rest.rstrip("/").rpartition("/")
    if slash or root or rest.startswith("/"):
        return root + (head.rstrip("/") or "/")
    return "."


def exists(path: str) -> bool:
    """Whether there is a file or folder; False for a dangling link."""
    return _place(path).exists()


def is_directory(path: str) -> bool:
    """Whether there is a folder, or a link to one."""
    return _place(path).is_directory()


def size(path: str) -> int:
    """The length of a file in bytes.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
    """
    return _place(path).size()


def list_names(directory: str) -> list[str]:
    """The names in a folder, hidden ones too, in the order of their code points.

    A missing folder is an error, and not an empty list: a mistyped path must not look like "nothing to do".

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """
    return _place(directory).list_names()


def walk(directory: str, *, closed: Callable[[str], bool] = lambda name: False) -> Iterator[FileStatus]:
    """Every file below a folder, at any depth, in the order of the paths' code points.

    Nothing is left out for its name (hidden files, names beginning with `_`) or its length (zero bytes).
    Links are followed, except one that leads back into a folder which is being walked: its files are
    listed already. What cannot be used is listed with an `error`: dangling links, files and folders
    without permission, names that are not UTF-8 (no Spark string can hold one), pipes and devices.

    Memory holds the listing of one folder at a time, and of those that it is in. Files that come or go
    meanwhile may or may not be seen. Outside of the local file system nobody looks whether the files
    may be read, and 10,000 of them take 2 s.

    Args:
        directory: The folder.
        closed: Whether a folder of this name is not to be entered: it is then listed itself, without an error.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
        OSError: The folder itself cannot be listed.
    """
    place = _place(directory)
    return _walk(place, directory, list(place.entries()), place.identity(), closed)


def tree_size(path: str) -> int:
    """Bytes of a file, or of all files below a folder; what cannot be read counts nothing."""
    return sum(each.length for each in walk(path)) if is_directory(path) else size(path)


def left_behind(directory: str) -> list[str]:
    """What writers that died in a folder have left half-written in it, where nobody is writing to it now."""
    names = list_names(directory) if is_directory(directory) else []
    return [join(directory, name) for name in names if name.startswith(_TEMPORARY)]


def children(directory: str) -> Iterator[FileStatus]:
    """What is in a folder itself, as `walk` says it of files; a folder has the `error` that it is one.

    It is given as the file system tells it, so that somebody can see that this still answers.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """
    for entry in _place(directory).entries():
        path = join(directory, entry.name)
        shown = _printable(path)
        error = "a folder" if entry.is_directory else entry.error
        error = error if shown == path else "the name is not UTF-8"
        yield FileStatus(shown, entry.length, entry.modified, error)


def status(path: str) -> FileStatus:
    """What `walk` would say of a file, or of a link to one.

    Raises:
        FileNotFoundError: There is no such file.
    """
    place = _place(path)
    return place.status(path)


def glob(pattern: str) -> list[str]:
    """The paths on a file system of Hadoop's, not the local one, that match a pattern of Hadoop's; in no order."""
    return _HadoopPlace(pattern).glob(pattern)


def make_directory(path: str) -> None:
    """Make a folder and those that it is in; one that exists is fine.

    Raises:
        FileExistsError: There is a file of that name.
    """
    _place(path).make_directory()


def delete(path: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing there is fine. A link goes, not its target.

    Raises:
        ValueError: The path is the root of a file system.
    """
    if not name(qualify(path)):
        raise ValueError(f"{path!r} is the root of a file system and will not be deleted")
    _place(path).delete()


def rename(source: str, target: str) -> None:
    """Give a file or folder another name on the same file system, at once, never over anything that exists.

    This is how a folder is published: of several that rename to one target, one succeeds. Object stores
    (s3a://) have no such rename; there it is a copy, and not atomic. A local file is for an instant found
    under both names. Two *empty* local folders renamed to one target at the same instant can both succeed.

    Raises:
        FileNotFoundError: There is no source, or no folder for the target to be in.
        FileExistsError: There is something at the target, be it an empty folder.
    """
    source_place, target_place = _place(source), _place(target)
    if isinstance(source_place, _LocalPlace) and isinstance(target_place, _LocalPlace):
        source_place.rename(target_place)
        return
    if isinstance(source_place, _HadoopPlace) and isinstance(target_place, _HadoopPlace):
        source_place.rename(target_place)
        return
    raise OSError(errno.EXDEV, "a rename cannot cross file systems", source, None, target)


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
    return _place(path).read_blocks()


def read_text(path: str) -> str:
    """The text of a UTF-8 file, line ends as they are."""
    return read_bytes(path).decode("utf-8")


def write_bytes(path: str, data: bytes) -> None:
    """Write a file in one piece, in place of one that exists; the folders that it is in are made.

    The bytes go to a hidden file in the same folder (`.tmp-` and a unique number) that is flushed to disk
    and then takes the name, so that a reader sees the old bytes or the new, and a crash leaves the old. Of
    two writers the last wins. A link at `path` is replaced, not followed.

    Raises:
        IsADirectoryError: There is a folder of that name (another OSError outside of the local file system).
    """
    _place(path).write_bytes(data)


def write_text(path: str, text: str) -> None:
    """Write a UTF-8 file in one piece, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def put(local: Path, path: str) -> None:
    """Copy a local file or folder to any path, where it appears whole.

    A file takes the place of one that exists. A folder does not: its target must be free.

    Raises:
        FileNotFoundError: There is nothing at `local`.
        FileExistsError: There is something at the target of a folder.
    """
    if local.is_dir() and exists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    _place(path).put(local)


def get(path: str, local: Path) -> None:
    """Copy a file or folder from any path to a local one, where it appears whole; otherwise as `put`."""
    if is_directory(path) and os.path.lexists(local):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(local))
    _place(path).get(local)


class _Place(Protocol):
    """A path on a file system. What is promised is said by the functions above."""

    def exists(self) -> bool: ...
    def is_directory(self) -> bool: ...
    def size(self) -> int: ...
    def list_names(self) -> list[str]: ...
    def status(self, path: str) -> FileStatus: ...
    def entries(self) -> "Iterator[_Entry]": ...
    def identity(self) -> "_Identity | None": ...
    def child(self, relative: str) -> "_Place": ...
    def make_directory(self) -> None: ...
    def delete(self) -> None: ...
    def read_blocks(self) -> Iterator[bytes]: ...
    def write_bytes(self, data: bytes) -> None: ...
    def put(self, local: Path) -> None: ...
    def get(self, local: Path) -> None: ...


_Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class _Entry:
    """One name in a folder. `identity` tells folders apart where links can lead back to one."""

    name: str
    is_directory: bool = False
    length: int = 0
    modified: float = 0.0
    error: str | None = None
    identity: _Identity | None = None

    @property
    def order(self) -> str:
        """Sorts a folder where the paths of the files in it belong: "a b" before "a/b" before "ab"."""
        return _printable(self.name) + "/" * self.is_directory


def _walk(
    root: _Place,
    base: str,
    entries: Sequence[_Entry],
    identity: _Identity | None,
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
                error = _reason(cause)
            else:
                stack.append((relative + "/", iter(children), entry.identity))
                continue
        shown = _printable(path)
        if shown != path:
            error = "the name is not UTF-8" + (f"; {error}" if error else "")
        yield FileStatus(shown, entry.length, entry.modified, error)


def _printable(path: str) -> str:
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


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _split(path: str) -> tuple[str, str]:
    """A path as scheme with authority (may be empty), and the rest."""
    if not path:
        raise ValueError("a path is empty")
    match = _ROOT.match(path)
    assert match is not None  # the pattern matches nothing, too
    return match.group(), path[match.end() :]


def _local(path: str) -> Path | None:
    """The absolute local path, or None if the path is on another file system."""
    root, rest = _split(path)
    scheme = root.partition(":")[0].lower()
    if scheme not in ("", _LOCAL_SCHEME):
        return None
    if path.lower().startswith("file:") and not rest.startswith("/"):
        raise ValueError(f"{path!r} is not a file URI, expected file:///absolute/path")
    if scheme and root.partition("//")[2] not in ("", "localhost"):
        raise ValueError(f"{path!r} names another machine, expected file:///absolute/path")
    if not scheme and not _default_is_local():
        return None
    # POSIX leaves two leading slashes alone; Hadoop would take what follows them for a host.
    return Path(os.path.normpath(Path(re.sub("^/+", "/", rest)).absolute()))


def _place(path: str) -> _Place:
    local = _local(path)
    return _HadoopPlace(path) if local is None else _LocalPlace(local)


def _temporary_name() -> str:
    # Without the target's name: that may already be as long as a name can be.
    return f"{_TEMPORARY}{uuid.uuid4().hex}"


class _LocalPlace:
    """A path on this machine's file system, by Python.

    Hadoop's LocalFileSystem keeps checksums of a file `name` in `.name.crc` beside it, and refuses to read a
    file that does not match them. So those of the old file go before a new one takes its place: a file
    without checksums is read unchecked. Before, because a crash in between must leave a readable file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        return self._path.exists()

    def is_directory(self) -> bool:
        return self._path.is_dir()

    def size(self) -> int:
        status = self._path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._path))
        return status.st_size

    def list_names(self) -> list[str]:
        return sorted(child.name for child in self._path.iterdir())

    def child(self, relative: str) -> "_LocalPlace":
        return _LocalPlace(self._path / relative)

    def identity(self) -> _Identity | None:
        status = self._path.stat()
        return status.st_dev, status.st_ino

    def entries(self) -> Iterator[_Entry]:
        with os.scandir(self._path) as found:
            yield from map(self._entry, found)

    def status(self, path: str) -> FileStatus:
        shown = _printable(path)
        if not self._path.is_symlink():
            self._path.stat()  # for a file that is missing
        entry = self._entry(self._path)
        error = entry.error if shown == path else "the name is not UTF-8"
        return FileStatus(shown, entry.length, entry.modified, error)

    @staticmethod
    def _entry(found: "os.DirEntry[str] | Path") -> _Entry:
        try:
            status = found.stat()
        except FileNotFoundError as error:
            return _Entry(found.name, error="dangling link" if found.is_symlink() else _reason(error))
        except OSError as error:
            return _Entry(found.name, error=_reason(error))
        if stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            return _Entry(found.name, True, modified=status.st_mtime, identity=identity)
        error_found = None
        if not stat.S_ISREG(status.st_mode):
            error_found = "not a regular file"
        elif not os.access(found, os.R_OK):
            error_found = os.strerror(errno.EACCES)
        return _Entry(found.name, False, status.st_size, status.st_mtime, error_found)

    def make_directory(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)

    def delete(self) -> None:
        _remove_checksums(self._path)
        if self._path.is_dir() and not self._path.is_symlink():
            shutil.rmtree(self._path, onerror=_raise_unless_missing)
        else:
            self._path.unlink(missing_ok=True)

    def rename(self, target: "_LocalPlace") -> None:
        source_path, target_path = self._path, target._path
        status = source_path.lstat()
        occupied = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target_path))
        if os.path.lexists(target_path):
            raise occupied
        _remove_checksums(source_path)
        _remove_checksums(target_path)
        if stat.S_ISREG(status.st_mode) and _linked(source_path, target_path):
            source_path.unlink()
        else:
            try:
                source_path.rename(target_path)
            except OSError as error:
                # Another folder was renamed to the target since: the kernel refuses unless that is empty.
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise occupied from error
                raise
        _flush_directory(target_path.parent)

    def read_blocks(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while block := file.read(BLOCK_SIZE):
                yield block

    def write_bytes(self, data: bytes) -> None:
        with _beside(self._path) as temporary:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _take_over(temporary, self._path)

    def put(self, local: Path) -> None:
        with _beside(self._path) as temporary:
            if local.is_dir():
                shutil.copytree(local, temporary, copy_function=_copy)
                _LocalPlace(temporary).rename(self)
            else:
                _copy(str(local), str(temporary))
                _take_over(temporary, self._path)

    def get(self, local: Path) -> None:
        _LocalPlace(local.absolute()).put(self._path)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A free hidden name in the folder of `path`, which is made; what is left under it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name())
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            _LocalPlace(temporary).delete()


def _take_over(temporary: Path, path: Path) -> None:
    """Put a file that is on the disk in the place of another."""
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _remove_checksums(path)
    temporary.replace(path)
    _flush_directory(path.parent)


def _copy(source: str, target: str) -> None:
    with Path(source).open("rb") as original, Path(target).open("xb") as copy:
        shutil.copyfileobj(original, copy, BLOCK_SIZE)
        copy.flush()
        os.fsync(copy.fileno())


def _linked(source: Path, target: Path) -> bool:
    """Whether a hard link was made: unlike a rename it never replaces a file. Some file systems have none."""
    try:
        target.hardlink_to(source)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        return False
    return True


def _remove_checksums(path: Path) -> None:
    # A name that is too long for checksums to be beside it has none.
    with contextlib.suppress(OSError):
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


def _flush_directory(directory: Path) -> None:
    # Makes the new name itself last through a power cut; not every file system can.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _raise_unless_missing(_function: object, _path: str, cause: Any) -> None:
    if not issubclass(cause[0], FileNotFoundError):
        raise cause[1]


class _HadoopPlace:
    """A path on any Hadoop file system, by the JVM of the running Spark application."""

    def __init__(self, path: str) -> None:
        context = _context()
        if context is None:
            raise ClusterError(
                found=f"{path} is not a local path, and no Spark application runs in this process",
                expected="a local path, or a Spark session, whose JVM reads other file systems",
                remedy="Start the session first, or copy the files to a local folder",
            )
        self._jvm = context._jvm
        self._gateway = context._gateway
        self._application = context.applicationId
        self._configuration = context._jsc.hadoopConfiguration()
        with _java_errors(path):
            java_path = self._jvm.org.apache.hadoop.fs.Path(path)
            self._file_system = java_path.getFileSystem(self._configuration)
            self._path = self._file_system.makeQualified(java_path)
            self.path: str = self._path.toString()

    def exists(self) -> bool:
        with _java_errors(self.path):
            return bool(self._file_system.exists(self._path))

    def is_directory(self) -> bool:
        try:
            return bool(self._status().isDirectory())
        except FileNotFoundError:
            return False

    def size(self) -> int:
        status = self._status()
        if status.isDirectory():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
        return int(status.getLen())

    def list_names(self) -> list[str]:
        return sorted(entry.name for entry in self.entries())

    def status(self, path: str) -> FileStatus:
        found = self._status()
        return FileStatus(path, int(found.getLen()), found.getModificationTime() / 1000)

    def glob(self, pattern: str) -> list[str]:
        with _java_errors(pattern):
            statuses = self._file_system.globStatus(self._path)
            return [str(status.getPath().toString()) for status in statuses or ()]

    def child(self, relative: str) -> "_HadoopPlace":
        return _HadoopPlace(join(self.path, relative))

    def identity(self) -> _Identity | None:
        return None  # Hadoop's file systems have no links, or follow them without telling

    def entries(self) -> Iterator[_Entry]:
        # A listing of a file is the file itself, so ask first.
        if not self._status().isDirectory():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path)
        with _java_errors(self.path):
            statuses = self._file_system.listStatusIterator(self._path)
            while statuses.hasNext():
                status = statuses.next()
                yield _Entry(
                    name=status.getPath().getName(),
                    is_directory=bool(status.isDirectory()),
                    length=int(status.getLen()),
                    modified=status.getModificationTime() / 1000,
                )

    def make_directory(self) -> None:
        with _java_errors(self.path):
            if not self._file_system.mkdirs(self._path):
                raise OSError(errno.EIO, "the folder could not be made", self.path)

    def delete(self) -> None:
        with _java_errors(self.path):
            # False says that there was nothing to delete.
            if not self._file_system.delete(self._path, True) and self.exists():
                raise OSError(errno.EIO, "could not be deleted", self.path)

    def rename(self, target: "_HadoopPlace") -> None:
        self._status()
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target.path)
        self._rename(target, "NONE")

    def read_blocks(self) -> Iterator[bytes]:
        self.size()
        with _java_errors(self.path):
            stream = self._file_system.open(self._path)
            try:
                while block := stream.readNBytes(BLOCK_SIZE):
                    yield bytes(block)
            finally:
                stream.close()

    def write_bytes(self, data: bytes) -> None:
        with self._beside() as temporary, _java_errors(self.path):
            stream = self._file_system.create(temporary._path, False)
            try:
                for start in range(0, len(data), BLOCK_SIZE):
                    stream.write(data[start : start + BLOCK_SIZE])
                if stream.hasCapability("hsync"):
                    stream.hsync()
            finally:
                stream.close()
            temporary._rename(self, "OVERWRITE")

    def put(self, local: Path) -> None:
        if not local.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(local))
        source = self._jvm.org.apache.hadoop.fs.Path(f"{_LOCAL_SCHEME}://{local.absolute()}")
        with self._beside() as temporary, _java_errors(self.path):
            self._file_system.copyFromLocalFile(False, False, source, temporary._path)
            if local.is_dir():
                temporary.rename(self)
            else:
                temporary._rename(self, "OVERWRITE")

    def get(self, local: Path) -> None:
        is_directory = self._status().isDirectory()
        local = local.absolute()
        with _beside(local) as temporary, _java_errors(self.path):
            target = self._jvm.org.apache.hadoop.fs.Path(f"{_LOCAL_SCHEME}://{temporary}")
            # The last argument: leave no checksums beside the copies.
            self._file_system.copyToLocalFile(False, self._path, target, True)
            if is_directory:
                _LocalPlace(temporary).rename(_LocalPlace(local))
            else:
                _take_over(temporary, local)

    def _status(self) -> Any:
        with _java_errors(self.path):
            return self._file_system.getFileStatus(self._path)

    @contextlib.contextmanager
    def _beside(self) -> Iterator["_HadoopPlace"]:
        folder = _HadoopPlace(parent(self.path))
        folder.make_directory()
        temporary = folder.child(_temporary_name())
        try:
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.delete()

    def _rename(self, target: "_HadoopPlace", option: str) -> None:
        # FileSystem.rename moves a source *into* a target that is a folder, and may refuse to replace a file;
        # only FileContext has the renames that are needed here.
        with _java_errors(self.path):
            option_class = getattr(self._jvm.org.apache.hadoop.fs, "Options$Rename")
            options = self._gateway.new_array(option_class, 1)
            options[0] = getattr(option_class, option)
            self._file_context().rename(self._path, target._path, options)

    def _file_context(self) -> Any:
        # Kept, because each one opens a client of its own that nobody can close.
        key = (self._application, _split(self.path)[0])
        if key not in _file_contexts:
            _file_contexts[key] = self._jvm.org.apache.hadoop.fs.FileContext.getFileContext(
                self._path.toUri(), self._configuration
            )
        return _file_contexts[key]


_file_contexts: dict[tuple[str, str], Any] = {}  # by application and file system


def _context() -> Any:
    """The Spark application of this process, or None.

    Not `SparkSession.getActiveSession()`: that is None in every thread but the one that made the session, and
    a path must not change its file system with the thread that uses it.
    """
    if "pyspark" not in sys.modules:  # then nobody can have started one, and the import takes a second
        return None
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    return context if context is not None and getattr(context, "_jsc", None) is not None else None


def _default_is_local() -> bool:
    context = _context()
    if context is None:
        return True
    default = context._jsc.hadoopConfiguration().get("fs.defaultFS") or f"{_LOCAL_SCHEME}:///"
    return _split(default)[0].partition(":")[0].lower() == _LOCAL_SCHEME


# By the Java class's bare name: HDFS has its own of some of them.
_ERRORS: dict[str, tuple[type[OSError], int]] = {
    "FileNotFoundException": (FileNotFoundError, errno.ENOENT),
    "NoSuchFileException": (FileNotFoundError, errno.ENOENT),
    "FileAlreadyExistsException": (FileExistsError, errno.EEXIST),
    "ParentNotDirectoryException": (NotADirectoryError, errno.ENOTDIR),
    "AccessControlException": (PermissionError, errno.EACCES),
    "AccessDeniedException": (PermissionError, errno.EACCES),
}


@contextlib.contextmanager
def _java_errors(path: str) -> Iterator[None]:
    """Turn what the JVM throws into the OSError that Python would raise."""
    from py4j.protocol import Py4JError, Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except Py4JJavaError as error:
        java_class = error.java_exception.getClass().getSimpleName()
        kind, number = _ERRORS.get(java_class, (OSError, errno.EIO))
        raise kind(number, _first_line(error.java_exception.getMessage() or java_class), path) from error
    except (Py4JError, PySparkException) as error:
        raise OSError(errno.EIO, _first_line(str(error) or type(error).__name__), path) from error


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]
