"""Paths on any Hadoop file system, by the JVM of the running Spark application."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seedlings_spark.errors import ClusterError
from seedlings_spark.files import connectors, stores
from seedlings_spark.files.local import LocalPath, beside, take_over
from seedlings_spark.files.paths import (
    BLOCK_SIZE,
    LOCAL_SCHEME,
    Entry,
    FileStatus,
    Identity,
    join,
    name,
    parent,
    split,
    temporary_name,
)

# Where a file or folder takes another name at once. Of others a rename is a copy, file by file; abfs:// is taken to
# have a hierarchical namespace.
_RENAMING = frozenset(
    (LOCAL_SCHEME, "hdfs", "viewfs", "webhdfs", "swebhdfs", "abfs", "abfss", "ofs", "maprfs")
)
_TRIES = 3  # of a write on condition: a store may answer that another one is at it in this instant
_CONDITIONAL = "fs.option.create.conditional.overwrite"


class HadoopPath:
    """A path on any Hadoop file system, by the JVM of the running Spark application."""

    def __init__(self, path: str) -> None:
        context = spark_context()
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
            try:
                self._file_system = java_path.getFileSystem(self._configuration)
            except Exception as error:
                connectors.refuse_missing(
                    path, error, self._jvm.org.apache.hadoop.util.VersionInfo.getVersion()
                )
                raise
            self._path = self._file_system.makeQualified(java_path)
            self.path: str = self._path.toString()

    @property
    def renames(self) -> bool:
        return split(self.path)[0].partition(":")[0].lower() in _RENAMING

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

    def child(self, relative: str) -> "HadoopPath":
        return HadoopPath(join(self.path, relative))

    def identity(self) -> Identity | None:
        return None  # Hadoop's file systems have no links, or follow them without telling

    def entries(self) -> Iterator[Entry]:
        # A listing of a file is the file itself, so ask first.
        if not self._status().isDirectory():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path)
        store = self.store()
        if store is not None:  # each entry that crosses from the JVM costs a millisecond
            yield from store.entries(self.path)
            return
        with _java_errors(self.path):
            statuses = self._file_system.listStatusIterator(self._path)
            while statuses.hasNext():
                status = statuses.next()
                yield Entry(
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

    def rename(self, target: "HadoopPath") -> None:
        self._status()
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target.path)
        if not self.renames:
            with _java_errors(self.path):
                if not self._file_system.rename(self._path, target._path):
                    raise OSError(errno.EIO, "could not be renamed", self.path)
            return
        source_here, folder_here = self._here(), HadoopPath(parent(target.path))._here()
        if source_here is None or folder_here is None:
            self._rename(target, "NONE")
            return
        # Where two rename folders to one name at one instant, Hadoop's local file system copies one into the other.
        try:
            LocalPath(source_here).rename(LocalPath(folder_here / name(target.path)))
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target.path) from None

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
        if not self.renames:  # there an object appears whole, when all of it has been sent
            if self.is_directory():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
            with _java_errors(self.path):
                _send(self._file_system.create(self._path, True), data, is_object=True)
            return
        with self._beside() as temporary, _java_errors(self.path):
            temporary._write(data)
            temporary._rename(self, "OVERWRITE")

    def create(self, data: bytes) -> None:
        if self.renames:
            with self._beside() as temporary, _java_errors(self.path):
                temporary._write(data)
                temporary.rename(self)
            return
        for tries_left in reversed(range(_TRIES)):
            try:
                with _java_errors(self.path):
                    self._create_object(data)
                return
            except OSError as error:
                cause = error
            # Where the answer to a first try is lost, it is the second one that is told of a file that is there.
            with contextlib.suppress(FileNotFoundError):
                if b"".join(self.read_blocks()) == data:
                    return
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path) from cause
            if not tries_left:
                raise cause

    def _create_object(self, data: bytes) -> None:
        """Write a file by one request that the store refuses where there is one of that name."""
        if not self.path.startswith("s3a:"):
            _send(self._file_system.create(self._path, False), data, is_object=True)
            return
        if self._file_system.hasPathCapability(self._path, _CONDITIONAL):
            builder = self._file_system.createFile(self._path).overwrite(False).must(_CONDITIONAL, True)
            _send(builder.build(), data, is_object=True)
            return
        # Hadoop before 3.4.2 has no name for such a request; its client of S3 can be asked for one.
        key = self._file_system.pathToKey(self._path)
        options = self._jvm.org.apache.hadoop.fs.s3a.impl.PutObjectOptions.keepingDirs()
        request = self._file_system.getRequestFactory().newPutObjectRequestBuilder(
            key, options, len(data), False
        )
        sdk = self._jvm.software.amazon.awssdk
        header = sdk.awscore.AwsRequestOverrideConfiguration.builder().putHeader("If-None-Match", "*")
        request = request.overrideConfiguration(header.build()).build()
        client = self._file_system.getS3AInternals().getAmazonS3Client("a write on condition")
        client.putObject(request, sdk.core.sync.RequestBody.fromBytes(data))

    def _write(self, data: bytes) -> None:
        _send(self._file_system.create(self._path, False), data)

    def put(self, local: Path) -> None:
        if not local.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(local))
        source = self._jvm.org.apache.hadoop.fs.Path(f"{LOCAL_SCHEME}://{local.absolute()}")
        if not self.renames:
            with _java_errors(self.path):
                self._file_system.copyFromLocalFile(False, True, source, self._path)
            return
        with self._beside() as temporary, _java_errors(self.path):
            self._file_system.copyFromLocalFile(False, False, source, temporary._path)
            if local.is_dir():
                temporary.rename(self)
            else:
                temporary._rename(self, "OVERWRITE")

    def get(self, local: Path) -> None:
        is_directory = self._status().isDirectory()
        local = local.absolute()
        with beside(local) as temporary, _java_errors(self.path):
            target = self._jvm.org.apache.hadoop.fs.Path(f"{LOCAL_SCHEME}://{temporary}")
            # The last argument: leave no checksums beside the copies.
            self._file_system.copyToLocalFile(False, self._path, target, True)
            if is_directory:
                LocalPath(temporary).rename(LocalPath(local))
            else:
                take_over(temporary, local)

    def store(self) -> stores.Store | None:
        """The bucket that the path is in, where pyarrow can reach it."""

        def configured(key: str) -> str | None:
            found = self._configuration.getPassword(key)
            return None if found is None else "".join(found)

        with _java_errors(self.path):
            return stores.store_of(split(self.path)[0], configured)

    def _here(self) -> Path | None:
        """The path on this machine that a view of file systems leads to; None where it leads to another one."""
        with _java_errors(self.path):
            uri = self._file_system.resolvePath(self._path).toUri()
            return Path(uri.getPath()) if uri.getScheme() == LOCAL_SCHEME else None

    def _status(self) -> Any:
        with _java_errors(self.path):
            return self._file_system.getFileStatus(self._path)

    @contextlib.contextmanager
    def _beside(self) -> Iterator["HadoopPath"]:
        folder = HadoopPath(parent(self.path))
        folder.make_directory()
        temporary = folder.child(temporary_name())
        try:
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.delete()

    def _rename(self, target: "HadoopPath", option: str) -> None:
        # FileSystem.rename moves a source *into* a target that is a folder, and may refuse to replace a file;
        # only FileContext has the renames that are needed here.
        with _java_errors(self.path):
            option_class = getattr(self._jvm.org.apache.hadoop.fs, "Options$Rename")
            options = self._gateway.new_array(option_class, 1)
            options[0] = getattr(option_class, option)
            self._file_context().rename(self._path, target._path, options)

    def _file_context(self) -> Any:
        # Kept, because each one opens a client of its own that nobody can close.
        key = (self._application, split(self.path)[0])
        if key not in _file_contexts:
            _file_contexts[key] = self._jvm.org.apache.hadoop.fs.FileContext.getFileContext(
                self._path.toUri(), self._configuration
            )
        return _file_contexts[key]


_file_contexts: dict[tuple[str, str], Any] = {}  # by application and file system


def _send(stream: Any, data: bytes, *, is_object: bool = False) -> None:
    """Write all of a file; of an object, which appears when its stream is closed, all or nothing."""
    try:
        for start in range(0, len(data), BLOCK_SIZE):
            stream.write(data[start : start + BLOCK_SIZE])
        if stream.hasCapability("hsync"):
            stream.hsync()
    except BaseException:
        with contextlib.suppress(Exception):
            if not is_object:
                stream.close()
            elif stream.hasCapability("fs.capability.outputstream.abortable"):
                stream.abort()
        raise
    stream.close()


def spark_context() -> Any:
    """The Spark application of this process, or None.

    Not `SparkSession.getActiveSession()`: that is None in every thread but the one that made the session, and
    a path must not change its file system with the thread that uses it.
    """
    if "pyspark" not in sys.modules:  # then nobody can have started one, and the import takes a second
        return None
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    return context if context is not None and getattr(context, "_jsc", None) is not None else None


def default_is_local() -> bool:
    """Whether a path without a scheme is one of this machine: unless `fs.defaultFS` says otherwise."""
    context = spark_context()
    if context is None:
        return True
    default = context._jsc.hadoopConfiguration().get("fs.defaultFS") or f"{LOCAL_SCHEME}:///"
    return split(default)[0].partition(":")[0].lower() == LOCAL_SCHEME


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
