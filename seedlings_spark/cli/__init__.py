"""Arguments, options, session, logging and exit code of a job.

A job is a function of a session and its options. What it raises for a user becomes one line on stderr and the
exit code of its class; a traceback is shown with `--debug` only:

    0    done
    1    failed
    2    wrong arguments
    3    done, but with more rejects than --max-reject-fraction, or more drift than --max-drift
    4    done, but accuracy on late labels is below --min-accuracy; or not promoted, since it is worse
    73   the output is in use by another run
    130  interrupted from the keyboard

`check` reads a job's arguments and does no more, in a moment: this module imports neither Spark nor TensorFlow
before it runs a job.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from seedlings_spark import config, display, errors, files, progress
from seedlings_spark.cli import preflight
from seedlings_spark.errors import OptionError, SeedlingsError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_T = TypeVar("_T", bound=config.Options)
_log = logging.getLogger("seedlings_spark")

DONE, FAILED, WRONG_ARGUMENTS, TOO_MANY_REJECTS, LOW_ACCURACY = 0, 1, 2, 3, 4
# Of `--log`.
LOGS = PLAIN, JSON_LINES = "plain", "json"
# Set by YARN for all attempts of an application.
_STAGING = "SPARK_YARN_STAGING_DIR"
# Where stderr really goes, as the launcher says.
STDERR = "SEEDLINGS_STDERR"
# What is easily given to a job, and belongs before it.
_OF_SPARK = {"--master", "--deploy-mode", "--conf", "--properties-file", "--py-files", "--num-executors"}
_OF_SPARK |= {
    "--executor-cores",
    "--executor-memory",
    "--driver-memory",
    "--driver-cores",
    "--driver-java-options",
}
_OF_SPARK |= {
    "--total-executor-cores",
    "--jars",
    "--packages",
    "--files",
    "--archives",
    "--queue",
    "--principal",
    "--keytab",
}
_OF_SPARK |= {"--principal", "--keytab", "--insecure", "--detach"}
# What stands in --help for choices that are too many for a line of a narrow terminal.
_LONG, _LONGEST = "NAME", 48
_LONGEST_ACTIONS = 56
# One call of each job, for --help.
_EXAMPLES = {
    "quickstart": "--output quickstart",
    "prepare": "--images photos --corpus corpus --image-size 128",
    "corpus": "diff corpus-may corpus-june",
    "explore": "--corpus corpus --report corpus-report --store store",
    "train": "--corpus corpus --store store --num-workers 4 --epochs 50",
    "tune": "--corpus corpus --store store --space space.toml --trials 40 --sample 0.2",
    "evaluate": "--corpus corpus --store store --report report",
    "score": "--images new-photos --store store --output scores --incremental",
    "feedback": "--scores scores --labels labels.csv --report feedback --min-accuracy 0.9",
    "watch": "--scores scores --report drift",
    "featurize": "--corpus corpus --network efficientnet-lite0 --output features",
    "similar": "--features features --to photo.jpg --top 20",
    "models": "promote --store store --model-version v0002",
    "serve": "--store store --port 8501",
    "clean": "--output scores --older-than 30d --dry-run",
    "forget": "--paths erasures.txt --output scores --corpus corpus --store store",
    "benchmark": "score --num-images 2000",
    "status": "runs/2026-11-21",
    "reproduce": "--run runs/2026-11-21",
    "doctor": "--output hdfs:///seedlings",
}


def run(
    job: str,
    options_class: type[_T],
    main: "Callable[[SparkSession, _T], int | None]",
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a job from its command line.

    Args:
        job: Its name.
        options_class: Class of its options.
        main: What it does; returns an exit code, None for 0.
        arguments: By default those of the process.

    Returns:
        The exit code of the contract.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _find_stderr()
    configure_logging(
        "--debug" in arguments, style_of(arguments)
    )  # wrong arguments are told in that style, too

    def work() -> int:
        options, general = read_arguments(job, options_class, arguments)
        configure_logging(general.debug, general.log)
        from seedlings_spark.cluster import session

        spark = session.build(f"seedlings {job}")
        spark.sparkContext.setLogLevel("WARN" if general.debug else "ERROR")
        name_run(str(spark.sparkContext.applicationId))
        with contextlib.suppress(ValueError):  # no main thread
            # Spark's own handler asks the JVM to cancel its jobs, which the same Ctrl-C has ended by then.
            signal.signal(signal.SIGINT, _interrupt)
        try:
            told = _exit_code_file(spark)
            if told and files.exists(told):
                code = int(files.read_text(told))
                _log.warning("an attempt before this one has ended with exit code %d: that stands", code)
                return code
            session.require_utf8(spark, arguments)
            code = exit_code_of(lambda: _do(job, spark, main, options), debug=general.debug)
            if told and code:
                files.write_text(told, f"{code}\n")
            return code
        finally:
            _stop(spark)

    return exit_code_of(work, debug="--debug" in arguments)


def run_here(
    job: str,
    options_class: type[_T],
    main: "Callable[[_T], int | None]",
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a job that needs no Spark; otherwise as `run`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    configure_logging("--debug" in arguments, style_of(arguments))

    def work() -> int:
        options, general = read_arguments(job, options_class, arguments)
        configure_logging(general.debug, general.log)
        return main(options) or DONE

    return exit_code_of(work, debug="--debug" in arguments)


def _interrupt(number: int, frame: object) -> NoReturn:
    """End the job, of which only the last line is then to be heard.

    The same Ctrl-C ends the JVM, of which py4j, Spark's servers and other threads have tracebacks to tell.
    """
    sys.stderr = _Hushed(sys.stderr)
    logging.disable()
    raise KeyboardInterrupt


class _Hushed(io.TextIOBase):
    """Takes what is written to it to no one.

    Args:
        stream: Where it went before.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        """Drop a text."""
        return len(text)


def _stop(spark: "SparkSession") -> None:
    """Stop a session. One whose JVM is gone, after a Ctrl-C, cannot be, and what the job has said of its end stands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            spark.stop()
        except Exception as error:
            _log.debug("the session could not be stopped: %s", error)


def _do(
    job: str, spark: "SparkSession", main: "Callable[[SparkSession, _T], int | None]", options: _T
) -> int:
    from seedlings_spark.cluster import session

    options = config.qualified(options)
    # Those of a file came through no JVM, so a `?` in them is one; but it could not open what they name.
    session.require_utf8(spark, (str(value).replace("?", "") for value in vars(options).values()))
    if _is_in_container(spark):
        check_outputs(options)
    _log.info(opening_line(job, options, spark.version, str(spark.sparkContext.master)))
    with progress.Heartbeat(spark):
        return main(spark, options) or DONE


def _is_in_container(spark: "SparkSession") -> bool:
    return spark.conf.get("spark.submit.deployMode", "client") == "cluster"


def _exit_code_file(spark: "SparkSession") -> str:
    """Where an attempt of a YARN application leaves its exit code for the next one; "" elsewhere.

    YARN starts an application again whose driver ends with another code than 0. That helps against killed
    drivers, and not against wrong data.
    """
    staging = os.environ.get(_STAGING, "")
    return files.join(staging, "seedlings-exit-code") if staging and _is_in_container(spark) else ""


def check(
    arguments: Sequence[str], *, deploy_mode: str | None = None, spark_options: Sequence[str] = ()
) -> int:
    """Read the arguments of a job, its name first, as `run` would, and do nothing; the exit code.

    Args:
        arguments: A job's name or a program of one's own, and what follows it.
        deploy_mode: Where the driver is going to run; then Spark's home and the job's places on this machine are looked
            at, too. Of a program of one's own only the first can be.
        spark_options: What spark-submit is going to be given.
    """
    job, *rest = arguments
    configure_logging("--debug" in rest, style_of(rest))

    def work() -> int:
        if job in config.JOBS:
            options, _ = read_arguments(job, config.JOBS[job], rest)
        if deploy_mode:
            preflight.check_spark(os.environ)
        if job in config.JOBS and deploy_mode == "cluster":
            check_outputs(options)
        elif job in config.JOBS and deploy_mode:
            preflight.check_places(job, options, os.environ, "\n".join(spark_options))
        return DONE

    return exit_code_of(work, debug="--debug" in rest)


def versions() -> str:
    """What is installed, as a table."""
    from seedlings_spark import reproducibility

    return table([(name, version) for name, version in _versions(reproducibility.package_versions())])


@dataclasses.dataclass(frozen=True)
class General:
    """What every job can be told.

    Args:
        debug: Whether tracebacks are shown.
        log: `PLAIN` or `JSON_LINES`.
    """

    debug: bool = False
    log: str = PLAIN


def read_arguments(job: str, options_class: type[_T], arguments: Sequence[str]) -> tuple[_T, General]:
    """A job's options, and what every job can be told; `--help` prints the options and exits.

    Raises:
        OptionError: An unknown option, or a value that it cannot have.
    """
    known, unknown = _parser(job, options_class).parse_known_args(arguments)
    if unknown:
        raise _unknown(job, options_class, unknown[0])
    flags = vars(known)
    general, file = General(bool(flags.pop("debug")), str(flags.pop("log"))), str(flags.pop("config"))
    return config.resolve(options_class, job, flags, file), general


def exit_code_of(work: Callable[[], int | None], *, debug: bool = False) -> int:
    """Do some work; what it raises becomes one line on stderr and an exit code."""
    try:
        return work() or DONE
    except (Exception, KeyboardInterrupt) as error:
        if errors.is_interruption(error):
            last_line("interrupted", errors.INTERRUPTED)
            return errors.INTERRUPTED
        if not isinstance(error, Exception):
            raise
        if debug:
            _log.exception("the traceback, since --debug was given")
        return fail(errors.for_user(error))


def fail(error: SeedlingsError) -> int:
    """Say on one line of stderr what is wrong; returns the error's exit code."""
    last_line(display.one_line(error), error.exit_code, message=str(error), error=type(error).__name__)
    return error.exit_code


def last_line(text: str, exit_code: int, *, message: str = "", **more: str) -> None:
    """Say how a job has ended: a text, in a log of JSON another message and more."""
    json_lines = _json_lines()
    if json_lines is not None:
        text = json_lines.line("ERROR", message or text, exit_code=exit_code, **more)
    print(text, file=sys.stderr.stream if isinstance(sys.stderr, _Hushed) else sys.stderr)


def check_outputs(options: config.Options) -> None:
    """Refuse to write where nobody finds it, when the driver runs in a container of the cluster.

    Raises:
        OptionError: A path that is written to is relative, or on the local file system.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name) if field.name in config.OUTPUTS else ""
        is_full = re.match(r"([A-Za-z][A-Za-z0-9+.-]*:)?/", value)
        if value and (not is_full or value.lower().startswith("file:")):
            raise OptionError(
                f"{config.flag_of(field.name)} {value} with --deploy-mode cluster",
                "the full URI of a folder on a shared file system: the driver runs in a container, whose own disk is"
                " deleted when it ends",
                f"Give {config.flag_of(field.name)} as in hdfs:///folder, or use --deploy-mode client",
            )


def _versions(packages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout need not be installed
        yield "seedlings_spark", metadata.version("seedlings-spark")
    yield from packages.items()


def opening_line(job: str, options: config.Options, spark_version: str, master: str) -> str:
    """What runs, where it runs, and where things come from and go to."""
    version = ""
    with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout need not be installed
        version = f" {metadata.version('seedlings-spark')}"
    paths = [
        f"{field.name} {getattr(options, field.name)}"
        for field in dataclasses.fields(options)
        if field.name in config.PATHS and getattr(options, field.name)
    ]
    return f"seedlings_spark{version}: {job} on {master}, Spark {spark_version}; {', '.join(paths)}"


def configure_logging(debug: bool, style: str = PLAIN) -> None:
    """Our log on stderr, a line each; libraries only when something is wrong.

    Args:
        debug: Whether to show more.
        style: `PLAIN`, or `JSON_LINES` with the keys `ts`, `level`, `msg`, `run`, and those of the occasion.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if style == JSON_LINES else _Plain())
    if style == JSON_LINES:
        os.environ["TERM"] = "dumb"  # no live line between them
    logger = logging.getLogger("seedlings_spark")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def name_run(run: str) -> None:
    """Let each further line of a JSON log tell the run: Spark's id of the application."""
    json_lines = _json_lines()
    if json_lines is not None:
        json_lines.run = run


class _Plain(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = display.shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(display.shown, super().formatException(ei).split("\n")))


class _JsonLines(logging.Formatter):
    run = ""

    def format(self, record: logging.LogRecord) -> str:
        more = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return self.line(record.levelname, record.getMessage(), **more)

    def line(self, level: str, message: str, **more: object) -> str:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        content = {"ts": now, "level": level, "msg": message, "run": self.run, **more}
        return display.as_json(content)


def as_json_line(line: bytes) -> str:
    """A line of a log of JSON as it is, and any other one as the message of such a line."""
    text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
    with contextlib.suppress(ValueError):
        if isinstance(json.loads(text), dict):
            return text
    return _JsonLines().line("WARNING", text)


def style_of(arguments: Sequence[str]) -> str:
    """Of `LOGS`, as arguments ask for it that nobody has looked at yet."""
    pairs = zip(["", *arguments], arguments, strict=False)
    asked = any(
        one == f"--log={JSON_LINES}" or (before, one) == ("--log", JSON_LINES) for before, one in pairs
    )
    return JSON_LINES if asked else PLAIN


def _json_lines() -> _JsonLines | None:
    """The formatter of the log, if it is one of JSON lines."""
    formatters = (handler.formatter for handler in logging.getLogger("seedlings_spark").handlers)
    return next((each for each in formatters if isinstance(each, _JsonLines)), None)


def rejects_exit_code(manifest: Mapping[str, Any], max_reject_fraction: float) -> int:
    """3 if more files were rejected than allowed, else 0: of what was read, not of what was known before."""
    rejected, known = int(manifest["rejected"]), manifest.get("parent") or {}
    number = int(manifest["scored"]) + rejected if "scored" in manifest else int(manifest["listed"])
    rejected, number = rejected - int(known.get("rejected", 0)), number - int(known.get("listed", 0))
    if rejected <= max_reject_fraction * number:
        return DONE
    _log.warning(
        "%d of %d files were rejected, more than --max-reject-fraction %g: %s",
        rejected,
        number,
        max_reject_fraction,
        json.dumps(manifest["rejected_by_reason"]),
    )
    return TOO_MANY_REJECTS


def drift_exit_code(manifest: Mapping[str, Any], max_drift: float) -> int:
    """3 if a run's images differ more from the training corpus than allowed, else 0; 0 allows everything."""
    if not max_drift or manifest["drift"]["worst"] <= max_drift:
        return DONE
    _log.warning("the images differ from the training corpus by more than --max-drift %g", max_drift)
    return TOO_MANY_REJECTS


def accuracy_exit_code(accuracy: float, min_accuracy: float) -> int:
    """4 if an accuracy is lower than allowed, else 0; one of no pictures is."""
    if not min_accuracy or accuracy >= min_accuracy:
        return DONE
    _log.warning("the accuracy is %.4f, below --min-accuracy %g", accuracy, min_accuracy)
    return LOW_ACCURACY


# What jobs print at their end.
table = display.table


def _find_stderr() -> None:
    """Write to the stderr of the launcher again.

    spark-submit gives a Python driver one pipe for both streams and prints what comes out on stdout
    (org.apache.spark.deploy.PythonRunner): errors would stand among results, and no progress line could be live.
    """
    path = os.environ.pop(STDERR, "")
    with contextlib.suppress(OSError):  # nothing is lost then: both streams stay one
        if path:
            found = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
            sys.stderr.flush()
            os.dup2(found, 2)
            os.close(found)


class _Parser(argparse.ArgumentParser):
    example = ""

    def format_help(self) -> str:
        # In lines that a shell takes as one.
        lines = textwrap.wrap(
            f"{self.prog} {self.example}", 56, break_long_words=False, break_on_hyphens=False
        )
        return super().format_help() + "\nfor example:\n  " + " \\\n    ".join(lines) + "\n"

    def error(self, message: str) -> NoReturn:
        raise OptionError(message, f"the options of {self.prog}", f"See {self.prog} --help")


def _parser(job: str, options_class: type[config.Options]) -> argparse.ArgumentParser:
    fields = dataclasses.fields(options_class)
    needed = [f"{config.flag_of(field.name)} {_metavar(field)}" for field in fields if _is_required(field)]
    action = "ACTION " if any(field.name == "action" for field in fields) else ""
    parser = _Parser(
        prog=f"{display.command()} {job}",
        usage=f"{display.command()} [spark-submit options] {job} {action}{' '.join([*needed, '[options]'])}",
        description=(options_class.__doc__ or "").strip(),
        allow_abbrev=False,
        add_help=False,
        formatter_class=functools.partial(
            argparse.HelpFormatter,
            max_help_position=30,
            width=max(60, min(110, shutil.get_terminal_size().columns)),
        ),
        epilog="Spark's own options (--master, --conf, ...) go before the job's name.",
    )
    parser.example = _EXAMPLES.get(job, "")
    required = parser.add_argument_group("required")
    group = parser.add_argument_group("options")
    for field in fields:
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        _add(required if _is_required(field) else group, field)
    general = parser.add_argument_group("for every job")
    general.add_argument(
        "--config", default="", metavar="FILE", help=f"TOML file with options in its table [{job}]; flags win"
    )
    general.add_argument(
        "--log",
        default=PLAIN,
        choices=LOGS,
        help="lines of the log on stderr: plain, or JSON (default: plain)",
    )
    general.add_argument("--debug", action="store_true", help="show tracebacks and Spark's warnings")
    general.add_argument("-h", "--help", action="help", help="show this and exit")
    return parser


def _add(group: Any, field: "dataclasses.Field[Any]") -> None:
    limits, flag = field.metadata, config.flag_of(field.name)
    unit = f" {limits['unit']}" if limits["unit"] else ""
    notes = [] if _is_required(field) else [f"default: {_shown(field.default)}{unit}"]
    if limits["choices"] and str(field.type).startswith("tuple"):
        notes.insert(0, f"any of {', '.join(limits['choices'])}")
    elif _metavar(field) == _LONG:
        notes.insert(0, f"one of {', '.join(limits['choices'])}")
    text = limits["text"] + (f" ({'; '.join(notes)})" if notes else "")
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if field.name == "action":
        group.add_argument(field.name, nargs="?", metavar=_metavar(field), **settings)
    elif field.type is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
    elif limits["switch"]:
        group.add_argument(flag, nargs="?", const=limits["switch"][0], metavar=_metavar(field), **settings)
        no_flag = {"action": "store_const", "const": limits["switch"][1], "default": argparse.SUPPRESS}
        group.add_argument(f"--no-{flag[2:]}", dest=field.name, help=argparse.SUPPRESS, **no_flag)
    elif str(field.type).startswith("tuple"):
        group.add_argument(flag, nargs="+", metavar="VALUE", **settings)
    else:
        group.add_argument(flag, metavar=_metavar(field), **settings)


def _unknown(job: str, options_class: type[config.Options], argument: str) -> OptionError:
    see = f"See {display.command()} {job} --help"
    if not argument.startswith("-"):
        return OptionError(f"{argument!r}, which belongs to no option", f"the options of {job}", see)
    flag = argument.partition("=")[0]
    if flag in _OF_SPARK:
        return OptionError(
            f"{flag} after the job's name",
            "Spark's own options before it",
            f"Write {display.command()} {flag} ... {job} ...",
        )
    flags = [config.flag_of(field.name) for field in dataclasses.fields(options_class)]
    near = config.suggestion(flag, [*flags, "--config", "--debug", "--log"])
    others = [
        other for other, its in config.JOBS.items() if flag in map(config.flag_of, its.__dataclass_fields__)
    ]
    if others and not near:
        see = f"It is one of {', '.join(others)}; see {display.command()} {job} --help for those of {job}"
    return OptionError(
        f"unknown option {flag}", f"the options of {job}", f"Did you mean {near}?" if near else see
    )


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return bool(field.metadata["required"])


def _metavar(field: "dataclasses.Field[Any]") -> str:
    if field.name in config.PATHS:
        return "DIR"
    if field.metadata["choices"]:
        shown = "{" + ",".join(field.metadata["choices"]) + "}"
        # Jobs' actions are arguments that stand for themselves, on lines of their own.
        if field.name == "action":
            return shown if len(shown) <= _LONGEST_ACTIONS else _LONG
        return shown if len(shown) <= _LONGEST else _LONG
    return "N" if field.type is int else "X" if field.type is float else "VALUE"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value) or "none"
