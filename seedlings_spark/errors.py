"""What can go wrong for a user, one class each.

Every message has three parts: what was found, what was expected, what to do. The constructor asks for
each of them, so that none is forgotten. `exit_code` is what a job that ends with the error returns.
"""

import contextlib
import errno
import os
import re
import traceback

# The exit code of what is interrupted from the keyboard.
INTERRUPTED = 130


class SeedlingsError(Exception):
    """Base of all errors that a user can do something about.

    Args:
        found: What was found, with names and numbers.
        expected: What was expected instead.
        remedy: What to do about it.
    """

    exit_code = 1

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(found, expected, remedy)
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{_sentence(self.found)} Expected {_sentence(self.expected)} {_sentence(self.remedy)}"


class OptionError(SeedlingsError):
    """An option is unknown, has a value it cannot have, or contradicts another."""

    exit_code = 2


class ClusterError(SeedlingsError):
    """The machine or cluster cannot run the job: no Java, too few cores, a wrong version."""


class CorpusError(SeedlingsError):
    """A folder of images or a prepared corpus is missing, half-written or unfit."""


class NetworkError(SeedlingsError):
    """A Keras network cannot be read, or does not fit the data."""


class TrainingError(SeedlingsError):
    """Training cannot go on: the loss is not finite, workers fail again and again."""


class WorseError(SeedlingsError):
    """A version that was to be promoted only if it is better is worse than the current one."""

    exit_code = 4


class StoreError(SeedlingsError):
    """A model version is missing, damaged or cannot be published."""


class InputError(SeedlingsError):
    """What is to be scored is missing or cannot be listed."""


class StorageError(SeedlingsError):
    """A disk is full, a quota is used up, or something may not be read or written."""


class OutputInUseError(SeedlingsError):
    """Another run is writing to the same output."""

    exit_code = 73


class ImageError(Exception):
    """One file is not a picture that can be used: it is rejected, and the job goes on.

    Args:
        reason: One of `schema.REJECT_REASONS`.
        detail: What the decoder said, for a person to read.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def is_interruption(error: BaseException) -> bool:
    """Whether a Ctrl-C is what has raised an exception, or what another one was raised in the course of.

    The same Ctrl-C ends the JVM, so that what is tidied up on the way out fails too.
    """
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        if isinstance(each, KeyboardInterrupt):
            return True
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return False


def in_brief(error: BaseException) -> str:
    """What failed in one line: the words of the innermost exception, wherever it was raised."""
    return _innermost(causes(error))


def first_line(error: BaseException) -> str:
    """Class and first line of an exception itself, whatever has led to it; the class alone if it says nothing."""
    return _in_line(type(error).__name__, _first_line(str(error)))


def causes(error: BaseException) -> list[tuple[str, str]]:
    """An exception and all that led to it, the innermost first: class and first line of the message of each.

    Python's chain, then Java's, then what Spark has of either as text only: an executor's exceptions, and those of
    a barrier stage.
    """
    found: list[tuple[str, str]] = []
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        java = getattr(each, "java_exception", None) or getattr(each, "_origin", None)
        text = "" if java is not None and hasattr(each, "java_exception") else _message(each)
        chain = [(type(each).__name__, text)] if text or java is None else []
        with contextlib.suppress(Exception):  # the JVM may be gone
            while java is not None and len(chain) < 50:
                chain.append((str(java.getClass().getName()), str(java.getMessage() or "")))
                java = java.getCause()
        for name, message in chain:
            found.append((name, _first_line(message)))
            found += _told(message)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return found[::-1]


def recognized(error: BaseException) -> SeedlingsError | None:
    """What a disk, a quota, a permission or a machine's Python has to do with it, in our words; None if nothing."""
    chain = causes(error)
    for name, text in chain:
        for kind, names, pattern, expected, remedy in _RECOGNIZED:
            if name.rpartition(".")[2] in names or (pattern and re.search(pattern, text)):
                return kind(_innermost([(name, text)]), expected, remedy)
    return None


def for_user(error: Exception) -> SeedlingsError:
    """What to tell a user of an exception: an error of ours, raised here or in a worker, or one that is recognized.

    Of any other its cause and its place, in one line, of however many Spark made it.
    """
    if isinstance(error, SeedlingsError):
        return error
    return (
        from_worker(error)
        or recognized(error)
        or SeedlingsError(
            in_brief(error),
            "no such failure: this is likely a fault of the program or of the cluster",
            f"Run the job again with --debug for the traceback, and report it ({_raised_in(error)})",
        )
    )


def from_worker(error: BaseException) -> SeedlingsError | None:
    """An error of ours that was raised in a worker, as it was raised there; None if it was another one."""
    for name, text in causes(error):
        if name.startswith("seedlings_spark.errors."):
            ours = re.fullmatch(r"(.*?)\. Expected (.*?)\. (.*)", text)
            kind = globals().get(name.rpartition(".")[2])
            if ours and isinstance(kind, type) and issubclass(kind, SeedlingsError):
                return kind(ours[1], ours[2], ours[3])
    return None


# What is no fault of the program: class, names of exceptions, pattern of their messages, expected, what to do.
_RECOGNIZED: tuple[tuple[type[SeedlingsError], set[str], str, str, str], ...] = (
    (
        StorageError,
        {"DiskOutOfSpaceException"},
        r"(?i)no space left on device|not enough space|could only be (written|replicated) to \d+",
        "free space, and free inodes, where it writes: the output, spark.local.dir (by default /tmp), or HDFS",
        "Free some, or name another place; Spark's own is --conf spark.local.dir=FOLDER before the job's name",
    ),
    (
        StorageError,
        {"QuotaExceededException", "DSQuotaExceededException", "NSQuotaExceededException"}
        | {"QuotaByStorageTypeExceededException", "ClusterStorageCapacityExceededException"},
        r"(?i)disk quota exceeded|quota\b.* is exceeded",
        "a quota that what is written fits into",
        "Remove something, write elsewhere, or have the quota raised",
    ),
    (
        StorageError,
        {"SafeModeException"},
        r"(?i)in safe ?mode",
        "an HDFS that can be written to",
        "Wait until hdfs dfsadmin -safemode get says that it is off, and start the job again",
    ),
    (
        StorageError,
        {"ReadOnlyFileSystemException"},
        r"Read-only file system",
        "a file system that can be written to",
        "Name another folder, or mount it for writing",
    ),
    (
        StorageError,
        {"AccessControlException", "AccessDeniedException", "PermissionError"},
        r"Permission denied|Operation not permitted",
        "the right to read what is read and to write where it is written",
        "Give it to the user that runs the job, or name another path",
    ),
    (
        StorageError,
        {
            "NotADirectoryError",
            "ParentNotDirectoryException",
            "PathIsNotDirectoryException",
            "IsADirectoryError",
        },
        r"Not a directory|Is a directory|is not a directory|Parent path is a file",
        "a folder where a folder is named, and a file where a file is",
        "Correct the path, or move what is in its place",
    ),
    (
        StorageError,
        {"PathComponentTooLongException"},
        r"File name too long",
        "names of at most 255 bytes, in paths of at most 4095",
        "Shorten it",
    ),
    (
        StorageError,
        set(),
        r"Mkdirs failed to create|(?i:failed to create (a )?(local|temp)\w* dir)",
        "a folder that can be made: free space, and the right to write",
        "Look at what it is in, or name another folder",
    ),
    (
        StorageError,
        set(),
        r"File too large",
        "files of any length",
        "Raise the limit of the shell (ulimit -f), or write to another file system",
    ),
    (
        StorageError,
        set(),
        r"Input/output error|Stale file handle",
        "a disk or share that answers",
        "Look at it (dmesg says more), and start the job again",
    ),
    (
        ClusterError,
        set(),
        r"Too many open files",
        "more files open at once",
        "Raise the limit of the shell or service (ulimit -n 65536)",
    ),
    (
        ClusterError,
        {"OutOfMemoryError", "MemoryError"},
        r"Cannot allocate memory|Java heap space|GC overhead limit",
        "more memory",
        "Give more by --driver-memory or --executor-memory before the job's name, or to the machine",
    ),
    (
        ClusterError,
        {"ModuleNotFoundError"},
        r"PYTHON_VERSION_MISMATCH|has different version|No module named|Cannot run program .*python",
        "one Python with the same packages (conf/constraints-spark-*.txt) on the driver and on all executors",
        "Name it in PYSPARK_PYTHON, or ship it by --archives dist/environment.tar.gz#environment; doctor looks at it",
    ),
    (
        ClusterError,
        {"KerberosAuthException"},
        r"GSS initiate failed|cannot authenticate via",
        "a ticket of Kerberos",
        "Get one by kinit, or give --principal and --keytab before the job's name",
    ),
    (
        ClusterError,
        {"ConnectException", "UnknownHostException", "NoRouteToHostException"},
        "",
        "a host that answers",
        "Check the host and port in the paths and in the site's Hadoop configuration",
    ),
    (
        StorageError,
        {"FileNotFoundError", "NoSuchFileException", "FileNotFoundException", "SparkFileNotFoundException"},
        r"No such file or directory",
        "files that stay where they are while a job runs",
        "See who moved or removed it, and start the job again",
    ),
)
_JAVA = re.compile(
    r"(?:^(?:: )?|Caused by: |executor [^)\n]*\): )((?:[a-z_]\w*\.)+[A-Z][\w$]*)(?:: ([^\n]*))?$",
    re.MULTILINE,
)
_TRACEBACK = "Traceback (most recent call last):\n"


def _message(error: BaseException) -> str:
    if not isinstance(error, OSError) or not error.errno:
        return str(error)
    # Whatever language the system speaks. Hadoop's errors without a number of their own have words instead.
    said = error.strerror if error.errno == errno.EIO else os.strerror(error.errno)
    return f"{said}: {error.filename}" if error.filename else str(said)


def _told(message: str) -> list[tuple[str, str]]:
    """Exceptions that a message of Spark's tells of, the innermost last."""
    found = [(match[1], match[2] or "") for match in _JAVA.finditer(message)]
    traceback = message.rpartition(_TRACEBACK)[2] if _TRACEBACK in message else ""
    raised = next((line for line in traceback.splitlines() if line and not line[0].isspace()), "")
    if raised:
        name, _, text = raised.partition(": ")
        found.append((name, text))
    return found


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _innermost(chain: list[tuple[str, str]]) -> str:
    """In one line; a class of Java's without a word is none where an outer one has some."""
    name, text = next(((name, text) for name, text in chain if text or "." not in name), chain[0])
    return _in_line(name, text)


def _in_line(name: str, text: str) -> str:
    return f"{name}: {text[:300]}" if text else name


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else text + "."


def _raised_in(error: BaseException) -> str:
    """Where an exception was raised: the last line of ours on its way, in a worker or here."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in', str(error))
    frames = frames or [(each.filename, each.lineno) for each in traceback.extract_tb(error.__traceback__)]
    ours = [each for each in frames if "seedlings_spark" in each[0]] or frames
    return f"{os.path.basename(ours[-1][0])}, line {ours[-1][1]}" if ours else "no line is known"  # noqa: PTH119
