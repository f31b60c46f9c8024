"""What a command line asks for: options of spark-submit, a job, the job's arguments.

Spark's options are passed on as they are; some of them have to be known here.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from seedlings_spark import display
from seedlings_spark.errors import OptionError

# Of spark-submit, without a value; of ours, which it does not get.
_FLAGS = {"-v", "--verbose", "--version", "--supervise", "--usage-error", "--load-spark-defaults"}
_OURS = {"--insecure", "--detach"}
HELP = ("-h", "--help")


@dataclasses.dataclass(frozen=True)
class Invocation:
    """A command line.

    Args:
        job: A job, or a program of one's own; "" without any.
        arguments: What follows it.
        spark_options: What stands before it, without what is ours.
        values: The last value of each of Spark's options.
        settings: Those given by `--conf`.
        deploy_mode: Where the driver runs: `client` or `cluster`.
        switches: Those of `--insecure`, `--detach` and `--help` before the job, those that are there.
    """

    job: str = ""
    arguments: tuple[str, ...] = ()
    spark_options: tuple[str, ...] = ()
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    deploy_mode: str = "client"
    switches: frozenset[str] = frozenset()

    @property
    def is_secure(self) -> bool:
        """Whether Spark's own connections are authenticated and encrypted."""
        return "--insecure" not in self.switches and self.settings.get("spark.authenticate") != "false"

    @property
    def has_secret(self) -> bool:
        """Whether the secret for that is among the settings."""
        return bool({"spark.authenticate.secret", "spark.authenticate.secret.file"} & set(self.settings))

    @property
    def log(self) -> str:
        """The job's `--log`."""
        return value_of("--log", self.arguments)


def read(arguments: Sequence[str]) -> Invocation:
    """Read a command line.

    Raises:
        OptionError: One of Spark's options lacks its value.
    """
    waiting, options, switches = list(arguments), list[str](), set[str]()
    values, settings, deploy_mode = dict[str, str](), dict[str, str](), "client"
    while waiting and waiting[0].startswith("-"):
        option = waiting.pop(0)
        if option in HELP:
            return Invocation(switches=frozenset({"--help"}))
        if option in _OURS:
            switches.add(option)
            continue
        options.append(option)
        if option in _FLAGS:
            continue
        name, equals, value = option.partition("=") if option.startswith("--") else (option, "", "")
        if not equals:
            if not waiting:
                see = f"See {display.command()} --help"
                raise OptionError(f"{option} without a value", "spark-submit options, then a job", see)
            value = waiting.pop(0)
            options.append(value)
        values[name] = value
        if name in ("--conf", "-c"):
            name, _, value = value.partition("=")
            settings[name] = value
        if name in ("--deploy-mode", "spark.submit.deployMode"):
            deploy_mode = value
    job, *rest = waiting or [""]
    rest = _spelled_out(job, rest)
    return Invocation(job, tuple(rest), tuple(options), values, settings, deploy_mode, frozenset(switches))


def _spelled_out(job: str, arguments: list[str]) -> list[str]:
    """`status RUN`, `corpus diff A B` and `models promote VERSION` with the options that are left out in them."""
    if job == "status" and arguments and not _is_option(arguments[0]):
        return ["--run", *arguments]
    action, version, other = [*arguments[:3], "", "", ""][:3]
    if (job, action) == ("corpus", "diff") and not _is_option(version) and not _is_option(other):
        return [action, "--corpus", version, "--other", *arguments[2:]]
    if job == "models" and action in ("promote", "delete") and not _is_option(version):
        return [action, "--model-version", *arguments[1:]]
    return arguments


def _is_option(argument: str) -> bool:
    return argument.startswith("-") or not argument


def value_of(name: str, arguments: Sequence[str]) -> str:
    """The value of an option among a job's arguments, "" without any; the last one counts."""
    found, previous = "", ""
    for argument in arguments:
        if argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
        if previous == name:
            found = argument
        previous = argument
    return found
