"""spark-submit.sh: what reaches spark-submit, and what it says without starting Spark."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyspark
import pytest

from seedlings_spark import config
from seedlings_spark.cli import classes
from seedlings_spark.cluster import environment
from tests.conftest import HANG_SECONDS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "spark-submit.sh"
BASH = shutil.which("bash") or "/bin/bash"
PREPARE = ["prepare", "--images", "i", "--corpus", "c"]
PREPARE_ON_HDFS = ["prepare", "--images", "hdfs:///i", "--corpus", "hdfs:///c"]
TRAIN_ON_HDFS = ["--corpus", "hdfs:///c", "--store", "hdfs:///s"]
PODS = ["--master", "k8s://https://h:6443", "--conf", "spark.kubernetes.container.image=i:1"]
CLUSTER_MODE = ["--deploy-mode", "cluster"]
DEPLOYED = "spark INFO Client: Deployed Spark application prepare.py into Kubernetes"
UPLOADS = "spark.kubernetes.file.upload.path"

# Writes down what it was given, and does what it is told to.
FAKE_SUBMIT = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time, zipfile
arguments = sys.argv[1:]
archives = [a.split(",")[0] for a in arguments if "seedlings_spark.zip" in a]
names = zipfile.ZipFile(archives[0]).namelist() if archives else []
pathlib.Path(os.environ["FAKE_RECORD"]).write_text(json.dumps(
    {{"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd(), "zip": names}}
))
if os.environ.get("FAKE_SETTINGS"):
    path = pathlib.Path(arguments[arguments.index("--properties-file") + 1])
    record = json.loads(pathlib.Path(os.environ["FAKE_RECORD"]).read_text())
    mode = oct(path.stat().st_mode)[-3:]
    record["settings"] = {{"path": str(path), "mode": mode, "content": path.read_text()}}
    pathlib.Path(os.environ["FAKE_RECORD"]).write_text(json.dumps(record))
os.write(2, os.environ.get("FAKE_SAYS", "").encode())
if os.environ.get("FAKE_STDERR"):
    fd = os.open(os.environ["SEEDLINGS_STDERR"], os.O_WRONLY | os.O_APPEND)
    os.write(2, b"WARNING: Using incubator modules: jdk.incubator.vector\\n")
    os.write(1, b"JVM on stdout\\n"); os.write(2, b"JVM on stderr\\n")
    os.write(fd, b"job on stderr\\n"); os.write(1, b"more on stdout\\n"); os.write(2, b"more on stderr\\n")
def stop(number, frame):
    if os.environ.get("FAKE_STDERR"):
        os.write(fd, b"interrupted\\n")
    pathlib.Path(os.environ["FAKE_RECORD"] + ".signal").write_text(str(number))
    sys.exit(40 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
pathlib.Path(os.environ["FAKE_RECORD"] + ".ready").touch()
time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
sys.exit(int(os.environ.get("FAKE_CODE", 0)))
"""

# A Python for which everything is installed.
FAKE_PYTHON = f"""#!/bin/sh
case "$*" in *find_spec*) exit 0 ;; esac
exec {sys.executable} "$@"
"""

FAKE_JAVA = """#!/bin/sh
echo 'openjdk version "{}" 2025-04-15' >&2
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Machine:
    """A machine with a fake Spark, a fake Python and a fake Java, to call the script on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record.json"
        self.directory = folder / "somewhere else"
        self.directory.mkdir()
        (self.directory / "i").mkdir()
        (self.directory / "feld-ö").mkdir()
        (self.directory / "c").mkdir()
        (self.directory / "c" / "manifest.json").touch()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        program(folder / "spark" / "bin" / "spark-submit", FAKE_SUBMIT)
        python = program(folder / "fake python" / "python", FAKE_PYTHON)
        program(folder / "bin" / "java", FAKE_JAVA.format("17.0.15"))
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(self.temporary),
            "SPARK_HOME": str(folder / "spark"),
            "SEEDLINGS_PYTHON": str(python),
            "FAKE_RECORD": str(self.record),
            "SPARK_CONF_DIR": str(folder / "site"),
        }
        program(folder / "site" / "spark-defaults.conf", "spark.authenticate.secret  s\n")

    def call(self, *arguments: str, script: Path = SCRIPT, **variables: str) -> Any:
        return subprocess.run(
            [BASH, str(script), *arguments],
            env={**self.environment, **variables},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
        )

    def submitted(self, *arguments: str, script: Path = SCRIPT, **variables: str) -> dict[str, Any]:
        ran = self.call(*arguments, script=script, **variables)
        assert ran.returncode == 0, ran.stderr
        given: dict[str, Any] = json.loads(self.record.read_text())
        return given


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def checkout(folder: Path) -> Path:
    """A copy of what the script needs of the checkout."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "seedlings_spark", folder / "seedlings_spark", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "spark-submit.sh"):
        shutil.copy(ROOT / name, folder / name)
    return folder / "spark-submit.sh"


def value_of(option: str, arguments: list[str]) -> str:
    """The value that counts: the last one."""
    return arguments[len(arguments) - 1 - arguments[::-1].index(option) + 1]


# --- what reaches spark-submit


@pytest.mark.parametrize(
    "options",
    [
        ["--conf", "spark.app.name=a name with $HOME, 'quotes' and \"more\"", "--conf=a=b", "-c", "c=d"],
        ["--driver-java-options", "-Da=b -Dc=d", "--master", "local[4]", "--name", "prepare", "-v"],
        ["--driver-java-options", "--add-opens=x", "--master=local[4]", "--py-files", "own.zip"],
        ["--verbose", "--supervise", "--conf", "a=b", "--conf", "a=c", "--executor-memory=3g"],
        ["--load-spark-defaults", "--packages", "", "--jars", "*"],
    ],
)
def test_spark_options_reach_spark_submit_unchanged_and_in_order(
    machine: Machine, options: list[str]
) -> None:
    arguments = machine.submitted(*options, *PREPARE)["arguments"]
    end = arguments.index(str(ROOT / "jobs" / "prepare.py"))
    assert arguments[end - len(options) : end] == options


def test_job_options_reach_the_job_unchanged(machine: Machine) -> None:
    given = ["prepare", "--images", "a b*$HOME", "--corpus", "c'd\"", "--sample", "0.5"]
    arguments = machine.submitted(*given)["arguments"]
    assert arguments[-6:] == given[1:] and arguments[-7] == str(ROOT / "jobs" / "prepare.py")


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ([], "spark-local.conf"),
        (["--master", "local"], "spark-local.conf"),
        (["--master", "local[*]"], "spark-local.conf"),
        (["--master", "local-cluster[2,1,1024]"], "spark-local.conf"),
        (["--master", "yarn"], "spark-yarn.conf"),
        (["--master=yarn", "--deploy-mode", "cluster"], "spark-yarn.conf"),
        (["--master", "spark://h:7077"], "spark-standalone.conf"),
        (["--conf", "spark.master=yarn"], "spark-yarn.conf"),
        (["--master", "k8s://https://h:6443", "-c", "spark.kubernetes.container.image=i"], "spark-k8s.conf"),
        (["--conf=spark.master=spark://h:7077"], "spark-standalone.conf"),
        (["-c", "spark.master=yarn"], "spark-yarn.conf"),
        (["--conf", "spark.master=local", "--master", "yarn"], "spark-yarn.conf"),
        (["--conf", "spark.masters=yarn"], "spark-local.conf"),
    ],
)
def test_the_master_chooses_the_settings_and_the_sites_own_stay_in_force(
    machine: Machine, options: list[str], file: str
) -> None:
    arguments = machine.submitted(*options, *PREPARE_ON_HDFS)["arguments"]
    assert arguments.count("--properties-file") == 1
    assert value_of("--properties-file", arguments) == str(ROOT / "conf" / file)
    assert "--load-spark-defaults" in arguments


def test_without_a_master_a_job_runs_on_all_cores_of_this_machine(machine: Machine) -> None:
    assert value_of("--master", machine.submitted(*PREPARE)["arguments"]) == "local[*]"


@pytest.mark.parametrize("options", [["--master", "yarn"], ["--conf", "spark.master=yarn"]])
def test_a_master_that_is_given_is_not_given_again(machine: Machine, options: list[str]) -> None:
    assert "local[*]" not in machine.submitted(*options, *PREPARE)["arguments"]


@pytest.mark.parametrize("form", ["--properties-file {}", "--properties-file={}"])
def test_settings_of_ones_own_take_the_place_of_ours(machine: Machine, form: str) -> None:
    arguments = machine.submitted(*form.format("my.conf").split(), *PREPARE)["arguments"]
    assert not any("spark-local.conf" in argument for argument in arguments)
    assert "--load-spark-defaults" not in arguments
    assert value_of("--master", arguments) == "local[*]"


@pytest.mark.parametrize("line", ["spark.master yarn", "  spark.master = yarn", "spark.master: yarn"])
def test_the_master_in_settings_of_ones_own_is_respected(machine: Machine, line: str) -> None:
    (machine.directory / "my.conf").write_text(f"# spark.master local\n{line}\nspark.masters x\n")
    given = machine.submitted("--properties-file", "my.conf", *PREPARE)
    assert "--master" not in given["arguments"]
    assert given["zip"]


def test_executors_elsewhere_get_the_whole_package_as_a_zip(machine: Machine) -> None:
    given = machine.submitted("--master", "yarn", *PREPARE)
    whole = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "seedlings_spark").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert set(given["zip"]) == whole and len(given["zip"]) == len(whole)


@pytest.mark.parametrize("form", [["--py-files", "own.zip,b.py"], ["--py-files=own.zip,b.py"]])
def test_py_files_of_ones_own_are_shipped_beside_the_package(machine: Machine, form: list[str]) -> None:
    arguments = machine.submitted("--master", "yarn", *form, *PREPARE)["arguments"]
    ours, *own = value_of("--py-files", arguments).split(",")
    assert Path(ours).name == "seedlings_spark.zip" and own == ["own.zip", "b.py"]


def test_on_this_machine_the_package_is_read_where_it_stands(machine: Machine) -> None:
    given = machine.submitted(*PREPARE, PYTHONPATH="/own/path")
    assert given["environment"]["PYTHONPATH"] == f"{ROOT}:/own/path"
    assert "--py-files" not in given["arguments"] and not given["zip"]


def test_driver_and_executors_use_the_python_that_was_found(machine: Machine) -> None:
    environment = machine.submitted(*PREPARE)["environment"]
    assert environment["PYSPARK_PYTHON"] == machine.environment["SEEDLINGS_PYTHON"]
    assert environment["PYSPARK_DRIVER_PYTHON"] == machine.environment["SEEDLINGS_PYTHON"]


def test_executors_with_a_python_of_their_own_keep_it(machine: Machine) -> None:
    environment = machine.submitted("--master", "yarn", *PREPARE, PYSPARK_PYTHON="./environment/bin/python")[
        "environment"
    ]
    assert environment["PYSPARK_PYTHON"] == "./environment/bin/python"
    assert environment["PYSPARK_DRIVER_PYTHON"] == machine.environment["SEEDLINGS_PYTHON"]


def test_an_interpreter_that_is_named_by_a_relative_path_is_found_from_everywhere(machine: Machine) -> None:
    (machine.directory / "env").symlink_to(machine.folder / "fake python")
    environment = machine.submitted(*PREPARE, SEEDLINGS_PYTHON="env/python")["environment"]
    assert environment["PYSPARK_PYTHON"] == str(machine.directory / "env/python")


def test_sparks_log_is_ours_unless_there_is_another(machine: Machine) -> None:
    environment = machine.submitted(*PREPARE)["environment"]
    assert environment["LOG4J_CONFIGURATION_FILE"] == str(ROOT / "conf" / "log4j2.properties")
    environment = machine.submitted(*PREPARE, LOG4J_CONFIGURATION_FILE="/my.properties")["environment"]
    assert environment["LOG4J_CONFIGURATION_FILE"] == "/my.properties"


def test_what_a_bashrc_has_for_notebooks_and_other_sparks_is_of_no_matter(machine: Machine) -> None:
    notebook = {"PYSPARK_DRIVER_PYTHON": "jupyter", "PYSPARK_DRIVER_PYTHON_OPTS": "notebook"}
    given = machine.submitted(*PREPARE, **notebook, PYSPARK_PYTHON="/usr/bin/python3")
    ours = machine.environment["SEEDLINGS_PYTHON"]
    environment = given["environment"]
    assert (environment["PYSPARK_DRIVER_PYTHON"], environment["PYSPARK_PYTHON"]) == (ours, ours)
    assert "PYSPARK_DRIVER_PYTHON_OPTS" not in environment
    assert {f"spark.pyspark.driver.python={ours}", f"spark.pyspark.python={ours}"} <= set(given["arguments"])


def test_a_spark_home_without_spark_or_with_another_one_is_named(machine: Machine) -> None:
    minor = pyspark.__version__.rpartition(".")[0]
    assert f"no Spark in SPARK_HOME=/no spark. Expected Spark {minor}." in refused(
        machine, 1, *PREPARE, SPARK_HOME="/no spark"
    )
    jars = machine.folder / "spark" / "jars"
    platforms = program(jars / f"spark-core_2.13-{minor}.9-amzn-0.jar", "")
    machine.submitted(*PREPARE)
    machine.record.unlink()
    platforms.unlink()
    program(jars / "spark-core_2.12-3.5.1.jar", "")
    assert "Spark 3.5.1 in SPARK_HOME=" in refused(machine, 1, *PREPARE)
    (machine.directory / "own.py").touch()
    assert "Spark 3.5.1 in SPARK_HOME=" in refused(machine, 1, "own.py")


def test_places_of_this_machine_are_looked_at_before_spark_starts(machine: Machine) -> None:
    (machine.directory / "file").touch()
    cases = {
        ("status", "no run"): "no folder file://{}/no run",
        ("prepare", "--images", "no images", "--corpus", "c"): "no folder file://{}/no images",
        ("prepare", "--images", "i", "--corpus", "file/c"): "--corpus file://{}/file/c (Not a directory)",
        ("prepare", "--images", "i", "--corpus", "file"): "file://{}/file, where",
        ("prepare", "--images", "i", "--corpus", "x" * 300): "(File name too long)",
        ("prepare", "--images", "i", "--corpus", "/proc/c"): "--corpus file:///proc/c (",
        ("train", "--corpus", "i", "--store", "s"): "file://{}/i, which has no manifest.json",
        (
            "evaluate",
            "--corpus",
            "c",
            "--store",
            "no store",
            "--report",
            "r",
        ): "no store at file://{}/no store",
        ("score", "--images", "i", "--store", "i", "--output", "o"): "no model seedlings in file://{}/i",
        ("models", "list", "--store", "file"): "--store file://{}/file, which is a file",
        ("--conf", "spark.local.dir=/proc/x", *PREPARE): "spark.local.dir /proc/x (",
    }
    for arguments, found in cases.items():
        said = refused(machine, 1, *arguments)
        assert found.format(machine.directory) in said and said.count("\n") == 1
    # What may be elsewhere is left to the driver.
    elsewhere = ["prepare", "--images", "no images", "--corpus", "c"]
    machine.submitted("--conf", "spark.hadoop.fs.defaultFS=hdfs://h", *elsewhere)
    machine.submitted(*elsewhere, HADOOP_CONF_DIR="/etc/hadoop")
    machine.submitted("prepare", "--images", "no/*.png", "--corpus", "c")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_or_read_only_disk_is_told_before_spark_starts(machine: Machine) -> None:
    disk = machine.folder / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        (disk / "c").mkdir()
        with contextlib.suppress(OSError), (disk / "large").open("wb", buffering=0) as file:
            file.write(bytes(128 * 1024))
        prepare = ("prepare", "--images", "i", "--corpus", f"{disk}/c/new")
        assert f"--corpus file://{disk}/c/new (No space left on device)" in refused(machine, 1, *prepare)
        scratch = ("--conf", f"spark.local.dir={disk}/s", *PREPARE)
        assert f"spark.local.dir {disk}/s (No space left on device)" in refused(machine, 1, *scratch)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "(Read-only file system)" in refused(machine, 1, *prepare)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("variables", "locale"),
    [
        ({}, "C.UTF-8"),
        ({"LC_ALL": "POSIX"}, "C.UTF-8"),
        ({"LANG": "xx_XX.UTF-8"}, "C.UTF-8"),
        ({"LANG": "C.UTF-8"}, None),
    ],
)
def test_there_is_always_a_locale_of_utf_8(
    machine: Machine, variables: dict[str, str], locale: str | None
) -> None:
    given = machine.submitted("prepare", "--images", "feld-ö", "--corpus", "c", **variables)
    environment = given["environment"]  # Python itself sets LC_CTYPE where there is nothing else
    assert environment.get("LC_ALL", environment.get("LC_CTYPE")) == locale
    assert "feld-ö" in given["arguments"]


# --- where it is called


def test_relative_paths_mean_those_of_the_caller(machine: Machine) -> None:
    given = machine.submitted(*PREPARE)
    assert given["directory"] == str(machine.directory)
    assert given["arguments"][-4:] == PREPARE[1:]


@pytest.mark.parametrize("master", ["local[2]", "yarn"])
def test_a_checkout_under_a_hostile_path_works(machine: Machine, master: str) -> None:
    home = machine.folder / "my check'out (1) $x é"
    home.mkdir()
    given = machine.submitted("--master", master, *PREPARE, script=checkout(home))
    assert str(home / "jobs" / "prepare.py") in given["arguments"]
    assert value_of("--properties-file", given["arguments"]).startswith(f"{home}/conf/")


def test_it_can_be_called_through_links(machine: Machine) -> None:
    links = machine.folder / "links"
    links.mkdir()
    (links / "absolute").symlink_to(SCRIPT)
    (links / "relative").symlink_to("absolute")
    (machine.folder / "folder").symlink_to(links)
    given = machine.submitted(*PREPARE, script=machine.folder / "folder" / "relative")
    assert str(ROOT / "jobs" / "prepare.py") in given["arguments"]


def test_cdpath_does_not_mislead_it(machine: Machine) -> None:
    for place in (machine.directory, machine.folder / "path"):
        (place / "checkout").mkdir(parents=True)
    checkout(machine.directory / "checkout")
    script = Path("checkout") / "spark-submit.sh"
    given = machine.submitted(*PREPARE, script=script, CDPATH=str(machine.folder / "path"))
    assert str(machine.directory / "checkout" / "jobs" / "prepare.py") in given["arguments"]


def test_modules_in_the_callers_folder_do_not_stand_in_for_ours(machine: Machine) -> None:
    for name in ("json.py", "argparse.py", "seedlings_spark.py"):
        (machine.directory / name).write_text("raise SystemExit('the wrong module')\n")
    machine.submitted(*PREPARE)


# --- how it ends


@pytest.mark.parametrize(("master", "code"), [("local[2]", 3), ("yarn", 0), ("yarn", 73), ("yarn", 130)])
def test_the_exit_code_is_that_of_spark_submit(machine: Machine, master: str, code: int) -> None:
    assert machine.call("--master", master, *PREPARE, FAKE_CODE=str(code)).returncode == code


@pytest.mark.parametrize("code", ["0", "1"])
def test_nothing_is_left_in_the_temporary_folder(machine: Machine, code: str) -> None:
    machine.call("--master", "yarn", *PREPARE, FAKE_CODE=code)
    assert json.loads(machine.record.read_text())["zip"]
    assert list(machine.temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("master", ["local[2]", "yarn"])
def test_a_signal_reaches_the_application_and_its_exit_code_comes_back(
    machine: Machine, master: str, number: signal.Signals
) -> None:
    running = subprocess.Popen(
        [BASH, str(SCRIPT), "--master", master, *PREPARE],
        env={**machine.environment, "FAKE_SECONDS": str(HANG_SECONDS)},
        cwd=machine.directory,
        # What runs in a shell's background ignores it, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    ready = Path(f"{machine.record}.ready")
    deadline = time.monotonic() + HANG_SECONDS
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(number)
    assert running.wait(timeout=HANG_SECONDS) == 40 + number
    assert Path(f"{machine.record}.signal").read_text() == str(int(number))
    assert list(machine.temporary.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux names open files of a process")
@pytest.mark.parametrize("master", ["local[2]", "yarn"])
def test_results_and_messages_stay_apart_and_whole_in_files(machine: Machine, master: str) -> None:
    out, err = machine.folder / "out", machine.folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        subprocess.run(
            [BASH, str(SCRIPT), "--master", master, *PREPARE],
            env={**machine.environment, "FAKE_STDERR": "yes"},
            cwd=machine.directory,
            stdout=stdout,
            stderr=stderr,
            check=True,
            timeout=HANG_SECONDS,
        )
    assert out.read_text() == "JVM on stdout\nmore on stdout\n"
    assert err.read_text() == "JVM on stderr\njob on stderr\nmore on stderr\n"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux names open files of a process")
def test_what_java_says_of_its_modules_is_kept_from_a_pipe_too(machine: Machine) -> None:
    ran = machine.call(*PREPARE, FAKE_STDERR="yes")
    assert sorted(ran.stderr.splitlines()) == ["JVM on stderr", "job on stderr", "more on stderr"]
    assert ran.stdout == "JVM on stdout\nmore on stdout\n"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux names open files of a process")
@pytest.mark.parametrize("master", ["local[2]", "yarn"])
def test_what_a_job_says_after_ctrl_c_is_in_the_file_that_its_messages_go_to(
    machine: Machine, master: str
) -> None:
    err = machine.folder / "err"
    with err.open("wb") as stderr:
        running = subprocess.Popen(
            [BASH, str(SCRIPT), "--master", master, *PREPARE],
            env={**machine.environment, "FAKE_STDERR": "yes", "FAKE_SECONDS": str(HANG_SECONDS)},
            cwd=machine.directory,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    ready = Path(f"{machine.record}.ready")
    while not ready.exists():
        assert running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    assert running.wait(timeout=HANG_SECONDS) == 40 + signal.SIGINT
    assert err.read_text().splitlines()[-1] == "interrupted"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux names open files of a process")
def test_nothing_is_overwritten_where_one_file_takes_both_streams(machine: Machine) -> None:
    log = machine.folder / "log"
    with log.open("wb") as file:
        subprocess.run(
            [BASH, "-c", 'echo before; "$@"; echo after', BASH, BASH, str(SCRIPT), *PREPARE],
            env={**machine.environment, "FAKE_STDERR": "yes"},
            cwd=machine.directory,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=HANG_SECONDS,
        )
    lines = log.read_text().splitlines()
    expected = ["JVM on stderr", "JVM on stdout", "job on stderr", "more on stderr", "more on stdout"]
    assert [lines[0], *sorted(lines[1:-1]), lines[-1]] == ["before", *expected, "after"]


# --- what it says without Spark


def refused(machine: Machine, code: int, *arguments: str, **variables: str) -> str:
    """What is said where spark-submit is not called: one line on stderr."""
    ran = machine.call(*arguments, **variables)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert not machine.record.exists()
    return str(ran.stderr)


def test_an_unknown_job_is_answered_with_the_list(machine: Machine) -> None:
    said = refused(machine, 2, "trian", "--epochs", "3")
    assert said.count("\n") == 1 and "no job 'trian'" in said
    assert all(job in said for job in [*config.JOBS, "test"])


def test_the_script_knows_all_jobs(machine: Machine) -> None:
    usage = machine.call("--help").stdout
    for job in config.JOBS:
        assert f"\n  {job} " in usage
        assert (ROOT / "jobs" / f"{job}.py").exists()
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} == set(config.JOBS)


@pytest.mark.parametrize("master", ["local[2]", "yarn"])
def test_a_program_of_ones_own_runs_as_a_job_does(machine: Machine, master: str) -> None:
    (machine.directory / "my own.py").touch()
    given = machine.submitted("--master", master, "my own.py", "--help", "--epochs", "no number")
    assert given["arguments"][-4:] == ["my own.py", "--help", "--epochs", "no number"]
    assert ("seedlings_spark/estimator/__init__.py" in given["zip"]) == (master == "yarn")
    assert (str(ROOT) in given["environment"].get("PYTHONPATH", "")) == (master != "yarn")


def test_a_program_that_is_not_there_is_named(machine: Machine) -> None:
    assert "no file nowhere.py" in refused(machine, 2, "nowhere.py")


@pytest.mark.parametrize("arguments", [[], ["--master", "yarn"], ["--verbose"], [""]])
def test_without_a_job_it_shows_its_usage_and_ends_with_2(machine: Machine, arguments: list[str]) -> None:
    assert "usage: ./spark-submit.sh" in refused(machine, 2, *arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--master", "yarn", "--help"]])
def test_help_is_shown_on_stdout(machine: Machine, arguments: list[str]) -> None:
    ran = machine.call(*arguments)
    assert ran.returncode == 0 and ran.stdout.startswith("usage: ") and ran.stderr == ""


def test_an_option_without_its_value_is_named(machine: Machine) -> None:
    assert "--conf without a value" in refused(machine, 2, "--conf")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_a_jobs_help_needs_neither_java_nor_spark(machine: Machine, flag: str) -> None:
    (machine.folder / "bin" / "java").unlink()
    ran = machine.call("train", "--epochs", flag, JAVA_HOME="/nowhere")
    assert ran.returncode == 0 and "--epochs N" in ran.stdout and not machine.record.exists()


def test_help_and_versions_are_asked_for_as_elsewhere(machine: Machine) -> None:
    assert machine.call("help").stdout == machine.call("--help").stdout
    assert machine.call("help", "train").stdout == machine.call("train", "--help").stdout
    assert "no job 'trian'" in refused(machine, 2, "help", "trian")
    ran = machine.call("--version")
    assert (ran.returncode, ran.stderr) == (0, "") and "pyspark" in ran.stdout


def test_wrong_arguments_are_told_before_spark_starts(machine: Machine) -> None:
    said = refused(machine, 2, "prepare", "--imagse", "i")
    assert said.count("\n") == 1 and "Did you mean --images?" in said


def path_without_java(machine: Machine) -> str:
    """A PATH with all the tools of this machine, but Java and the Pythons."""
    tools = machine.folder / "tools"
    tools.mkdir()
    for name in ("cat", "cksum", "dirname", "mktemp", "readlink", "rm", "sed", "tail", "env", "flock", "sh"):
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    return str(tools)


def test_a_machine_without_java_is_told_what_to_do(machine: Machine) -> None:
    said = refused(machine, 1, *PREPARE, PATH=path_without_java(machine))
    assert said.count("\n") == 1
    assert "no Java on the PATH" in said and "Expected Java 17" in said and "set JAVA_HOME" in said


def test_a_java_home_without_java_is_named(machine: Machine) -> None:
    assert "no Java in JAVA_HOME=/no where" in refused(machine, 1, *PREPARE, JAVA_HOME="/no where")


@pytest.mark.parametrize(("version", "number"), [("11.0.2", "11"), ("1.8.0_402", "8")])
def test_a_java_that_is_too_old_is_named(machine: Machine, version: str, number: str) -> None:
    program(machine.folder / "bin" / "java", FAKE_JAVA.format(version))
    assert f"no newer Java than {number} on the PATH" in refused(machine, 1, *PREPARE)


def test_java_home_comes_before_the_path(machine: Machine) -> None:
    program(machine.folder / "bin" / "java", FAKE_JAVA.format("11.0.2"))
    program(machine.folder / "my java" / "bin" / "java", FAKE_JAVA.format("21"))
    machine.submitted(*PREPARE, JAVA_HOME=str(machine.folder / "my java"))


def test_an_interpreter_that_is_not_there_is_named(machine: Machine) -> None:
    assert "no program SEEDLINGS_PYTHON=/no/python" in refused(
        machine, 1, *PREPARE, SEEDLINGS_PYTHON="/no/python"
    )


def test_an_interpreter_of_another_version_is_not_told_to_install_what_refuses_it(machine: Machine) -> None:
    other = program(machine.folder / "python3.10", "#!/bin/sh\necho Python 3.10 >&2\nexit 1\n")
    said = refused(machine, 1, *PREPARE, SEEDLINGS_PYTHON=str(other))
    assert "which is Python 3.10. Expected Python 3.11, 3.12 or 3.13" in said and "pip" not in said


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n'])
def test_an_interpreter_without_the_packages_is_named_with_the_command_that_installs_them(
    machine: Machine, text: str
) -> None:
    bare = program(machine.folder / "bare", text)
    said = refused(machine, 1, *PREPARE, SEEDLINGS_PYTHON=str(bare))
    assert said.count("\n") == 1 and f"{bare} -m pip install -c " in said


def test_an_interpreter_without_elephas_is_told_the_one_command(machine: Machine) -> None:
    bare = program(machine.folder / "bare", "#!/bin/sh\necho a Python without elephas >&2\nexit 1\n")
    said = refused(machine, 1, *PREPARE, SEEDLINGS_PYTHON=str(bare))
    assert f"Install it with {bare} -m pip install {' '.join(environment.ELEPHAS)}.\n" in said


# --- the set-up


SET_UP = """#!/bin/sh
# A Python whose venv has a Python that does as FAKE_PIP says.
case "$*" in
*version_info*) exit ${FAKE_OLD:-0} ;;
*venv*) for folder; do :; done
  mkdir -p "$folder/bin"
  cp "$FAKE_VENV_PYTHON" "$folder/bin/python" ;;
esac
"""

VENV_PYTHON = f"""#!/bin/sh
case "$*" in
*pip*) echo "$*" >>"$FAKE_RECORD.pip"; exit ${{FAKE_PIP:-0}} ;;
*find_spec* | *cli.classes*) exit 0 ;;
esac
exec {sys.executable} "$@"
"""


@pytest.fixture
def fresh(machine: Machine) -> tuple[Machine, Path]:
    """A machine with Python 3.11 and a new checkout, without .venv."""
    del machine.environment["SEEDLINGS_PYTHON"]
    program(machine.folder / "bin" / "python3.11", SET_UP)
    machine.environment["FAKE_VENV_PYTHON"] = str(program(machine.folder / "venv python", VENV_PYTHON))
    home = machine.folder / "a checkout"
    home.mkdir()
    return machine, checkout(home)


def installs(machine: Machine) -> int:
    file = Path(f"{machine.record}.pip")
    return file.read_text().count("--editable") if file.exists() else 0


def test_the_first_call_makes_the_environment_and_the_next_uses_it(fresh: tuple[Machine, Path]) -> None:
    machine, script = fresh
    python = script.parent / ".venv" / "bin" / "python"
    for _ in range(2):
        given = machine.submitted(*PREPARE, script=script)
        assert given["environment"]["PYSPARK_PYTHON"] == str(python)
    packages, elephas = Path(f"{machine.record}.pip").read_text().splitlines()
    assert re.search(r"--constraint conf/constraints-spark-4\.\d\.txt .*--editable \.\[dev\]$", packages)
    assert elephas.endswith(" ".join(environment.ELEPHAS))


@pytest.mark.parametrize(
    ("variables", "jar", "venv"),
    [
        ({"SEEDLINGS_SPARK_VERSION": "4.3"}, "", ".venv-spark-4.3"),
        ({"SEEDLINGS_SPARK_VERSION": "4.2.0"}, "spark-core_2.13-4.3.0.jar", ".venv-spark-4.2"),
        ({}, "spark-core_2.13-4.3.0-vendor-1.jar", ".venv-spark-4.3"),
        ({"SEEDLINGS_PYTHON_VERSION": "3.11"}, "", ".venv-python-3.11"),
    ],
)
def test_packages_are_those_for_the_spark_that_is_asked_for_or_there(
    fresh: tuple[Machine, Path], variables: dict[str, str], jar: str, venv: str
) -> None:
    machine, script = fresh
    if jar:
        program(machine.folder / "spark" / "jars" / jar, "")
    machine.call(*PREPARE, script=script, **variables)
    assert (script.parent / venv / "installed").exists()
    command = Path(f"{machine.record}.pip").read_text()
    _, _, spark = venv.rpartition("-spark-")
    assert f"conf/constraints-spark-{spark if '-spark-' in venv else ''}" in command


def test_a_spark_without_a_set_of_packages_is_refused(fresh: tuple[Machine, Path]) -> None:
    machine, script = fresh
    ran = machine.call(*PREPARE, script=script, SEEDLINGS_SPARK_VERSION="3.5.9")
    assert ran.returncode == 1 and installs(machine) == 0
    assert "Spark 3.5.9 (SEEDLINGS_SPARK_VERSION=3.5.9). Expected one of those that" in ran.stderr


def test_the_environment_is_brought_up_to_date_when_what_it_is_made_from_changes(
    fresh: tuple[Machine, Path],
) -> None:
    machine, script = fresh
    machine.submitted(*PREPARE, script=script)
    for constraints in script.parent.glob("conf/constraints-spark-4.*.txt"):
        constraints.write_text(constraints.read_text() + "a==1\n")
    machine.submitted(*PREPARE, script=script)
    assert installs(machine) == 2


def test_a_failed_set_up_is_told_and_tried_again(fresh: tuple[Machine, Path]) -> None:
    machine, script = fresh
    for attempt in (1, 2):
        ran = machine.call(*PREPARE, script=script, FAKE_PIP="1")
        assert ran.returncode == 1 and "the set-up of" in ran.stderr
        assert installs(machine) == attempt and not machine.record.exists()
    machine.submitted(*PREPARE, script=script)
    assert installs(machine) == 3


def test_an_environment_whose_python_is_gone_is_made_anew(fresh: tuple[Machine, Path]) -> None:
    machine, script = fresh
    machine.submitted(*PREPARE, script=script)
    (script.parent / ".venv" / "bin" / "python").unlink()
    machine.submitted(*PREPARE, script=script)
    assert installs(machine) == 2


def test_a_checkout_that_has_moved_sets_its_environment_up_again(fresh: tuple[Machine, Path]) -> None:
    machine, script = fresh
    machine.submitted(*PREPARE, script=script)
    moved = script.parent.rename(machine.folder / "moved")
    machine.submitted(*PREPARE, script=moved / "spark-submit.sh")
    assert installs(machine) == 2


def test_two_first_calls_at_once_set_up_once(fresh: tuple[Machine, Path]) -> None:
    machine, script = fresh
    calls = [
        subprocess.Popen(
            [BASH, str(script), *PREPARE],
            env={**machine.environment, "FAKE_RECORD": str(machine.record)},
            cwd=machine.directory,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]
    assert [call.wait(timeout=HANG_SECONDS) for call in calls] == [0, 0, 0]
    assert installs(machine) == 1


@pytest.mark.parametrize("is_old", [True, False])
def test_a_machine_without_a_python_that_will_do_is_told_what_to_do(
    fresh: tuple[Machine, Path], is_old: bool
) -> None:
    machine, script = fresh
    if not is_old:
        (machine.folder / "bin" / "python3.11").unlink()
    path = f"{path_without_java(machine)}:{machine.folder / 'bin'}"
    ran = machine.call(*PREPARE, script=script, PATH=path, FAKE_OLD="1")
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1
    assert (
        "on the PATH. Expected Python 3.11, 3.12 or 3.13. " in ran.stderr and "SEEDLINGS_PYTHON" in ran.stderr
    )
    assert not (script.parent / ".venv" / "installed").exists()


# --- the tests


TESTS = ["tests/unit", "tests/images", "tests/processes", "tests/keras", "tests/spark"]
RECORDING_PYTHON = f"""#!/bin/sh
case "$*" in
*find_spec*) exit 0 ;;
*cli.launch*) exec {sys.executable} "$@" ;;
esac
pwd >"$FAKE_RECORD"
printf '%s\\n' "$@" >>"$FAKE_RECORD"
exit 5
"""


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ([], TESTS),
        (["--all"], [*TESTS, "tests/cluster"]),
        (["-k", "a or b"], [*TESTS, "-k", "a or b"]),
        (["tests/unit/test_cli.py::test_x", "-x"], ["tests/unit/test_cli.py::test_x", "-x"]),
        (["./tests/spark"], ["./tests/spark"]),
    ],
)
def test_the_tests_are_run_in_the_checkout_with_pytests_own_arguments(
    machine: Machine, arguments: list[str], passed: list[str]
) -> None:
    program(machine.directory / "recording", RECORDING_PYTHON)
    ran = machine.call("test", *arguments, SEEDLINGS_PYTHON="./recording")
    assert ran.returncode == 5
    assert machine.record.read_text().splitlines() == [str(ROOT), "-m", "pytest", *passed]


def test_the_matrix_runs_the_tests_with_the_packages_for_each_spark(fresh: tuple[Machine, Path]) -> None:
    machine, script = fresh
    text = VENV_PYTHON.replace(
        "*find_spec*", '*"-m pytest"*) echo "$0 $*" >>"$FAKE_RECORD"; exit 5 ;;\n*find_spec*'
    )
    program(Path(machine.environment["FAKE_VENV_PYTHON"]), text)
    ran = machine.call("test", "--matrix", "tests/unit", script=script)
    assert ran.returncode == 5, ran.stderr
    assert ran.stdout.splitlines()[-1].split() == [
        "Spark",
        "4.3",
        "exit",
        "code",
        "5",
    ]
    calls = machine.record.read_text().splitlines()
    assert len(calls) == 4 and all(call.endswith(" -m pytest tests/unit") for call in calls)
    assert (
        "/.venv-spark-4.3/bin/python " in calls[-1]
        and sum("/.venv/bin/python " in call for call in calls) == 1
    )


# --- clusters: secrets, containers, environments that travel along, the background

STANDALONE = ["--master", "spark://h:7077"]
CLUSTER = ["--master", "yarn", "--deploy-mode", "cluster"]


def test_a_standalone_cluster_needs_a_secret(machine: Machine) -> None:
    ran = machine.call(*STANDALONE, *PREPARE, SPARK_CONF_DIR="/nowhere")
    assert ran.returncode == 1 and not machine.record.exists()
    assert "SEEDLINGS_SPARK_SECRET" in ran.stderr and "--insecure" in ran.stderr


def test_the_secret_is_in_a_file_of_its_own_and_nowhere_else(machine: Machine) -> None:
    given = machine.submitted(
        *STANDALONE, *PREPARE, SEEDLINGS_SPARK_SECRET="open sesame", FAKE_SETTINGS="yes"
    )
    assert "sesame" not in json.dumps([given["arguments"], given["environment"]])
    settings = given["settings"]
    assert settings["mode"] == "600"
    assert settings["content"].endswith("\nspark.authenticate.secret open sesame\n")
    assert settings["content"].startswith((ROOT / "conf" / "spark-standalone.conf").read_text())
    assert not Path(settings["path"]).exists() and list(machine.temporary.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--conf", "spark.authenticate.secret=s"],
        ["--conf=spark.authenticate.secret.file=f"],
        ["--properties-file", "own.conf"],
        ["--conf", "spark.authenticate=false"],
        ["--insecure"],
    ],
)
def test_whoever_knows_better_needs_no_secret(machine: Machine, options: list[str]) -> None:
    machine.submitted(*STANDALONE, *options, *PREPARE, SPARK_CONF_DIR="/nowhere")


def test_the_sites_own_secret_does(machine: Machine) -> None:
    arguments = machine.submitted(*STANDALONE, *PREPARE)["arguments"]
    assert value_of("--properties-file", arguments) == str(ROOT / "conf" / "spark-standalone.conf")


def test_insecure_turns_everything_off_and_does_not_reach_spark(machine: Machine) -> None:
    arguments = machine.submitted("--insecure", *STANDALONE, *PREPARE)["arguments"]
    assert "--insecure" not in arguments
    for name in ("authenticate", "network.crypto.enabled", "io.encryption.enabled"):
        assert f"spark.{name}=false" in arguments


def test_an_environment_travels_along(machine: Machine) -> None:
    archive = ["--archives", "hdfs:///e.tar.gz#environment"]
    given = machine.submitted("--master", "yarn", *archive, *PREPARE)
    assert given["environment"]["PYSPARK_PYTHON"] == "./environment/bin/python"
    assert given["environment"]["PYSPARK_DRIVER_PYTHON"] == machine.environment["SEEDLINGS_PYTHON"]
    given = machine.submitted(*CLUSTER, *archive, *PREPARE_ON_HDFS)
    assert given["environment"]["PYSPARK_DRIVER_PYTHON"] == "./environment/bin/python"


def test_local_files_travel_into_the_container(machine: Machine) -> None:
    config_file = machine.directory / "my options.toml"
    config_file.write_text("[train]\nepochs = 2\n")
    (machine.directory / "net.keras").write_text("")
    train = ["train", "--corpus", "hdfs:///c", "--store", "hdfs:///s"]
    files = ["--config", "my options.toml", "--network=net.keras"]
    arguments = machine.submitted(*CLUSTER, "--files", "own.txt", *train, *files)["arguments"]
    folder = machine.directory
    assert value_of("--files", arguments) == f"own.txt,{folder}/my options.toml,{folder}/net.keras"
    assert arguments[-3:] == files
    (machine.directory / "deeper").mkdir()
    config_file.rename(machine.directory / "deeper" / "o.toml")
    arguments = machine.submitted(*CLUSTER, *train, "--config=deeper/o.toml")["arguments"]
    assert arguments[-1] == "--config=o.toml"
    arguments = machine.submitted("--master", "yarn", *train, "--config=deeper/o.toml")["arguments"]
    assert arguments[-1] == "--config=deeper/o.toml" and "--files" not in arguments


def test_a_containers_own_disk_is_refused(machine: Machine) -> None:
    ran = machine.call(*CLUSTER, *PREPARE)
    assert ran.returncode == 2 and "--corpus c with --deploy-mode cluster" in ran.stderr
    assert not machine.record.exists()


@pytest.mark.parametrize(("said", "code"), [("User application exited with status 73", 73), ("no such", 1)])
def test_a_containers_exit_code_is_the_scripts(machine: Machine, said: str, code: int) -> None:
    ran = machine.call(*CLUSTER, *PREPARE_ON_HDFS, FAKE_CODE="1", FAKE_SAYS=f"Diagnostics: {said}.")
    assert ran.returncode == code
    assert said in ran.stderr
    assert machine.call(*CLUSTER, *PREPARE_ON_HDFS, FAKE_CODE="0", FAKE_SAYS=said).returncode == 0


# --- Kubernetes


def test_the_pods_python_is_that_of_their_image_and_no_secret_is_asked_for(machine: Machine) -> None:
    outside = {"SPARK_CONF_DIR": "/nowhere"}
    given = machine.submitted(*PODS, *PREPARE, **outside)
    environment = given["environment"]
    assert environment["PYSPARK_PYTHON"] == "python3"
    assert environment["PYSPARK_DRIVER_PYTHON"] == machine.environment["SEEDLINGS_PYTHON"]
    assert given["zip"]
    # Spark's client puts these two into the driver's pod.
    environment = machine.submitted(*PODS, *CLUSTER_MODE, *PREPARE_ON_HDFS, FAKE_SAYS=DEPLOYED, **outside)[
        "environment"
    ]
    assert not {"PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"} & set(environment)
    environment = machine.submitted(
        *PODS,
        *CLUSTER_MODE,
        *PREPARE_ON_HDFS,
        PYSPARK_PYTHON="/opt/own/python",
        FAKE_SAYS=DEPLOYED,
        **outside,
    )["environment"]
    assert environment["PYSPARK_PYTHON"] == environment["PYSPARK_DRIVER_PYTHON"] == "/opt/own/python"


def test_without_a_way_into_the_pod_the_job_is_that_of_the_image(machine: Machine) -> None:
    given = machine.submitted(*PODS, *CLUSTER_MODE, *PREPARE_ON_HDFS, FAKE_SAYS=DEPLOYED)
    assert "local:///opt/seedlings_spark/jobs/prepare.py" in given["arguments"]
    assert "--py-files" not in given["arguments"] and not given["zip"]
    own = machine.submitted(*PODS, *CLUSTER_MODE, "local:///app/own.py", "-x", FAKE_SAYS=DEPLOYED)
    assert own["arguments"][-2:] == ["local:///app/own.py", "-x"]
    (machine.directory / "own.conf").write_text("spark.kubernetes.file.upload.path s3a://b/u\n")
    site = program(machine.folder / "other site" / "spark-defaults.conf", f"{UPLOADS} s3a://b/u\n")
    for options in ([], ["--properties-file", "own.conf"], ["--conf", f"{UPLOADS}=s3a://b/u"]):
        variables = {"FAKE_SAYS": DEPLOYED, **({} if options else {"SPARK_CONF_DIR": str(site.parent)})}
        given = machine.submitted(*PODS, *CLUSTER_MODE, *options, *PREPARE_ON_HDFS, **variables)
        assert str(ROOT / "jobs" / "prepare.py") in given["arguments"] and given["zip"]


@pytest.mark.parametrize(
    ("options", "job", "found"),
    [
        ([], ["train", *TRAIN_ON_HDFS, "--config", "o.toml"], "{}/o.toml"),
        ([], ["own.py"], "own.py"),
        (["--py-files", "hdfs:///a.zip,b.zip"], PREPARE_ON_HDFS, "b.zip"),
        (["--archives", "file:///e.tar.gz#environment"], PREPARE_ON_HDFS, "file:///e.tar.gz#environment"),
    ],
)
def test_what_has_no_way_into_the_pod_is_named(
    machine: Machine, options: list[str], job: list[str], found: str
) -> None:
    for name in ("o.toml", "own.py"):
        (machine.directory / name).touch()
    said = refused(machine, 1, *PODS, *CLUSTER_MODE, *options, *job)
    assert said.startswith(f"ClusterError: {found.format(machine.directory)} with --deploy-mode cluster on")
    assert f"no {UPLOADS}." in said
    way = ["--conf", f"{UPLOADS}=s3a://b/u"]
    assert machine.submitted(*PODS, *CLUSTER_MODE, *way, *options, *job, FAKE_SAYS=DEPLOYED)


def test_pods_without_an_image_are_refused(machine: Machine) -> None:
    assert "no spark.kubernetes.container.image for" in refused(machine, 1, *PODS[:2], *PREPARE)


# As Spark 4.1.4 says it.
POD = """\
spark INFO LoggingPodStatusWatcherImpl: State changed, new state:
\t pod name: train-py-765ba1a226fa7080-driver
\t namespace: plants
\t service account name: N/A
\t phase: {phase}
\t container status:
\t\t container name: sidecar
\t\t container state: terminated
\t\t exit code: 5

\t\t container name: spark-kubernetes-driver
{state}
"""
FAILED = POD.format(phase="Failed", state="\t\t exit code: 73")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (POD.format(phase="Succeeded", state="\t\t exit code: 0"), 0),
        (FAILED, 73),
        (
            FAILED.replace("\n", "\\n").replace("\t", "\\t"),
            73,
        ),
        (POD.format(phase="Running", state="\t\t container state: running").replace("exit", ""), 1),
        (DEPLOYED, 0),
        ("", 1),
    ],
)
def test_a_pods_exit_code_is_the_scripts_though_spark_submit_always_ends_with_0(
    machine: Machine, said: str, code: int
) -> None:
    ran = machine.call(*PODS, *CLUSTER_MODE, *PREPARE_ON_HDFS, FAKE_SAYS=said)
    assert ran.returncode == code, ran.stderr
    pod = "; its own words: kubectl logs --namespace plants train-py-765ba1a226fa7080-driver"
    last = f"the job ended with exit code {code}{pod if 'pod name' in said else ''}\n"
    assert ran.stderr.endswith(last) if code else "the job ended" not in ran.stderr


def test_training_goes_to_the_background(machine: Machine) -> None:
    train = ["train", "--corpus", "c", "--store", "s", "--run", "runs/7"]
    ran = machine.call("--detach", *train, FAKE_SECONDS="2", FAKE_SAYS="epoch 1")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "runs/7\n" and "status runs/7" in ran.stderr
    log = machine.directory / "runs" / "7" / "train.log"
    deadline = time.monotonic() + HANG_SECONDS
    while "epoch 1" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "--detach" not in json.loads(machine.record.read_text())["arguments"]


@pytest.mark.parametrize(
    "arguments",
    [
        PREPARE,
        ["train", "--corpus", "c", "--store", "s"],
        ["train", "--corpus", "c", "--store", "s", "--run", "hdfs:///r"],
    ],
)
def test_what_cannot_go_to_the_background_is_refused(machine: Machine, arguments: list[str]) -> None:
    ran = machine.call("--detach", *arguments)
    assert ran.returncode == 2 and "--run" in ran.stderr and not machine.record.exists()


def test_status_takes_a_folder_and_no_cluster(machine: Machine) -> None:
    arguments = machine.submitted("--master", "yarn", "status", "hdfs:///r")["arguments"]
    assert value_of("--master", arguments) == "local[1]"
    assert arguments[-2:] == ["--run", "hdfs:///r"]


def test_a_json_log_is_sparks_too(machine: Machine) -> None:
    given = machine.submitted(*PREPARE, "--log", "json")
    assert "spark.log.structuredLogging.enabled=true" in given["arguments"]
    assert given["environment"]["LOG4J_CONFIGURATION_FILE"].endswith("conf/log4j2-json.properties")


@pytest.mark.parametrize(
    ("job", "python", "code", "said"),
    [
        (
            'a "job" \\ \t\x1b[31m',
            "",
            2,
            "no job 'a \"job\" \\ \t\x1b[31m'. Expected one of: quickstart prepare",
        ),
        ("train", '/no "\\/\x1b[31m', 1, 'no program SEEDLINGS_PYTHON=/no "\\/ [31m. Expected the path'),
    ],
)
def test_what_the_script_itself_refuses_is_an_object_of_a_json_log(
    machine: Machine, job: str, python: str, code: int, said: str
) -> None:
    variables = {"SEEDLINGS_PYTHON": python} if python else {}
    ran = machine.call(job, "--log", "json", **variables)
    told = json.loads(ran.stderr)
    assert (ran.returncode, told["exit_code"], told["level"]) == (code, code, "ERROR")
    assert told["msg"].startswith(said)


def test_a_jvm_of_spark_takes_its_classes_from_the_archive() -> None:
    classes.make(os.environ)
    told = f"{classes.options(os.environ)} -Xlog:class+load:stderr"
    ran = subprocess.run(
        [str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--version"],
        env={**os.environ, "SPARK_SUBMIT_OPTS": told},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert "org.apache.spark.deploy.SparkSubmit source: shared objects file (top)" in ran.stderr
