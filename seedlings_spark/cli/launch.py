"""From a command line to spark-submit: `./spark-submit.sh ARGUMENTS`, or `seedlings ARGUMENTS` of an installed wheel.

Checks what can be known before Spark starts, makes the job's submission, and calls spark-submit. Neither Spark nor
TensorFlow is imported here: that would take seconds.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from seedlings_spark import cli, config, display, files
from seedlings_spark.cli import invocation, locales, relay
from seedlings_spark.cli.installation import Installation, require_java
from seedlings_spark.cli.invocation import Invocation
from seedlings_spark.cli.submission import Submission
from seedlings_spark.errors import OptionError

_USAGE = Path(__file__).with_name("usage.txt")
# Of the usage, what only a checkout has.
_OF_CHECKOUT = (".venv", "pytest")
# Jobs of this machine alone.
_WITHOUT_SPARK = ("serve",)
_TESTS = ("tests/unit", "tests/images", "tests/processes", "tests/keras", "tests/spark")


def main(arguments: Sequence[str] | None = None, installation: Installation | None = None) -> int:
    """Do what a command line asks for.

    Args:
        arguments: By default those of the process.
        installation: By default the one that this module is of, as the command `seedlings`.

    Returns:
        The exit code of the contract; where spark-submit takes the place of this process, nothing returns.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if installation is None:
        installation = Installation()
        os.environ[display.COMMAND] = "seedlings"
    cli.configure_logging("--debug" in arguments, cli.style_of(arguments))
    os.environ["PYTHONUTF8"] = "1"
    if utf8 := locales.for_utf8():
        os.environ["LC_ALL"] = utf8
    return cli.exit_code_of(lambda: _do(arguments, installation), debug="--debug" in arguments)


def _do(arguments: Sequence[str], installation: Installation) -> int:
    if list(arguments) == ["--version"]:
        print(cli.versions())
        return cli.DONE
    call = invocation.read(arguments)
    if call.job == "help" and call.arguments[:1] not in ((), ("test",), ("pack",)):
        call = invocation.read([call.arguments[0], "--help"])
    if call.job == "help" or "--help" in call.switches:
        print(usage(installation))
        return cli.DONE
    if not call.job:
        print(usage(installation), file=sys.stderr)
        return cli.WRONG_ARGUMENTS
    if call.job == "test":
        if not installation.is_checkout:
            raise OptionError(
                "test of an installed package", "the repository, which has the tests", "Call it there"
            )
        is_matrix = call.arguments[:1] == ("--matrix",)
        return (
            _test_matrix(call.arguments[1:], installation)
            if is_matrix
            else _test(call.arguments, installation)
        )
    if call.job == "pack":
        return _pack(call.arguments, installation)
    return _submit(call, installation)


def usage(installation: Installation) -> str:
    """What can be asked for."""
    lines = _USAGE.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if not installation.is_checkout:
        lines = [line for line in lines if not any(word in line for word in _OF_CHECKOUT)]
    return "\n".join(lines).replace("./spark-submit.sh", display.command())


def _test(arguments: Sequence[str], installation: Installation) -> int:
    require_java(os.environ)
    environment, given = dict(os.environ), list(arguments)
    for flag, variable in (("--all", "SEEDLINGS_TEST_ALL"), ("--yarn", "SEEDLINGS_TEST_YARN")) * 2:
        if given[:1] == [flag]:
            environment[variable] = "1"
            del given[0]
    folders = list(_TESTS)
    if environment.get("SEEDLINGS_TEST_ALL"):
        folders.append("tests/cluster")
    elif environment.get("SEEDLINGS_TEST_YARN"):
        folders.append("tests/cluster/yarn")
    # A path of one's own replaces the folders.
    if any(each.startswith(("tests/", "./tests/", f"{installation.home}/tests/")) for each in given):
        folders = []
    os.chdir(installation.home)
    relay.become([installation.python, "-m", "pytest", *folders, *given], environment)


def _test_matrix(arguments: Sequence[str], installation: Installation) -> int:
    """Run the tests with the packages for each Spark, one after the other; the exit code, of the first that failed."""
    outcomes: dict[str, int] = {}
    for file in sorted((installation.home / "conf").glob("constraints-spark-*.txt")):
        spark = file.stem.rpartition("-")[2]
        chosen = {**os.environ, "SEEDLINGS_SPARK_VERSION": spark}
        for name in ("SEEDLINGS_PYTHON", "SPARK_HOME"):  # they would choose another
            chosen.pop(name, None)
        command = [str(installation.home / "spark-submit.sh"), "test", *arguments]
        outcomes[spark] = subprocess.run(command, env=chosen, check=False).returncode
    told = [(f"Spark {spark}", f"exit code {code}" if code else "passed") for spark, code in outcomes.items()]
    print(display.table(told))
    return next(filter(None, outcomes.values()), cli.DONE)


def _pack(arguments: Sequence[str], installation: Installation) -> int:
    options = ["--gpu"] if arguments[:1] == ("--gpu",) else []
    folder, *_ = [*arguments[len(options) :], ""]
    if folder.startswith("-"):
        see = f"See {display.command()} --help"
        raise OptionError(f"pack {folder}", "pack [--gpu] [HDFS folder]", see)
    from seedlings_spark.cluster import environment

    archive = (installation.home if installation.is_checkout else Path.cwd()) / "dist" / "environment.tar.gz"
    archive.parent.mkdir(exist_ok=True)
    code = environment.main([str(archive), *options])
    if folder and not code:
        require_java(os.environ)
        spark_class = f"{installation.spark_home(os.environ)}/bin/spark-class"
        for asked in (("-mkdir", "-p", folder), ("-put", "-f", str(archive), f"{folder}/")):
            shell = [spark_class, "org.apache.hadoop.fs.FsShell", *asked]
            code = code or subprocess.run(shell, check=False).returncode
    return code


def _submit(call: Invocation, installation: Installation) -> int:
    installation.program(call.job)
    if call.job in config.JOBS and set(invocation.HELP) & set(call.arguments):
        return cli.check([call.job, "--help"])
    code = cli.check(
        [call.job, *call.arguments], deploy_mode=call.deploy_mode, spark_options=call.spark_options
    )
    if code:
        return code
    if call.job in _WITHOUT_SPARK:
        if call.spark_options or call.switches:
            given = " ".join((*call.spark_options, *sorted(call.switches)))
            raise OptionError(
                f"{given} before {call.job}", f"nothing: {call.job} runs without Spark", "Leave it out"
            )
        program = [installation.python, installation.program(call.job), *call.arguments]
        path = os.pathsep.join(
            filter(None, [str(installation.package.parent), os.environ.get("PYTHONPATH", "")])
        )
        relay.become(program, {**os.environ, "PYTHONPATH": path})
    require_java(os.environ)
    if "--detach" in call.switches and not _goes_on_detached(call):
        return cli.DONE
    submission = Submission(installation, call, os.environ)
    with contextlib.ExitStack() as ours:
        folder = "" if submission.is_here else ours.enter_context(tempfile.TemporaryDirectory())
        command, environment = submission.command(Path(folder)), submission.variables()
        if submission.is_here and not relay.must_stay(log=call.log):
            relay.become_submit(command, environment)
        cluster = ""
        if submission.in_container and not submission.is_here:
            cluster = relay.KUBERNETES if submission.on_kubernetes else relay.YARN
        return relay.attend(command, environment, log=call.log, cluster=cluster)


def _goes_on_detached(call: Invocation) -> bool:
    """Whether this is the process in the background, whose output is a run's log; the other one has told of it.

    Raises:
        OptionError: The job has no folder of this machine for its log.
    """
    run = invocation.value_of("--run", call.arguments)
    if call.job != "train" or not run or not files.is_local(run):
        raise OptionError(
            f"--detach {call.job}{f' --run {run}' if run else ''}",
            "train with --run and a folder of this machine, for the log",
            "Add --run; or leave --detach to the cluster with --master yarn --deploy-mode cluster",
        )
    log = files.local_path(run) / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        process = os.fork()
        if process == 0:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            for number, file in enumerate((nothing, output, output)):
                os.dup2(file.fileno(), number)
            return True
    print(run)
    told = f"process {process}, log {run}/train.log; {display.command()} status {run} says how far it is"
    print(told, file=sys.stderr)
    return False


def _of_script(python: str) -> Installation:
    """The checkout whose script has found this Python; and the environment is again as the script got it."""
    installation = Installation(python=python)
    _, _, others = os.environ.pop("PYTHONPATH", "").partition(os.pathsep)
    if others:
        os.environ["PYTHONPATH"] = others
    os.environ.pop(display.COMMAND, None)
    return installation


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], _of_script(sys.argv[1])))
