"""From a command line to what spark-submit is called with, without calling it."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from seedlings_spark.cli import classes, invocation, launch, locales, relay
from seedlings_spark.cli.installation import Installation, require_java
from seedlings_spark.cli.submission import Submission
from seedlings_spark.cluster import environment
from seedlings_spark.errors import ClusterError, OptionError
from tests.conftest import HANG_SECONDS

ROOT = Path(__file__).parents[2]


def submission(*arguments: str, **environment: str) -> Submission:
    return Submission(
        Installation(python="/py"), invocation.read(arguments), {"SPARK_HOME": "/s", **environment}
    )


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- what is read


def test_sparks_options_are_kept_as_they_are_and_known_where_it_matters() -> None:
    options = [
        "--master=spark://h:1",
        "-v",
        "--conf",
        "spark.app.name=a=b",
        "-c",
        "x=",
        "--name",
        "-n",
        "--files=f",
    ]
    call = invocation.read([*options, "--detach", "train", "--seed", "--insecure", "--log=json"])
    assert (list(call.spark_options), call.job) == (options, "train")
    assert call.values["--master"] == "spark://h:1" and call.values["--name"] == "-n"
    assert call.settings == {"spark.app.name": "a=b", "x": ""}
    assert call.switches == {"--detach"} and call.is_secure and call.log == "json"
    assert call.arguments == ("--seed", "--insecure", "--log=json")


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ([], "client"),
        (["--deploy-mode=cluster"], "cluster"),
        (["--conf", "spark.submit.deployMode=cluster"], "cluster"),
        (["--deploy-mode", "cluster", "-c", "spark.submit.deployMode=client"], "client"),
    ],
)
def test_the_last_word_on_where_the_driver_runs_counts(options: list[str], mode: str) -> None:
    assert invocation.read([*options, "train"]).deploy_mode == mode


@pytest.mark.parametrize(
    ("arguments", "spelled_out"),
    [
        ("status r", "--run r"),
        ("status --run r", "--run r"),
        ("status", ""),
        ("models promote v0002 --store s", "promote --model-version v0002 --store s"),
        ("models delete v0002", "delete --model-version v0002"),
        ("models promote --store s", "promote --store s"),
        ("models list v0002", "list v0002"),
        ("corpus diff a b --debug", "diff --corpus a --other b --debug"),
        ("corpus diff --corpus a --other b", "diff --corpus a --other b"),
    ],
)
def test_what_may_be_left_out_is_spelled_out(arguments: str, spelled_out: str) -> None:
    assert list(invocation.read(arguments.split()).arguments) == spelled_out.split()


def test_an_option_has_the_last_of_its_values() -> None:
    arguments = ["--run", "a", "--run=b=c", "--runs", "d", "--log"]
    assert [invocation.value_of(name, arguments) for name in ("--run", "--log", "--no")] == ["b=c", "", ""]


# --- what is submitted


@pytest.mark.parametrize(
    ("line", "master"),
    [
        ("spark.master yarn", "yarn"),
        ("  spark.master = yarn \n# spark.master local\nspark.masters x", "yarn"),
        ("spark.master: yarn\nspark.master\tspark://h:1", "spark://h:1"),
        ("sparkxmaster yarn", ""),
    ],
)
def test_the_master_of_settings_of_ones_own_is_known(line: str, master: str, tmp_path: Path) -> None:
    (tmp_path / "own.conf").write_text(f"{line}\n")
    given = submission("--properties-file", str(tmp_path / "own.conf"), "train")
    assert given.master == master and given.is_here == (not master)


def test_the_secret_is_only_in_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    given = submission("--master", "spark://h:1", "train", SEEDLINGS_SPARK_SECRET="open sesame")
    command = given.command(tmp_path)
    own = Path(command[command.index("--properties-file") + 1])
    assert own.parent == tmp_path and own.stat().st_mode & 0o777 == 0o600
    assert own.read_text().endswith("\nspark.authenticate.secret open sesame\n")
    assert "sesame" not in json.dumps([command, given.variables()])


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ("--master yarn score", ["1024m"]),
        ("--master k8s://h --conf spark.kubernetes.container.image=i --executor-cores 4 score", ["2048m"]),
        (
            "--master yarn --conf spark.executor.memoryOverhead=5g score",
            ["1024m", "5g"],
        ),  # the last one counts
        ("--master yarn score --engine tensorflow", []),
        ("--master yarn train", []),
        ("--master spark://h:1 --insecure score", []),  # which counts the heap only
    ],
)
def test_executors_that_score_ask_for_a_third_of_the_memory(
    arguments: str, asked: list[str], tmp_path: Path
) -> None:
    command = submission(*arguments.split()).command(tmp_path)
    name = "spark.executor.memoryOverhead="
    assert [each.removeprefix(name) for each in command if each.startswith(name)] == asked


@pytest.mark.parametrize(("mode", "driver"), [("client", "/py"), ("cluster", "/there")])
def test_a_cluster_has_a_python_of_its_own(mode: str, driver: str, tmp_path: Path) -> None:
    given = submission(
        "--master", "yarn", "--deploy-mode", mode, "train", PYSPARK_PYTHON="/there", PYTHONPATH="/own"
    )
    variables = given.variables()
    assert (variables["PYSPARK_DRIVER_PYTHON"], variables["PYSPARK_PYTHON"]) == (driver, "/there")
    assert variables["PYTHONPATH"] == "/own"  # the package travels as a zip
    assert (f"spark.pyspark.driver.python={driver}" in given.command(tmp_path)) == (mode == "client")


def test_a_jvm_of_this_machine_is_given_the_archive_of_classes_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "_FOLDER", tmp_path)
    here = submission("score", SPARK_SUBMIT_OPTS="-Dx=1")
    assert here.variables()["SPARK_SUBMIT_OPTS"] == "-Dx=1"
    archive = classes.path(here.environment)
    archive.touch()
    own = f"-XX:SharedArchiveFile={archive} -Xlog:cds*=off"
    assert here.variables()["SPARK_SUBMIT_OPTS"] == f"{own} -Dx=1"
    assert "SPARK_SUBMIT_OPTS" not in submission("--master", "yarn", "score").variables()
    assert classes.path({**here.environment, "SPARK_HOME": "/other"}) != archive
    monkeypatch.setattr(
        classes, "_FOLDER", tmp_path / "a folder"
    )  # with a space, which is two options to Java
    (tmp_path / "a folder").mkdir()
    classes.path(here.environment).touch()
    assert here.variables()["SPARK_SUBMIT_OPTS"] == "-Dx=1"


def test_an_installed_wheel_has_its_jobs_and_settings_inside_and_leaves_the_path_alone(
    tmp_path: Path,
) -> None:
    package = tmp_path / "seedlings_spark"
    installed = Installation(home=package, python="/py", package=package)
    given = Submission(installed, invocation.read(["train"]), {"SPARK_HOME": "/s"})
    command = given.command(tmp_path)
    assert command[-1] == f"{package}/jobs/train.py" and f"{package}/conf/spark-local.conf" in command
    assert "PYTHONPATH" not in given.variables() and not installed.is_checkout
    assert ".venv" not in launch.usage(installed) and ".venv" in launch.usage(Installation())


@pytest.mark.parametrize(("job", "said"), [("trian", "no job 'trian'"), ("/no/own.py", "no file /no/own.py")])
def test_what_is_neither_a_job_nor_a_program_is_refused(job: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Installation().program(job)


@pytest.mark.parametrize(
    ("version", "said"),
    [("11.0.2", "newer Java than 11"), ("1.8.0_4", "newer Java than 8"), ("no", "no Java in")],
)
def test_a_java_that_will_not_do_is_named(version: str, said: str, tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "java", "echo 'openjdk version \"21\"' >&2")
    require_java({"JAVA_HOME": str(tmp_path)})
    executable(tmp_path / "bin" / "java", f"echo 'openjdk version \"{version}\"' >&2")
    with pytest.raises(ClusterError, match=said):
        require_java({"JAVA_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("arguments", "code", "done"),
    [
        (["hdfs:///e"], 0, ["-mkdir -p hdfs:///e", "-put -f {archive} hdfs:///e/"]),
        (["--gpu", "hdfs:///e"], 0, ["-mkdir -p hdfs:///e", "-put -f {archive} hdfs:///e/"]),
        (["hdfs:///full"], 7, ["-mkdir -p hdfs:///full"]),
        ([], 0, []),
        (["--gpus"], 2, []),
    ],
)
def test_an_archive_goes_to_the_folder_that_is_named(
    arguments: list[str], code: int, done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("seedlings_spark")
    for name in ("handlers", "level", "propagate"):  # a launcher configures it
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    packed: list[list[str]] = []
    monkeypatch.setattr(environment, "main", lambda given: packed.append(given) or 0)  # takes minutes
    executable(tmp_path / "bin" / "java", "echo 'openjdk version \"17\"' >&2")
    said = tmp_path / "said"
    executable(
        tmp_path / "bin" / "spark-class",
        f'shift; echo "$*" >>"{said}"; case $* in *full*) exit 7 ;; esac',
    )
    for name in ("SPARK_HOME", "JAVA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    installation = Installation(home=tmp_path, package=tmp_path / "seedlings_spark")
    archive = tmp_path / "dist" / "environment.tar.gz"
    assert launch.main(["pack", *arguments], installation) == code
    assert packed == ([] if code == 2 else [[str(archive), *arguments[: arguments[:1] == ["--gpu"]]]])
    lines = said.read_text().splitlines() if said.exists() else []
    assert lines == [each.format(archive=archive) for each in done]


# --- the locale


@pytest.mark.parametrize(
    ("variables", "utf8"),
    [
        ({"LC_ALL": "C.UTF-8"}, None),
        ({"LC_ALL": "POSIX", "LANG": "C.UTF-8"}, "C.UTF-8"),
        ({"LANG": "xx_XX.UTF-8"}, "C.UTF-8"),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "POSIX"}, None),
    ],
)
def test_a_locale_of_utf8_is_found_where_there_is_none(variables: dict[str, str], utf8: str | None) -> None:
    code = "from seedlings_spark.cli import locales; print(locales.for_utf8())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "PYTHONCOERCECLOCALE": "0", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == f"{utf8}\n"


def test_asking_for_a_locale_changes_none() -> None:
    import locale

    before = locale.setlocale(locale.LC_ALL)
    locales.for_utf8()
    assert locale.setlocale(locale.LC_ALL) == before


# --- the process


def passed_on(given: bytes, **style: Any) -> tuple[bytes, relay.Relay]:
    """What a relay makes of a text, by pipes as in a job."""
    (source, sink), (out, target) = os.pipe(), os.pipe()
    passing = relay.Relay(target, **style)
    thread = threading.Thread(target=passing.pass_on, args=(source,))
    thread.start()
    os.write(sink, given)
    os.close(sink)
    thread.join(HANG_SECONDS)
    os.close(target)
    with os.fdopen(out, "rb") as file:
        return file.read(), passing


NOISE = b"WARNING: Using incubator modules: jdk.incubator.vector\n"


def test_lines_pass_as_they_are_but_for_what_java_always_says() -> None:
    given = b"\xff\x00 a\r\n\n" + NOISE + b"x " + NOISE + b"no end"
    assert passed_on(given, as_json=False)[0] == given.replace(b"\n" + NOISE, b"\n")


def test_every_line_of_a_json_log_is_an_object() -> None:
    said, _ = passed_on(b'{"msg": "ours"}\n\n' + NOISE + b"a\xff\nno end", as_json=True)
    assert [json.loads(line)["msg"] for line in said.splitlines()] == ["ours", "a\\xff", "no end"]


def test_how_a_driver_in_a_container_has_ended_is_heard() -> None:
    said = b"application_1_0001 x\nUser application exited with status 1\napplication_12_0002 (ACCEPTED)\n"
    _, heard = passed_on(said + b"User application exited with status 73.\n", as_json=False)
    assert (heard.application, heard.exit_code) == ("application_12_0002", 73)
    assert passed_on(b"no such thing\n", as_json=False)[1].exit_code is None


def test_a_reader_that_goes_ends_the_relay() -> None:
    (source, sink), (out, target) = os.pipe(), os.pipe()
    os.close(out)
    os.write(sink, b"line\n")
    relay.Relay(target, as_json=False).pass_on(source)  # though the other side could still write
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(source)
    os.close(sink)
    os.close(target)


def test_neither_spark_nor_tensorflow_is_imported_to_launch() -> None:
    code = (
        "import sys\nfrom seedlings_spark.cli import launch\n"
        "assert launch.main(['status', '/no/such']) == 1\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not found & {'pyspark', 'tensorflow', 'keras', 'numpy'}, found"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "no folder file:///no/such" in ran.stderr
