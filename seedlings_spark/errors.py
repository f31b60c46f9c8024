"""What can go wrong for a user, one class each.

Every message has three parts: what was found, what was expected, what to do. The constructor asks for
each of them, so that none is forgotten. `exit_code` is what a job that ends with the error returns.
"""


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


class StoreError(SeedlingsError):
    """A model version is missing, damaged or cannot be published."""


class InputError(SeedlingsError):
    """What is to be scored is missing or cannot be listed."""


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


def in_brief(error: BaseException) -> str:
    """What failed in one line: of a Python worker's traceback its last line, and no Java frames."""
    java = getattr(error, "java_exception", None)  # py4j's own text only names the method that was called
    text = str(error) if java is None else str(java.toString())
    lines = [line.strip() for line in text.split("\n\tat ")[0].splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    is_traceback = any(line.startswith("Traceback") for line in lines)
    return (lines[-1] if is_traceback else lines[0])[:500]


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else text + "."
