"""Objects of S3-compatible stores by pyarrow, in the driver and in executors, which have no JVM to ask.

Hadoop's configuration says how a store is reached. A store that is reached in a way of which pyarrow knows nothing is
left to Hadoop.
"""

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seedlings_spark.files.paths import Entry, FileStatus

if TYPE_CHECKING:  # slow to import, and not needed by who has no such store
    from pyarrow.fs import FileInfo, S3FileSystem

_log = logging.getLogger(__name__)
_SCHEME = "s3a"
# Prefixes that are listed at once.
_LISTINGS = 16
_RETRIES = 10
_CONNECT_SECONDS, _REQUEST_SECONDS = 10.0, 60.0
# Where Hadoop may look for keys, by the class' bare name, and pyarrow looks too or is given what was found.
_PROVIDERS = frozenset(
    (
        "TemporaryAWSCredentialsProvider",
        "SimpleAWSCredentialsProvider",
        "EnvironmentVariableCredentialsProvider",
        "ProfileAWSCredentialsProvider",
        "ProfileCredentialsProvider",
        "IAMInstanceCredentialsProvider",
        "InstanceProfileCredentialsProvider",
        "ContainerCredentialsProvider",
        "WebIdentityTokenFileCredentialsProvider",
        "DefaultCredentialsProvider",
        "DefaultAWSCredentialsProviderChain",
    )
)
_AMAZON = re.compile(r"s3(?:[.-]([a-z0-9-]+))?\.amazonaws\.com(?:\.cn)?/?")
_ANONYMOUS = "AnonymousAWSCredentialsProvider"


@dataclass(frozen=True)
class Store:
    """A bucket, as any process can reach it.

    Args:
        root: Its URI, without a path.
        options: Of `pyarrow.fs.S3FileSystem`. They may have keys in them, and are shown nowhere.
    """

    root: str
    options: tuple[tuple[str, Any], ...] = field(repr=False)

    def read(self, path: str, num_bytes: int | None = None) -> bytes:
        """The first bytes of an object.

        Args:
            path: Its URI.
            num_bytes: At most; None for all.

        Raises:
            OSError: It is not there, or cannot be read.
        """
        with self._file_system.open_input_stream(self._key(path)) as stream:
            content: bytes = stream.read(num_bytes)
            return content

    def write(self, path: str, data: bytes) -> None:
        """Write an object, in place of one that exists.

        Raises:
            OSError: It cannot be written.
        """
        with self._file_system.open_output_stream(self._key(path)) as stream:
            stream.write(data)

    def entries(self, directory: str) -> Iterator[Entry]:
        """What is in a folder.

        Raises:
            OSError: It cannot be listed.
        """
        for info in self._list(directory.rstrip("/"), recursive=False):
            length, modified = (info.size, (info.mtime_ns or 0) / 1e9) if info.is_file else (0, 0.0)
            yield Entry(info.base_name, not info.is_file, length, modified)

    def walk(self, directory: str, closed: Callable[[str], bool]) -> Iterator[FileStatus]:
        """What `files.walk` says of a folder, by several requests at once, one for each folder in it.

        Raises:
            OSError: It cannot be listed.
        """
        base = directory.rstrip("/")
        entries = [(_order(info, base), info) for info in self._list(base, recursive=False)]
        entries.sort(key=lambda entry: entry[0])
        with ThreadPoolExecutor(_LISTINGS) as pool:
            for start in range(0, len(entries), _LISTINGS):
                some = [info for _, info in entries[start : start + _LISTINGS]]
                # Of a folder what is in it, at any depth; of a file itself.
                for found in pool.map(functools.partial(self._below, base, closed), some):
                    yield from found

    def _below(self, base: str, closed: Callable[[str], bool], info: "FileInfo") -> Sequence[FileStatus]:
        path = f"{base}/{info.base_name}"
        if info.is_file:
            return [_status(path, info)]
        if closed(info.base_name):
            return [FileStatus(path, 0, 0.0)]
        prefix = f"{self._key(path)}/"
        found, shut = list[FileStatus](), set[str]()
        for each in self._list(path, recursive=True):
            relative = each.path[len(prefix) :]
            folders = relative.split("/")[: None if not each.is_file else -1]
            depth = next((number for number, folder in enumerate(folders, 1) if closed(folder)), 0)
            if depth:
                shut.add("/".join(folders[:depth]))
            elif each.is_file:
                found.append(_status(f"{path}/{relative}", each))
        found += [FileStatus(f"{path}/{relative}", 0, 0.0) for relative in shut]
        return sorted(found, key=lambda status: status.path)

    def _list(self, path: str, *, recursive: bool) -> "list[FileInfo]":
        from pyarrow import fs

        selector = fs.FileSelector(self._key(path), recursive=recursive)
        infos: list[FileInfo] = self._file_system.get_file_info(selector)
        return infos

    def _key(self, path: str) -> str:
        return f"{self.root.rpartition('/')[2]}{path[len(self.root) :]}"

    @property
    def _file_system(self) -> "S3FileSystem":
        return _file_system(self.options)


def store_of(root: str, configured: Callable[[str], str | None]) -> Store | None:
    """A bucket, as Hadoop is told to reach it; None if pyarrow cannot do it so.

    Args:
        root: URI of the bucket.
        configured: The value of a setting of Hadoop's; keys may stand in a credential store of its.
    """
    scheme, bucket = root.partition(":")[0].lower(), root.rpartition("/")[2]
    if scheme != _SCHEME or not bucket:
        return None

    def setting(key: str) -> str:
        return configured(f"fs.s3a.bucket.{bucket}.{key}") or configured(f"fs.s3a.{key}") or ""

    reason = _not_for_arrow(setting)
    if reason:
        _log.info("Hadoop reads %s, and not pyarrow, which does not know %s", root, reason)
        return None
    options = _options(setting)
    if not {"region", "endpoint_override"} & options.keys():
        options |= _region_of(bucket)
    return Store(root, tuple(sorted(options.items())))


def _not_for_arrow(setting: Callable[[str], str]) -> str:
    """What stands in Hadoop's settings that pyarrow has nothing like; "" if nothing does."""
    providers = [each.strip().rpartition(".")[2] for each in setting("aws.credentials.provider").split(",")]
    unknown = [each for each in providers if each and each not in {*_PROVIDERS, _ANONYMOUS}]
    if unknown:
        return f"the credentials of {unknown[0]}"
    if setting("proxy.host"):
        return "its proxy"
    encryption = setting("encryption.algorithm") or setting("server-side-encryption-algorithm")
    return f"its encryption {encryption}" if encryption.upper().startswith(("CSE", "SSE-C")) else ""


def _options(setting: Callable[[str], str]) -> dict[str, Any]:
    options: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "request_timeout": _REQUEST_SECONDS}
    scheme, _, endpoint = setting("endpoint").rpartition("://")
    region = setting("endpoint.region")
    if amazon := _AMAZON.fullmatch(endpoint):
        region = region or amazon[1] or ""
    elif endpoint:
        options["endpoint_override"] = endpoint.rstrip("/")
        options["force_virtual_addressing"] = setting("path.style.access").lower() != "true"
    options["scheme"] = scheme or (
        "http" if setting("connection.ssl.enabled").lower() == "false" else "https"
    )
    if region:
        options["region"] = region
    if setting("access.key") and setting("secret.key"):
        options["access_key"], options["secret_key"] = setting("access.key"), setting("secret.key")
        if token := setting("session.token"):
            options["session_token"] = token
    elif setting("aws.credentials.provider").strip().endswith(_ANONYMOUS):
        options["anonymous"] = True
    return options


@functools.lru_cache(maxsize=64)
def _region_of(bucket: str) -> Mapping[str, str]:
    """The region of a bucket of Amazon's, which Hadoop finds by itself; nothing where Amazon does not answer."""
    from pyarrow import fs

    try:
        return {"region": fs.resolve_s3_region(bucket)}
    except OSError as error:
        _log.info("the region of the bucket %s is not known (%s)", bucket, error)
        return {}


@functools.lru_cache(maxsize=64)
def _file_system(options: tuple[tuple[str, Any], ...]) -> "S3FileSystem":
    from pyarrow import fs

    return fs.S3FileSystem(
        **dict(options), retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_RETRIES)
    )


def _order(info: "FileInfo", base: str) -> str:
    return f"{base}/{info.base_name}" + "/" * (not info.is_file)


def _status(path: str, info: "FileInfo") -> FileStatus:
    return FileStatus(path, int(info.size), (info.mtime_ns or 0) / 1e9)
