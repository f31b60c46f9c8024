"""Options of every job: TOML and flags become frozen, validated objects.

An option is written down once, here: name, default, unit, reason, limits. The command line, `--help`, the TOML
tables and `conf/seedlings.toml` (printed by `python -m seedlings_spark.config`) all come from it. A flag wins over
the TOML file, which wins over the default.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from seedlings_spark.errors import OptionError

_T = TypeVar("_T")
_REQUIRED = object()


def option(
    default: Any,
    text: str,
    *,
    unit: str = "",
    reason: str = "",
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A field that is an option.

    Args:
        default: Its value if nobody says otherwise.
        text: What it is, for `--help`.
        unit: Of a number.
        reason: Why the default is what it is.
        choices: The only values it can have.
        least: Lower limit, itself allowed.
        most: Upper limit, itself allowed.
    """
    metadata = {
        "text": text,
        "unit": unit,
        "reason": reason,
        "choices": tuple(choices),
        "least": least,
        "most": most,
        "required": default is _REQUIRED,
    }
    return dataclasses.field(default="" if default is _REQUIRED else default, metadata=metadata)


def required(text: str) -> Any:
    """A field that is an option without a default."""
    return option(_REQUIRED, text)


@dataclass(frozen=True)
class Options:
    """Base of a job's options: checks the limits that its fields state."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check(field)

    def _check(self, field: "dataclasses.Field[Any]") -> None:
        value, limits, flag = getattr(self, field.name), field.metadata, flag_of(field.name)
        if limits["required"] and value == "":
            raise OptionError(f"no {flag}", f"{flag}: {limits['text']}", f"Add {flag}, or the key to --config")
        for item in value if isinstance(value, tuple) else (value,):
            if limits["choices"] and item not in limits["choices"]:
                near = difflib.get_close_matches(str(item), limits["choices"], 1)
                raise OptionError(
                    f"{flag} {item}",
                    f"one of {', '.join(limits['choices'])}",
                    f"Did you mean {near[0]}?" if near else f"Choose one of them for {flag}",
                )
            too_small = limits["least"] is not None and item < limits["least"]
            too_large = limits["most"] is not None and item > limits["most"]
            if too_small or too_large:
                raise OptionError(f"{flag} {item}", _range(limits), f"Correct {flag}")


@dataclass(frozen=True)
class DecodeOptions(Options):
    """How files are read, alike in `prepare` and `score`."""

    images: str = required("folder of images; with any scheme that Hadoop knows")
    formats: tuple[str, ...] = option(
        ("png", "jpeg", "webp", "bmp", "tiff", "gif"),
        "accepted formats",
        reason="what cameras and annotation tools write; each further decoder is a further risk",
        choices=("png", "jpeg", "webp", "bmp", "tiff", "gif"),
    )
    max_pixels: int = option(
        64_000_000,
        "a picture with more is rejected from its header",
        unit="pixels",
        reason="above any camera in the field; four such pictures fit into an executor at once",
        least=1,
    )
    max_bytes: int = option(
        64 * 1024 * 1024,
        "a longer file is rejected unread",
        unit="bytes",
        reason="an uncompressed 20-megapixel picture still fits",
        least=1,
    )
    max_reject_fraction: float = option(
        0.05,
        "with a larger share of rejects the job ends with exit code 3",
        reason="a few broken files are normal, one in twenty means that something is wrong",
        least=0,
        most=1,
    )


@dataclass(frozen=True)
class PrepareOptions(DecodeOptions):
    """Options of `prepare`."""

    images: str = required("folder with one folder a species, or a .csv or .parquet table of path,species")
    corpus: str = required("folder to write the corpus to")
    image_size: int = option(
        64, "height and width of the prepared images", unit="pixels", reason="leaves are told apart at it, training is fast", least=8, most=2048
    )
    aspect: str = option(
        "crop",
        "what becomes of pictures that are not square: centre crop, pad with black, or stretch",
        reason="plants stand in the centre, and neither borders nor proportions are invented",
        choices=("crop", "pad", "stretch"),
    )
    split_policy: str = option(
        "hash",
        "hash: an image's split depends on its bytes alone; stratified: exact shares in every species, but images that are added later may move others to another split",
        reason="results stay comparable while a corpus grows",
        choices=("hash", "stratified"),
    )
    split_shares: tuple[float, ...] = option(
        (0.7, 0.15, 0.15), "shares of train, validation and test", reason="usual for some thousand images", least=0, most=1
    )
    conflicts: str = option(
        "error",
        "the same bytes under two species: stop, or drop all copies",
        reason="a wrong label is a person's to mend",
        choices=("error", "drop"),
    )
    sample: float = option(1.0, "share of each species to prepare", reason="all", least=0, most=1)
    overwrite: bool = option(False, "replace a corpus that is already there", reason="a corpus is work")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.split_shares) != 3 or abs(sum(self.split_shares) - 1) > 1e-9 or not self.split_shares[0] > 0:
            raise OptionError(
                f"--split-shares {' '.join(map(str, self.split_shares))}",
                "three shares that add up to 1, the first above 0",
                "Correct it, as in --split-shares 0.7 0.15 0.15",
            )
        if not self.sample > 0:
            raise OptionError(f"--sample {self.sample}", "a share above 0", "Correct --sample")


@dataclass(frozen=True)
class TrainOptions(Options):
    """Options of `train`."""

    corpus: str = required("folder that `prepare` wrote")
    store: str = required("folder of the model store")
    name: str = option("seedlings", "of the model in the store", reason="the example's")
    run: str = option("", "folder for what the run leaves behind", reason="made below the store from the application's id")
    mode: str = option("synchronous", "how workers and master work together", reason="repeatable", choices=("synchronous",))
    frequency: str = option(
        "batch",
        "workers meet after every batch, after a number of batches, or after every epoch",
        reason="exactly SGD with the global batch",
    )
    num_workers: int = option(2, "tasks that train at once", reason="works on any machine", least=1)
    threads: int = option(0, "of each worker; 0 for spark.task.cpus", reason="what Spark reserves", least=0)
    network: str = option("plain", "plain, residual, or a .keras or .json file", reason="quick to train, no batch statistics")
    loss: str = option("sparse_categorical_crossentropy", "a Keras loss", reason="species exclude each other")
    optimizer: str = option("adam", "a Keras optimizer", reason="forgives a wrong learning rate")
    learning_rate: float = option(0.001, "of the optimizer, at its highest", reason="Adam's own", least=0)
    schedule: str = option(
        "cosine",
        "constant, or falling with a cosine to 0 at the last step, after a warm-up of 5 % of the steps",
        reason="worth some points of accuracy at no cost",
        choices=("constant", "cosine"),
    )
    epochs: int = option(30, "times that all images are trained on", reason="where the example levels off", least=1)
    batch_size: int = option(32, "images of one worker at one step", unit="images", reason="Keras' own", least=1)
    class_weight: str = option("", "balanced, or nothing", reason="accuracy is what is measured", choices=("", "balanced"))
    augment: tuple[str, ...] = option(
        ("flip", "turn"),
        "changes to training images, any of flip, turn, zoom, contrast; none for none",
        reason="a plant from above has no up",
        choices=("flip", "turn", "zoom", "contrast", "none"),
    )
    scaler: str = option(
        "channel",
        "mean and std for each channel or pixel, or none",
        reason="a pixel's own mean says little where plants stand anywhere",
        choices=("channel", "pixel", "none"),
    )
    scaler_images: int = option(
        2000, "images that mean and std are taken from; 0 for all", unit="images", reason="exact to a tenth of a grey value", least=0
    )
    precision: str = option(
        "auto",
        "float32, mixed_bfloat16, or what the processors do best",
        reason="twice as fast where the processor has bfloat16; the answer is recorded",
        choices=("float32", "mixed_bfloat16", "auto"),
    )
    patience: int = option(0, "epochs without a better validation loss until training stops; 0 for never", unit="epochs", reason="the schedule wants all epochs", least=0)
    memory_budget_mb: int = option(1024, "images that each worker holds in memory; the rest goes to local disk", unit="MB", reason="fits beside TensorFlow into 3 GB", least=16)
    seed: int = option(0, "of initial weights, order, dropout and augmentation", reason="any will do; the same one repeats a run")
    promote: bool = option(True, "make the new version the current one", reason="the last trained is meant to be used")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frequency not in ("batch", "epoch") and not (self.frequency.isdigit() and int(self.frequency) > 0):
            raise OptionError(f"--frequency {self.frequency}", "batch, epoch or a number of batches", "Correct --frequency")


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Options of `evaluate`."""

    corpus: str = required("folder that `prepare` wrote")
    store: str = required("folder of the model store")
    report: str = required("folder to write numbers and plots to")
    name: str = option("seedlings", "of the model in the store", reason="the example's")
    model_version: str = option("current", "version of the model", reason="the promoted one")
    split: str = option("test", "images to evaluate on", reason="never seen in training", choices=("train", "validation", "test"))


@dataclass(frozen=True)
class ScoreOptions(DecodeOptions):
    """Options of `score`."""

    store: str = required("folder of the model store")
    output: str = required("folder of the scores")
    name: str = option("seedlings", "of the model in the store", reason="the example's")
    model_version: str = option("current", "version of the model", reason="the promoted one")
    batch_size: int = option(64, "images of one forward pass", unit="images", reason="larger ones are no faster on a CPU", least=1)


@dataclass(frozen=True)
class ModelsOptions(Options):
    """Options of `models`."""

    action: str = option("list", "list, promote, rollback or import", reason="it changes nothing", choices=("list", "promote", "rollback", "import"))
    store: str = required("folder of the model store")
    name: str = option("seedlings", "of the model in the store", reason="the example's")
    model_version: str = option("", "version to promote", reason="no version is promoted by accident")
    network: str = option("", ".keras file to import; it takes raw pixels, 0 to 255", reason="only for import")
    classes: tuple[str, ...] = option((), "names of the classes, in the order of the network's outputs", reason="only for import")
    aspect: str = option("crop", "how its images are made square", reason="as prepare does", choices=("crop", "pad", "stretch"))
    promote: bool = option(True, "make the imported version the current one", reason="as train does")


@dataclass(frozen=True)
class QuickstartOptions(Options):
    """Options of `quickstart`."""

    images: str = option("", "folder with one folder a species; without it images are drawn", reason="needs no download")
    output: str = option("quickstart", "folder for everything that is made", reason="beside the checkout's other folders")


JOBS: Mapping[str, type[Options]] = {
    "quickstart": QuickstartOptions,
    "prepare": PrepareOptions,
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "score": ScoreOptions,
    "models": ModelsOptions,
}


def flag_of(name: str) -> str:
    """The command-line flag of an option."""
    return "--" + name.replace("_", "-")


def resolve(options: type[_T], job: str, flags: Mapping[str, Any], config_file: str = "") -> _T:
    """The options of a job from flags, a TOML file and defaults.

    Args:
        options: The job's class.
        job: Its name, which is that of its table in the file.
        flags: Values given on the command line.
        config_file: A TOML file, or "".

    Raises:
        OptionError: An unknown table, key or value.
    """
    table = read_toml(config_file).get(job, {}) if config_file else {}
    return make(options, {**table, **flags}, f"[{job}] of {config_file}" if config_file else job)


def make(options: type[_T], values: Mapping[str, Any], source: str) -> _T:
    """Build options from plain values; unknown names are refused, each value must have its option's type."""
    fields = {field.name: field for field in dataclasses.fields(cast(Any, options))}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            raise OptionError(
                f"unknown option {name!r} in {source}",
                f"one of {', '.join(fields)}",
                f"Did you mean {near[0]}?" if near else "Remove it",
            )
    return options(**{name: _converted(fields[name], value, source) for name, value in values.items()})


def read_toml(file: str) -> dict[str, Any]:
    """The tables of a TOML file, one a job; unknown tables are refused."""
    try:
        tables = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"--config {file} ({error.strerror})", "a TOML file that can be read", "Check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"--config {file}, which is not TOML ({error})", "TOML", "Correct the file") from None
    for name, table in tables.items():
        if name not in JOBS or not isinstance(table, dict):
            raise OptionError(
                f"{name!r} in {file}", f"only tables named {', '.join(JOBS)}", "Put each option into its job's table"
            )
    return tables


def as_toml() -> str:
    """All options with their defaults, units and reasons: the content of `conf/seedlings.toml`."""
    lines = [
        "# Every option of every job with its default, its unit and the reason for it. Printed by",
        "# python -m seedlings_spark.config. Copy what you want to change into a file of your own and give it",
        "# with --config FILE; a flag on the command line wins over the file.",
    ]
    for job, options in JOBS.items():
        lines += ["", f"[{job}]"]
        for field in dataclasses.fields(cast(Any, options)):
            limits = field.metadata
            lines.append(f"# {limits['text']}{_unit(limits)}")
            if limits["required"]:
                lines.append(f"# {field.name} = \"...\"  # required")
            else:
                lines.append(f"{field.name} = {_as_toml(field.default)}  # {limits['reason']}")
    return "\n".join(lines) + "\n"


def plain(options: Any) -> dict[str, Any]:
    """The options as JSON-ready values, for a manifest."""
    values = dataclasses.asdict(options)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _converted(field: "dataclasses.Field[Any]", value: Any, source: str) -> Any:
    kind, flag = str(field.type), flag_of(field.name)
    item = {"tuple[str, ...]": str, "tuple[float, ...]": float}.get(kind)
    if item is not None:
        if not isinstance(value, list | tuple):
            value = [value]
        return tuple(_scalar(item, one, flag, source) for one in value)
    return _scalar(cast(type, field.type), value, flag, source)


def _scalar(kind: type, value: Any, flag: str, source: str) -> Any:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    accepted = (int, float) if kind is float else kind
    if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
        return kind(value)
    if isinstance(value, str) and kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    raise OptionError(f"{flag} {value!r} ({source})", names[kind], f"Correct {flag}")


def _range(limits: Mapping[str, Any]) -> str:
    unit = f" {limits['unit']}" if limits["unit"] else ""
    if limits["least"] is not None and limits["most"] is not None:
        return f"from {limits['least']} to {limits['most']}{unit}"
    return f"at least {limits['least']}{unit}" if limits["least"] is not None else f"at most {limits['most']}{unit}"


def _unit(limits: Mapping[str, Any]) -> str:
    return f" [{limits['unit']}]" if limits["unit"] else ""


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_as_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    print(as_toml(), end="")
