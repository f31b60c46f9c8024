"""Paths on this machine's file system, by Python."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from seedlings_spark.files.paths import (
    BLOCK_SIZE,
    Entry,
    FileStatus,
    Identity,
    printable,
    reason,
    temporary_name,
)


class LocalPath:
    """A path on this machine's file system, by Python.

    Hadoop's LocalFileSystem keeps checksums of a file `name` in `.name.crc` beside it, and refuses to read a
    file that does not match them. So those of the old file go before a new one takes its place: a file
    without checksums is read unchecked. Before, because a crash in between must leave a readable file.
    """

    renames = True

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

    def child(self, relative: str) -> "LocalPath":
        return LocalPath(self._path / relative)

    def identity(self) -> Identity | None:
        status = self._path.stat()
        return status.st_dev, status.st_ino

    def entries(self) -> Iterator[Entry]:
        with os.scandir(self._path) as found:
            yield from map(self._entry, found)

    def status(self, path: str) -> FileStatus:
        shown = printable(path)
        if not self._path.is_symlink():
            self._path.stat()  # for a file that is missing
        entry = self._entry(self._path)
        error = entry.error if shown == path else "the name is not UTF-8"
        return FileStatus(shown, entry.length, entry.modified, error)

    @staticmethod
    def _entry(found: "os.DirEntry[str] | Path") -> Entry:
        try:
            status = found.stat()
        except FileNotFoundError as error:
            return Entry(found.name, error="dangling link" if found.is_symlink() else reason(error))
        except OSError as error:
            return Entry(found.name, error=reason(error))
        if stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            return Entry(found.name, True, modified=status.st_mtime, identity=identity)
        error_found = None
        if not stat.S_ISREG(status.st_mode):
            error_found = "not a regular file"
        elif not os.access(found, os.R_OK):
            error_found = os.strerror(errno.EACCES)
        return Entry(found.name, False, status.st_size, status.st_mtime, error_found)

    def make_directory(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)

    def delete(self) -> None:
        _remove_checksums(self._path)
        if self._path.is_dir() and not self._path.is_symlink():
            shutil.rmtree(self._path, onerror=_raise_unless_missing)
        else:
            self._path.unlink(missing_ok=True)

    def rename(self, target: "LocalPath") -> None:
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
        with beside(self._path) as temporary:
            _write(temporary, data)
            take_over(temporary, self._path)

    def create(self, data: bytes) -> None:
        with beside(self._path) as temporary:
            _write(temporary, data)
            LocalPath(temporary).rename(self)

    def put(self, local: Path) -> None:
        with beside(self._path) as temporary:
            if local.is_dir():
                shutil.copytree(local, temporary, copy_function=_copy)
                LocalPath(temporary).rename(self)
            else:
                _copy(str(local), str(temporary))
                take_over(temporary, self._path)

    def get(self, local: Path) -> None:
        LocalPath(local.absolute()).put(self._path)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A free hidden name in the folder of `path`, which is made; what is left under it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name())
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            LocalPath(temporary).delete()


def take_over(temporary: Path, path: Path) -> None:
    """Put a file that is on the disk in the place of another."""
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _remove_checksums(path)
    temporary.replace(path)
    _flush_directory(path.parent)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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


def _raise_unless_missing(
    _function: object, _path: str, cause: tuple[type[BaseException], BaseException, TracebackType]
) -> None:
    if not issubclass(cause[0], FileNotFoundError):
        raise cause[1]
