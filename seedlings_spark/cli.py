"""Arguments, options, session, logging and exit code of a job.

A job is a function of a session and its options. What it raises for a user becomes one line on stderr and the
exit code of its class; a traceback is shown with `--debug` only.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pyspark.sql import SparkSession

from seedlings_spark import config, files, session
from seedlings_spark.errors import OptionError, SeedlingsError

_T = TypeVar("_T", bound=config.Options)
_log = logging.getLogger("seedlings_spark")

DONE, FAILED, WRONG_ARGUMENTS, TOO_MANY_REJECTS, INTERRUPTED = 0, 1, 2, 3, 130
# Options that are paths on a Hadoop file system.
_PATHS = ("images", "corpus", "store", "run", "report", "output")


def run(
    job: str,
    options_class: type[_T],
    main: Callable[[SparkSession, _T], int | None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a job from its command line.

    Args:
        job: Its name.
        options_class: Of its options.
        main: What it does; returns an exit code, None for 0.
        arguments: By default those of the process.

    Returns:
        The exit code of the contract.
    """
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        flags = vars(_parser(job, options_class).parse_args(arguments))
        debug = flags.pop("debug")
        options = config.resolve(options_class, job, flags, flags.pop("config"))
        configure_logging(debug)
        spark = session.build(f"seedlings {job}")
        spark.sparkContext.setLogLevel("WARN" if debug else "ERROR")
        try:
            return main(spark, qualified(options)) or DONE
        finally:
            spark.stop()
    except SeedlingsError as error:
        if debug:
            _log.exception("the traceback, since --debug was given")
        return fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        return fail(
            SeedlingsError(
                f"{type(error).__name__}: {line.strip()[:300]}",
                "no such failure: this is likely a fault of the program or of the cluster",
                "Run the job again with --debug for the traceback, and report it",
            )
        )


def fail(error: SeedlingsError) -> int:
    """Say what is wrong on stderr; returns the error's exit code."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return error.exit_code


def qualified(options: _T) -> _T:
    """The options with every path as a full URI, as Spark would resolve it."""
    changes = {
        field.name: files.qualify(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if field.name in _PATHS and getattr(options, field.name)
    }
    return dataclasses.replace(options, **changes)


def configure_logging(debug: bool) -> None:
    """Our log on stderr, one plain line each; libraries only when something is wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("seedlings_spark")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def rejects_exit_code(manifest: Mapping[str, Any], max_reject_fraction: float) -> int:
    """3 if more of the listed files were rejected than allowed, else 0."""
    if manifest["rejected"] <= max_reject_fraction * manifest["listed"]:
        return DONE
    _log.warning(
        "%d of %d files were rejected, more than --max-reject-fraction %g: %s",
        manifest["rejected"],
        manifest["listed"],
        max_reject_fraction,
        json.dumps(manifest["rejected_by_reason"]),
    )
    return TOO_MANY_REJECTS


def table(rows: Sequence[tuple[str, object]]) -> str:
    """Two aligned columns for a person to read."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message, f"the options of {self.prog}", f"See {self.prog} --help")


def _parser(job: str, options_class: type[config.Options]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"./spark-submit.sh {job}",
        description=(options_class.__doc__ or "").strip(),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Spark options (--master, --conf ...) go before the job's name.",
    )
    parser.add_argument("--config", default="", metavar="FILE", help=f"TOML file with a table [{job}] of options")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and Spark's warnings")
    for field in dataclasses.fields(options_class):
        limits = field.metadata
        text = limits["text"] + (f" [{limits['unit']}]" if limits["unit"] else "")
        default = "required" if limits["required"] else f"default {_shown(field.default)}"
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{text} ({default})".replace("%", "%%")}
        if field.name == "action":
            parser.add_argument(field.name, nargs="?", **settings)
        elif field.type == "bool" or field.type is bool:
            parser.add_argument(config.flag_of(field.name), action=argparse.BooleanOptionalAction, **settings)
        elif str(field.type).startswith("tuple"):
            parser.add_argument(config.flag_of(field.name), nargs="+", metavar="VALUE", **settings)
        else:
            parser.add_argument(config.flag_of(field.name), metavar=_metavar(field), **settings)
    return parser


def _metavar(field: "dataclasses.Field[Any]") -> str:
    if field.name in _PATHS:
        return "DIR"
    return {"int": "N", "float": "X"}.get(getattr(field.type, "__name__", ""), "VALUE")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return {"": "none", True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, str | bool) else str(value)
