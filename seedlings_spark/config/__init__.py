"""Options of every job: TOML and flags become frozen, validated objects.

An option is written down once, here: name, default, unit, reason, limits. The command line, `--help`, the TOML
tables and `conf/seedlings.toml` (printed by `python -m seedlings_spark.config`) all come from it. A flag wins over
the TOML file, which wins over the default.
"""

import dataclasses
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from seedlings_spark import files
from seedlings_spark.config.jobs import (
    JOBS,
    BenchmarkOptions,
    CleanOptions,
    CorpusOptions,
    DecodeOptions,
    DoctorOptions,
    EvaluateOptions,
    ExploreOptions,
    FeaturizeOptions,
    FeedbackOptions,
    ForgetOptions,
    ModelsOptions,
    PrepareOptions,
    QuickstartOptions,
    ReproduceOptions,
    ScoreOptions,
    ScoringOptions,
    ServeOptions,
    SimilarOptions,
    StatusOptions,
    TrainOptions,
    TuneOptions,
    WatchOptions,
)
from seedlings_spark.config.options import (
    COMMAND_LINE,
    Options,
    checked,
    flag_of,
    option,
    ports_of,
    range_of,
    required,
    toml_value,
)
from seedlings_spark.config.suggestions import did_you_mean, suggestion
from seedlings_spark.errors import OptionError

__all__ = [
    "COMMAND_LINE",
    "JOBS",
    "OUTPUTS",
    "PATHS",
    "BenchmarkOptions",
    "CleanOptions",
    "CorpusOptions",
    "DecodeOptions",
    "DoctorOptions",
    "EvaluateOptions",
    "ExploreOptions",
    "FeaturizeOptions",
    "FeedbackOptions",
    "ForgetOptions",
    "ModelsOptions",
    "Options",
    "PrepareOptions",
    "QuickstartOptions",
    "ReproduceOptions",
    "ScoreOptions",
    "ScoringOptions",
    "ServeOptions",
    "SimilarOptions",
    "StatusOptions",
    "TrainOptions",
    "TuneOptions",
    "WatchOptions",
    "as_toml",
    "checked",
    "chosen",
    "flag_of",
    "make",
    "option",
    "plain",
    "ports_of",
    "qualified",
    "range_of",
    "read_toml",
    "required",
    "resolve",
    "suggestion",
]

_T = TypeVar("_T")
_OptionsT = TypeVar("_OptionsT", bound="Options")
# Options that are paths on a Hadoop file system, and those of them that a job may write to.
OUTPUTS = ("corpus", "store", "run", "report", "output")
_INPUTS = ("images", "parent", "other", "scores", "labels", "fixes", "features", "predictions", "to", "paths")
PATHS = (*_INPUTS, *OUTPUTS)


def resolve(options: type[_T], job: str, flags: Mapping[str, Any], config_file: str = "") -> _T:
    """The options of a job from flags, a TOML file and defaults.

    Args:
        options: The job's class.
        job: Its name, which is that of its table in the file.
        flags: Values given on the command line.
        config_file: A TOML file, or "".

    Raises:
        OptionError: An unknown table, key or value; says where it stands.
    """
    values = {}
    if config_file:
        table = read_toml(config_file).get(job, {})
        values = checked(options, table, f"[{job}] of {config_file}")
    return options(**{**values, **checked(options, flags, COMMAND_LINE)})


def make(options: type[_T], values: Mapping[str, Any], source: str) -> _T:
    """Build options from plain values; unknown names are refused, each value must have its option's type."""
    return options(**checked(options, values, source))


def read_toml(file: str) -> dict[str, Any]:
    """The tables of a TOML file, one a job; unknown tables are refused."""
    try:
        tables = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, tomllib.TOMLDecodeError | UnicodeDecodeError):
            raise OptionError(
                f"--config {file}, which is not TOML ({error})", "TOML in UTF-8", "Correct the file"
            ) from None
        raise OptionError(
            f"--config {file} ({getattr(error, 'strerror', None) or error})",
            "a TOML file that can be read",
            "Check the path",
        ) from None
    for name, table in tables.items():
        if name not in JOBS or not isinstance(table, dict):
            remedy = did_you_mean(name, JOBS) or "Put each option into the table of its job"
            raise OptionError(
                f"{'the table' if isinstance(table, dict) else 'the key'} {name!r} in {file}",
                f"only tables named {', '.join(JOBS)}",
                remedy,
            )
    return tables


def as_toml() -> str:
    """All options with their defaults, units and reasons: the content of `conf/seedlings.toml`."""
    lines = [
        "# Every option of every job: what it is, why its default is what it is, the default. Printed by",
        "# python -m seedlings_spark.config. Copy what you want to change into a file of your own and give it",
        "# with --config FILE; a flag on the command line wins over the file.",
    ]
    for job, options in JOBS.items():
        lines += ["", "", f"# {(options.__doc__ or '').strip()}", f"[{job}]"]
        for field in dataclasses.fields(cast(Any, options)):
            limits = field.metadata
            text = limits["text"] + (f" [{limits['unit']}]" if limits["unit"] else "")
            lines += ["", *_comment(f"{text}.")]
            if limits["choices"]:
                lines += _comment(f"Of: {', '.join(limits['choices'])}.")
            if limits["required"]:
                lines.append(f'# {field.name} = "..."  (required)')
            else:
                lines += [
                    *_comment(f"Why: {limits['reason']}."),
                    f"{field.name} = {toml_value(field.default)}",
                ]
    return "\n".join(lines) + "\n"


def plain(options: Any) -> dict[str, Any]:
    """The options as JSON-ready values, for a manifest."""
    values = dataclasses.asdict(options)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def qualified(options: _OptionsT) -> _OptionsT:
    """The options with every path as a full URI, as Spark would resolve it.

    Raises:
        OptionError: A path is malformed, or on a file system that Spark does not know.
    """
    changes = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in PATHS and value:
            try:
                changes[field.name] = files.qualify(value)
            except (OSError, ValueError) as error:
                raise OptionError(
                    f"{flag_of(field.name)} {value} ({getattr(error, 'strerror', None) or error})",
                    "a path on this machine, or the URI of a file system that Hadoop knows",
                    f"Correct {flag_of(field.name)}",
                ) from error
    return dataclasses.replace(options, **changes)


def chosen(options: Any, *names: str) -> dict[str, Any]:
    """Some of the options by name, as keyword arguments of what they are for."""
    return {name: getattr(options, name) for name in names}


def _comment(text: str) -> list[str]:
    sentence = text[:1].upper() + text[1:]
    return textwrap.wrap(sentence, 105, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
