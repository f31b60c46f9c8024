"""A job's command line: what it says, and the exit code it ends with. No JVM is started."""

import dataclasses
import datetime
import functools
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seedlings_spark import cli, config, errors
from seedlings_spark.cli import invocation, preflight
from seedlings_spark.errors import (
    ClusterError,
    CorpusError,
    OptionError,
    OutputInUseError,
    SeedlingsError,
    TrainingError,
)
from seedlings_spark.workflow import quickstart
from tests.conftest import HANG_SECONDS

ROOT = Path(__file__).parents[2]
THREE_PARTS = re.compile(r"\w+: .+\. Expected .+\. .+[.?]")


@pytest.fixture(autouse=True)
def _quiet_logger() -> Any:
    """The logger as it was: a job configures it."""
    logger = logging.getLogger("seedlings_spark")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def wrong(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command line is answered with."""
    assert cli.check(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert THREE_PARTS.fullmatch(err.rstrip("\n")), err
    return err


def shown_help(job: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.check([job, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


# --- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--epohcs", "3"], "unknown option --epohcs"),
        (["train", "--epohcs=3"], "Did you mean --epochs?"),
        (
            ["train", "--epoch", "3"],
            "unknown option --epoch",
        ),  # no abbreviations: they break with a new option
        (["train", "-x"], "unknown option -x"),
        (["train", "all"], "'all', which belongs to no option"),
        (["train", "--master", "yarn"], "--master after the job's name"),
        (["train", "--conf=spark.ui.enabled=true"], "Write ./spark-submit.sh --conf ... train ..."),
        (["train", "--epochs"], "--epochs: expected one argument"),
        (["train", "--augment", "--epochs", "3"], "--augment: expected at least one argument"),
        (["train", "--promote=yes"], "--promote"),
        (["train"], "no --corpus, --store"),
        (["prepare", "--images", "", "--corpus", "c"], "no --images"),
        (["train", "--corpus", "c", "--store", "s", "--epochs", "0"], "--epochs 0"),
        (["train", "--corpus", "c", "--store", "s", "--mode", "none"], "--mode none"),
        (["train", "--corpus", "c", "--store", "s", "--epochs", "1\n2"], "--epochs 1 2"),
        (["train", "--config", "/no/such/file.toml"], "--config /no/such/file.toml"),
        (["models", "remove", "--store", "s"], "--action remove"),
        (["models", "promote", "--store", "s"], "models promote without --model-version"),
        (["score", "--images", "i", "--store", "s", "--output", "o", "--formats", "svg"], "--formats svg"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_line_of_three_parts(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in wrong(capsys, *arguments)


def test_right_arguments_are_silently_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.check(["prepare", "--images", "a b", "--corpus", "c", "--sample", "0.1"]) == 0
    assert capsys.readouterr() == ("", "")


def test_options_come_from_flags_and_file(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text("[train]\nepochs = 4\npromote = true\n")
    options, general = cli.read_arguments(
        "train",
        config.TrainOptions,
        ["--corpus", "c", "--store=s", "--config", str(file), "--no-promote", "--debug", "--seed", "-1"],
    )
    assert (options.corpus, options.store, options.epochs, options.promote) == ("c", "s", 4, "never")
    assert options.seed == -1 and general == cli.General(debug=True)


@pytest.mark.parametrize(
    ("flags", "toml", "promote"),
    [
        ([], "", "always"),
        (["--promote"], "", "always"),
        (["--promote", "--seed", "1"], "", "always"),
        (["--promote", "better"], "", "better"),
        (["--no-promote"], "", "never"),
        (["--promote", "never"], "promote = true", "never"),
        ([], "promote = true", "always"),
        ([], "promote = false", "never"),
        ([], 'promote = "better"', "better"),
    ],
)
def test_promotion_is_said_in_a_word_or_as_it_was_before(
    tmp_path: Path, flags: list[str], toml: str, promote: str
) -> None:
    (tmp_path / "o.toml").write_text(f"[train]\n{toml}\n")
    arguments = ["--corpus", "c", "--store", "s", "--config", str(tmp_path / "o.toml"), *flags]
    assert cli.read_arguments("train", config.TrainOptions, arguments)[0].promote == promote


def test_an_action_can_stand_anywhere_or_be_left_out() -> None:
    for arguments in (["rollback", "--store", "s"], ["--store", "s", "rollback"]):
        assert cli.read_arguments("models", config.ModelsOptions, arguments)[0].action == "rollback"
    assert cli.read_arguments("models", config.ModelsOptions, ["--store", "s"])[0].action == "list"


def test_arguments_are_read_without_spark_and_without_tensorflow() -> None:
    code = (
        "import sys\nfrom seedlings_spark import cli\n"
        "assert cli.check(['train', '--corpus', 'c', '--store', 's']) == 0\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not found & {'pyspark', 'tensorflow', 'keras', 'numpy'}, found"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=HANG_SECONDS)


# --- --help


@pytest.mark.parametrize("job", config.JOBS)
def test_help_shows_every_option_with_its_text_default_and_unit(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(shown_help(job, capsys).split())
    assert (config.JOBS[job].__doc__ or "").strip() in text
    assert "--config" in text and "--debug" in text and "--help" in text
    for field in dataclasses.fields(config.JOBS[job]):
        limits = field.metadata
        assert config.flag_of(field.name) in text or field.name == "action"
        assert limits["text"] in text
        if not limits["required"]:
            default = cli._shown(field.default) + (f" {limits['unit']}" if limits["unit"] else "")
            assert f"default: {default})" in text, field.name
        for choice in limits["choices"]:
            assert choice in text


@pytest.mark.parametrize("job", config.JOBS)
@pytest.mark.parametrize("columns", ["1", "80", "300"])
def test_help_fits_its_lines_on_any_terminal(
    job: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    usage, _, rest = shown_help(job, capsys).partition("\n")
    assert usage.startswith(f"usage: ./spark-submit.sh [spark-submit options] {job} ")
    assert max(map(len, rest.splitlines())) <= {"1": 60, "80": 80, "300": 110}[columns]


@pytest.mark.parametrize("job", config.JOBS)
def test_help_ends_with_a_call_that_works(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = shown_help(job, capsys).partition("for example:\n")[2]
    arguments = shown.replace("\\\n", " ").split()
    assert arguments[:2] == ["./spark-submit.sh", job]
    assert cli.check([job, *invocation.read(arguments[1:]).arguments]) == 0, capsys.readouterr().err


def test_versions_are_shown() -> None:
    shown = dict(line.split() for line in cli.versions().splitlines())
    assert shown["python"] == ".".join(map(str, sys.version_info[:3])) and "pyspark" in shown


def test_an_option_of_another_job_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "It is one of train" in wrong(capsys, "evaluate", "--epochs", "3")


def test_percent_signs_and_braces_in_texts_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Hostile(config.Options):
        """100 % of {braces} and %s of %d."""

        share: float = config.option(0.5, "5 % of {all}, 100%s, %(default)s", unit="%", reason="a {} %d")

    with pytest.raises(SystemExit) as caught:
        cli.read_arguments("train", Hostile, ["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "5 % of {all}, 100%s, %(default)s (default: 0.5 %)" in text
    assert "100 % of {braces} and %s" in text


# --- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OptionError("a", "b", "c"), 2),
        (CorpusError("a", "b", "c"), 1),
        (ClusterError("a", "b", "c"), 1),
        (OutputInUseError("a", "b", "c"), 73),
    ],
)
def test_an_error_ends_with_the_code_of_its_class_and_one_line(
    error: SeedlingsError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    assert cli.exit_code_of(work) == code
    assert capsys.readouterr() == ("", f"{type(error).__name__}: a. Expected b. c.\n")


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_job_that_ends_by_itself_returns_its_code(returned: int | None, code: int) -> None:
    assert cli.exit_code_of(lambda: returned) == code


def test_every_error_of_a_user_has_a_code_of_the_contract() -> None:
    classes = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SeedlingsError)
    ]
    assert {kind.exit_code for kind in classes} == {1, 2, 4, 73}


def test_an_interrupt_ends_with_130_and_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise KeyboardInterrupt

    assert cli.exit_code_of(work) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("error", [CorpusError("a", "b", "c"), ZeroDivisionError("x")])
def test_a_traceback_is_shown_with_debug_only(
    error: Exception, debug: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.configure_logging(debug)

    def work() -> int:
        raise error

    assert cli.exit_code_of(work, debug=debug) == 1
    err = capsys.readouterr().err
    assert ("Traceback" in err) is debug
    assert THREE_PARTS.fullmatch(err.rstrip("\n").splitlines()[-1])


FROM_A_WORKER = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "/a/worker.py", line 1, in main
    process()
KeyError: 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/a/b.py", line 3, in f
    raise ValueError("x: y")
{}
"""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("", "SparkError."),
        ("\n\n first line\n second line", "SparkError: first line."),
        ("x" * 5000, f"SparkError: {'x' * 300}."),
        (
            "An error occurred while calling o61.parquet.\n: org.apache.spark.SparkException: Job aborted.\n\tat a",
            "org.apache.spark.SparkException: Job aborted.",
        ),
        (FROM_A_WORKER.format("ValueError: x: y"), "ValueError: x: y."),
        (FROM_A_WORKER.format("KeyboardInterrupt"), "KeyboardInterrupt."),
        ("Traceback (most recent call last):\n", "SparkError: Traceback (most recent call last):."),
    ],
)
def test_an_unexpected_exception_becomes_one_line_with_its_cause(
    message: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class SparkError(Exception):
        pass

    def work() -> int:
        raise SparkError(message)

    assert cli.exit_code_of(work) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"SeedlingsError: {said} Expected no such failure") and "--debug" in err


OF_A_TASK = """Job aborted due to stage failure: Task 0 in stage 1.0 failed 4 times, most recent failure: Lost task \
0.3 in stage 1.0 (TID 7) (host executor 2): org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed.
\tat org.apache.spark.Z.a(Z.scala:1)
Caused by: {}
\tat java.base/java.io.X.y(X.java)

Driver stacktrace:
"""
OF_A_BARRIER = """Job aborted due to stage failure: Could not recover from a failed barrier ResultStage. Most recent \
failure reason: Stage failed because barrier task ResultTask(1, 0) finished unsuccessfully.
org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/x/worker.py", line 1, in main
{}

\tat org.apache.spark.Y.z(Y.scala:1)
"""


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("java.io.IOException: No space left on device", "Expected free space"),
        ("OSError: [Errno 28] No space left on device: '/x'", "Expected free space"),
        ("OSError: [Errno 122] Disk quota exceeded", "Expected a quota"),
        ("a.b.DSQuotaExceededException: The DiskSpace quota of /x is exceeded: q", "Expected a quota"),
        (
            "a.b.RemoteException: File /x could only be written to 0 of the 1 minReplication nodes.",
            "Expected free",
        ),
        ("a.b.SafeModeException: Cannot create /x. Name node is in safe mode.", "safemode get"),
        ("a.b.AccessControlException: Permission denied: user=u, access=WRITE", "Expected the right to"),
        ("java.io.FileNotFoundException: /x (Permission denied)", "Expected the right to"),
        ("OSError: [Errno 30] Read-only file system: '/x'", "can be written to"),
        ("NotADirectoryError: [Errno 20] Not a directory: '/x'", "Expected a folder where"),
        ("a.b.ParentNotDirectoryException: /x (is not a directory)", "Expected a folder where"),
        ("OSError: [Errno 36] File name too long: 'x'", "255 bytes"),
        ("java.io.IOException: Mkdirs failed to create file:/x", "a folder that can be made"),
        ("OSError: [Errno 24] Too many open files", "ulimit -n"),
        ("java.lang.OutOfMemoryError: Java heap space", "--driver-memory"),
        ("ModuleNotFoundError: No module named 'seedlings_spark'", "PYSPARK_PYTHON"),
        ("java.net.ConnectException: Call From a to b:8020 failed", "a host that answers"),
    ],
)
def test_what_no_program_can_help_has_its_own_words_wherever_it_was_raised(
    cause: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    is_java = cause.startswith(("a.b.", "java."))
    for wrapped in [OF_A_TASK] if is_java else [OF_A_BARRIER, FROM_A_WORKER]:
        error = RuntimeError(wrapped.format(cause))
        assert cli.exit_code_of(functools.partial(_raise, error)) == 1
        err = capsys.readouterr().err
        assert THREE_PARTS.fullmatch(err.rstrip("\n")), err
        assert cause[:60] in err and said in err and "fault of the program" not in err


def _raise(error: Exception) -> int:
    raise error


def test_an_unexpected_exception_names_the_line_that_raised_it(capsys: pytest.CaptureFixture[str]) -> None:
    cli.exit_code_of(lambda: config.range_of({}) and 0)
    assert re.search(
        r"^SeedlingsError: KeyError: 'unit'\..*report it \(options\.py, line \d+\)\.$",
        capsys.readouterr().err,
    )


def test_a_full_disk_and_a_file_in_a_folders_place_are_told_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system's own errors, whatever has been made of them on the way."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    def fill() -> int:
        try:
            Path("/dev/full").write_text("x")
        except OSError as error:
            raise RuntimeError("the table was not written") from error
        return 0

    assert cli.exit_code_of(fill) == 1
    assert "OSError: No space left on device. Expected free space" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.exit_code_of(lambda: (tmp_path / "file" / "x").mkdir()) == 1  # type: ignore[func-returns-value]
    assert "Not a directory" in capsys.readouterr().err
    assert cli.exit_code_of(lambda: (tmp_path / ("x" * 300)).mkdir()) == 1  # type: ignore[func-returns-value]
    assert "255 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "code"), [("ClusterError", 1), ("OutputInUseError", 73)])
def test_what_a_worker_says_to_a_user_arrives_as_it_was_said(
    kind: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "2 threads. Expected 1. Use spark.python.worker.reuse=false."

    def work() -> int:
        raise RuntimeError(FROM_A_WORKER.format(f"seedlings_spark.errors.{kind}: {said}"))

    assert cli.exit_code_of(work) == code
    assert capsys.readouterr().err == f"{kind}: {said}\n"


@pytest.mark.parametrize("kind", ["ImageError", "NoSuchError", "annotations"])
def test_a_name_that_is_no_error_of_a_user_is_an_unexpected_one(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise RuntimeError(FROM_A_WORKER.format(f"seedlings_spark.errors.{kind}: a. Expected b. c."))

    assert cli.exit_code_of(work) == 1
    assert capsys.readouterr().err.startswith(f"SeedlingsError: seedlings_spark.errors.{kind}: a.")


@pytest.mark.parametrize(
    ("rejected", "listed", "allowed", "code"),
    [(0, 0, 0.0, 0), (0, 10, 0.0, 0), (1, 10, 0.0, 3), (1, 10, 0.1, 0), (2, 10, 0.1, 3), (10, 10, 1.0, 0)],
)
def test_too_many_rejects_end_with_3(rejected: int, listed: int, allowed: float, code: int) -> None:
    manifest = {"rejected": rejected, "listed": listed, "rejected_by_reason": {"empty": rejected}}
    assert cli.rejects_exit_code(manifest, allowed) == code
    # What earlier runs have scored says nothing of this one.
    of_run = {**manifest, "scored": listed - rejected, "listed": listed + 9_900, "already_scored": 9_900}
    assert cli.rejects_exit_code(of_run, allowed) == code
    known = {"listed": 9_000, "rejected": 7}
    grown = {**manifest, "listed": listed + 9_000, "rejected": rejected + 7, "parent": known}
    assert cli.rejects_exit_code(grown, allowed) == code


def test_too_many_rejects_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    cli.configure_logging(False)
    cli.rejects_exit_code({"rejected": 2, "listed": 4, "rejected_by_reason": {"empty": 2}}, 0.25)
    said = "2 of 4 files were rejected, more than --max-reject-fraction 0.25"
    err = capsys.readouterr().err
    assert said in err and '"empty": 2' in err


# --- paths, log, streams


def test_every_path_becomes_a_full_uri_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = config.TrainOptions(corpus="a b/../é", store="/s/", network="n.keras")
    qualified = config.qualified(options)
    assert qualified.corpus == f"file://{tmp_path}/é"
    assert qualified.store == "file:///s"
    assert qualified.run == "" and qualified.network == "n.keras"
    assert dataclasses.replace(qualified, corpus=options.corpus, store=options.store) == options


_OF_PATHS = ("folder", "table (", "picture ", "file with a path")


def test_every_folder_among_the_options_is_qualified() -> None:
    for options in config.JOBS.values():
        for field in dataclasses.fields(options):
            assert (field.name in config.PATHS) is field.metadata["text"].startswith(_OF_PATHS), field.name


@pytest.mark.parametrize("path", ["file:relative", "file://another-machine/c"])
def test_a_malformed_path_is_a_wrong_argument(path: str) -> None:
    with pytest.raises(OptionError, match=f"--corpus {path} .*file:///absolute/path"):
        config.qualified(config.TrainOptions(corpus=path, store="s"))


def test_a_job_begins_with_a_line_of_what_runs_where_and_on_what() -> None:
    options = config.TrainOptions(corpus="file:///c", store="hdfs://h/s")
    line = cli.opening_line("train", options, "4.0.0", "local[2]")
    assert line.endswith("train on local[2], Spark 4.0.0; corpus file:///c, store hdfs://h/s")


def test_the_log_goes_to_stderr_once_however_often_it_is_configured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(3):
        cli.configure_logging(False)
    logging.getLogger("seedlings_spark.corpus").info("said 100 %% of it")
    logging.getLogger("seedlings_spark.corpus").debug("not this")
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} said 100 %% of it\n", err)


STREAMS = """
import os, sys
from seedlings_spark import cli
cli._find_stderr()
print("result", flush=True)
print("message", file=sys.stderr)
assert "SEEDLINGS_STDERR" not in os.environ
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux names open files of a process")
def test_a_job_finds_stderr_again_where_spark_has_made_one_stream_of_two(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SEEDLINGS_STDERR": f"/proc/{os.getpid()}/fd/{file.fileno()}",
        }
        merged = subprocess.run(
            [sys.executable, "-c", STREAMS],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=HANG_SECONDS,
        )
    assert merged.stdout == b"result\n"
    assert (tmp_path / "stderr").read_bytes() == b"before\nmessage\n"


@pytest.mark.parametrize("path", ["", "/proc/1/fd/77777", "/no/such/file", "."])
def test_a_job_keeps_the_stderr_that_it_has_where_there_is_no_other(path: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", STREAMS],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SEEDLINGS_STDERR": path},
        capture_output=True,
        check=True,
        timeout=HANG_SECONDS,
    )
    assert (ran.stdout, ran.stderr) == (b"result\n", b"message\n")


def test_a_table_is_aligned_and_may_be_empty() -> None:
    assert cli.table([("a", 1), ("long name", "x")]) == "a          1\nlong name  x"
    assert cli.table([]) == ""


# --- what the quickstart asks of its places and of its result


@pytest.mark.parametrize(
    ("output", "images", "said"),
    [
        ("hdfs://host/q", "", "--output hdfs://host/q without --images"),
        ("file:///a/images/q", "file:///a/images", "inside of --images"),
        ("file:///a/images", "file:///a/images/", "inside of --images"),
    ],
)
def test_a_quickstart_refuses_places_that_cannot_work(output: str, images: str, said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        quickstart.Places(output, images).check()


@pytest.mark.parametrize("images", ["", "file:///a/images"])
def test_a_quickstart_takes_a_new_folder(images: str, tmp_path: Path) -> None:
    quickstart.Places(f"file://{tmp_path}/images of mine", images).check()


def test_a_quickstart_does_not_touch_the_results_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    quickstart.Places(f"file://{tmp_path}", "").check()
    (tmp_path / "store").mkdir()
    with pytest.raises(CorpusError, match="which has store already"):
        quickstart.Places(f"file://{tmp_path}", "").check()


def test_a_quickstart_gives_each_job_its_places_and_the_options_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "quickstart.toml"
    file.write_text("[train]\nepochs = 7\n")
    given = quickstart.options(quickstart.Places("file:///q", ""), file)
    train = given(config.TrainOptions, "train")
    assert (train.corpus, train.store, train.run) == ("file:///q/corpus", "file:///q/store", "file:///q/run")
    assert (train.epochs, train.batch_size) == (7, 32)
    assert given(config.ScoreOptions, "score").output == "file:///q/scores"
    assert given(config.PrepareOptions, "prepare").images == "file:///q/images"


def test_a_quickstart_fine_tunes_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").touch()
    own = quickstart.Places("file:///q", f"file://{tmp_path}")
    assert quickstart.settings(quickstart.Places("file:///q", "")) == "quickstart.toml"
    assert quickstart.settings(own) == "quickstart-fine-tuned.toml"
    monkeypatch.setattr(quickstart, "_MOST_FINE_TUNED", 3)
    assert quickstart.settings(own) == "quickstart.toml"
    monkeypatch.setattr(quickstart, "_MOST_FINE_TUNED", 4)
    monkeypatch.setattr(quickstart, "find_spec", lambda package: None)
    assert quickstart.settings(own) == "quickstart.toml"


@pytest.mark.parametrize(("accuracy", "learned"), [(0.9, True), (0.899, False), (float("nan"), False)])
def test_a_network_that_has_not_learned_the_drawn_images_fails_the_quickstart(
    accuracy: float, learned: bool
) -> None:
    if learned:
        quickstart.require_accuracy(accuracy, "file:///q/report")
    else:
        with pytest.raises(TrainingError, match="file:///q/report"):
            quickstart.require_accuracy(accuracy, "file:///q/report")


# --- a log of JSON lines, exit codes that are written down, containers


def test_a_json_log_has_an_object_a_line_with_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    cli.configure_logging(False, "json")
    assert os.environ["TERM"] == "dumb"  # so that no live line comes between
    log = logging.getLogger("seedlings_spark")
    log.info("before")
    cli.name_run("app-7")
    log.warning("%d \u2713\nlines", 2)

    def work() -> int:
        raise CorpusError("this", "that", "Do so")

    assert cli.exit_code_of(work) == 1
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["msg"] for line in lines] == ["before", "2 \u2713\nlines", "this. Expected that. Do so."]
    assert [line["run"] for line in lines] == ["", "app-7", "app-7"]
    assert [line["level"] for line in lines] == ["INFO", "WARNING", "ERROR"]
    assert (lines[-1]["exit_code"], lines[-1]["error"]) == (1, "CorpusError")
    assert all(datetime.datetime.fromisoformat(line["ts"]).tzinfo for line in lines)


@pytest.mark.parametrize("style", [["--log", "json"], ["--log=json"]])
def test_a_mistake_and_an_interrupt_are_objects_of_a_json_log_too(
    style: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.check(["train", "--epohcs", "3", *style]) == 2

    def work() -> int:
        raise KeyboardInterrupt

    assert cli.exit_code_of(work) == 130
    mistake, interrupt = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (mistake["exit_code"], interrupt["exit_code"], interrupt["msg"]) == (2, 130, "interrupted")
    assert mistake["msg"].startswith("unknown option --epohcs.")
    cli.configure_logging(False)


def test_what_others_write_to_a_json_log_becomes_objects_and_ours_pass() -> None:
    ours = '{"ts": "2026-11-25T00:00:00+00:00", "level": "INFO", "msg": "\u2713", "run": "app-7"}'
    assert cli.as_json_line(f"{ours}\n".encode()) == ours
    others = ["{no object", "17", 'TIFF: "x"\\', "\x1b[31mred"]
    given = [*(each.encode() for each in others), b"\xff\n"]
    assert [json.loads(cli.as_json_line(line))["msg"] for line in given] == [*others, "\\xff"]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["prepare", "--images", "hdfs:///i", "--corpus", "c"], "--corpus c"),
        (["prepare", "--images", "hdfs:///i", "--corpus", "file:///c"], "--corpus file:///c"),
        (["train", "--corpus", "/c", "--store", "hdfs:///s", "--run", "../r"], "--run ../r"),
        (["score", "--images", "i", "--store", "hdfs:///s", "--output", "FILE:/o"], "--output FILE:/o"),
    ],
)
def test_nothing_is_written_into_a_container(
    arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.check(arguments) == 0
    assert cli.check(arguments, deploy_mode="cluster") == 2
    assert flag + " with --deploy-mode cluster" in capsys.readouterr().err


def test_full_uris_and_absolute_paths_are_fine_in_a_container() -> None:
    for images, corpus in (("file:///nfs/i", "hdfs://host:8020/c"), ("/i", "/c"), ("/i", "hdfs:/c")):
        assert cli.check(["prepare", "--images", images, "--corpus", corpus], deploy_mode="cluster") == 0


def test_an_export_over_something_is_refused_before_spark_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "out").mkdir()
    arguments = ["models", "export", "--store", str(tmp_path / "store"), "--output"]
    assert cli.check([*arguments, str(tmp_path / "new")], deploy_mode="client") == 0
    assert cli.check([*arguments, str(tmp_path / "out")], deploy_mode="client") == 1
    assert "out, which exists" in capsys.readouterr().err


_INTERRUPTED = """
import logging, os, signal, sys, time
from types import SimpleNamespace
from seedlings_spark import cli, config
from seedlings_spark.cluster import session

def gone(*_):
    raise ConnectionRefusedError("the JVM is gone")

def build(name):
    signal.signal(signal.SIGINT, gone)  # as Spark does
    context = SimpleNamespace(applicationId="app-1", master="local[1]", setLogLevel=lambda level: None)
    conf = SimpleNamespace(get=lambda name, default: default)
    return SimpleNamespace(sparkContext=context, version="4", conf=conf, stop=gone)

def main(spark, options):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        print("Exception occurred during processing of request", file=sys.stderr)  # as Spark's servers
        logging.error("KeyboardInterrupt while sending command.")
        gone()  # as what is tidied up on the way out
    return 0

session.build = build
sys.exit(cli.run("doctor", config.DoctorOptions, main, []))
"""


def test_a_ctrl_c_is_said_in_one_line_though_it_has_ended_the_jvm_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=HANG_SECONDS, cwd=ROOT
    )
    first, *rest = done.stderr.splitlines()
    assert "doctor on local[1]" in first and rest == ["interrupted"]
    assert done.returncode == 130


# --- a network that the corpus' images are too small for


def test_images_too_small_for_a_network_are_named_before_spark_starts(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text('{"image_size": [64, 80]}')
    places = {"corpus": f"file://{tmp_path}/corpus", "store": f"file://{tmp_path}/store"}
    with pytest.raises(OptionError, match="images of 64x80 pixels for --network Xception") as caught:
        preflight.check_places("train", config.TrainOptions(**places, network="Xception"), {})
    assert caught.value.expected == "at least 71x71"
    preflight.check_places("train", config.TrainOptions(**places, network="MobileNetV2"), {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"network": "EfficentNetB0"}, "EfficientNetB0"),
        ({"network": "mobilenetv2"}, "MobileNetV2"),
        ({"network": "efficientnet_lite0"}, "efficientnet-lite0"),
        ({"network": "plain", "weights": "imagenet"}, "--weights imagenet with --network plain"),
        ({"network": "ResNet50", "weights": "net.txt"}, "--weights net.txt"),
        ({"network": "net.keras", "weights": "imagenet"}, "--weights imagenet with --network net.keras"),
        ({"network": "ResNet50", "scaler": "channel"}, "--scaler channel with --network ResNet50"),
        ({"fine_tune": "some"}, "--fine-tune some"),
        ({"ema": 0.9}, "--keep last"),
        (
            {"label_smoothing": 0.1, "loss": "kl_divergence"},
            "--label-smoothing 0.1 with --loss kl_divergence",
        ),
    ],
)
def test_what_cannot_be_of_networks_and_losses_is_refused_with_the_options(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError) as caught:
        config.TrainOptions(corpus="c", store="s", **given)
    assert said in f"{caught.value}"
