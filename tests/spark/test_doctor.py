"""What is in the way of the other jobs: found on a real session, and told in the right words."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyspark
import pytest
from pyspark.sql import SparkSession

from seedlings_spark import files
from seedlings_spark.cluster import doctor
from seedlings_spark.cluster.doctor import BAD, FAIR, GOOD, Check


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def however_slow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of TensorFlow beside much other work is nothing to tell of."""
    monkeypatch.setattr(doctor, "_SLOW_IMPORT_SECONDS", 900.0)


@pytest.mark.usefixtures("however_slow_the_machine")
def test_nothing_is_in_the_way_of_this_session(spark: SparkSession, tmp_path: Path) -> None:
    output = files.qualify(str(tmp_path / "shared"))
    found = doctor.examine(spark, output=output, num_workers=2, ports=(0,))
    assert doctor.is_fit(found), doctor.table(found)
    rows = by_name(found)
    assert rows["executors seen"].found.startswith("2 tasks on 1 host")
    assert rows["versions"].found.startswith("those of the driver: python 3.")
    assert rows["TensorFlow on the executors"].found.startswith("imported in ")
    assert rows["driver's port from the executors"].found.startswith("127.0.0.1:")
    assert rows["the same folder on the executors"].verdict == GOOD
    assert rows["links between workers"].found == "2 workers reach each other"
    assert files.list_names(output) == []
    shown = doctor.table(found)
    rows_shown = [line for line in shown.splitlines() if line.split(" ")[0] in ("ok", "note")]
    assert len(rows_shown) == len(found) and "->" not in shown


@pytest.mark.usefixtures("however_slow_the_machine")
def test_each_thing_in_the_way_is_told_with_what_to_do(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = doctor.examine(
            spark,
            output=files.qualify(str(tmp_path / "file" / "folder")),
            num_workers=99,
            ports=(taken.getsockname()[1],),
        )
    assert not doctor.is_fit(found)
    bad = {check.name: check for check in found if check.verdict == BAD}
    assert set(bad) == {
        "slots for 99 workers",
        f"writing to {files.qualify(str(tmp_path / 'file' / 'folder'))}",
        "port of the parameter server",
    }
    assert all(check.remedy for check in bad.values())
    assert doctor.table(found).count("-> ") == 3


def test_workers_that_share_one_port_of_a_machine_are_told_to_take_more(spark: SparkSession) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with doctor._Answering("127.0.0.1", (0,)) as driver:
        probe = doctor.Probe("127.0.0.1", driver.port, driver.token, "")
        (check,) = doctor._links(spark, probe, 2, (port,))
    assert check.verdict == FAIR and "no port for the others (Address already in use" in check.found
    assert "--worker-port" in check.remedy


def test_a_worker_that_others_cannot_reach_is_named_with_who_cannot_and_at_which_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with doctor._Answering("127.0.0.1", (0,)) as there:
        addresses = [f"127.0.0.1 {there.port}", f"127.0.0.1 {port}"]
        (found,) = doctor.unreached(addresses, there.token)
        assert found == f"127.0.0.1:{port} (Connection refused)"
        assert doctor.unreached(addresses[:1], "other") == [
            f"127.0.0.1:{there.port} (somebody else answers there)"
        ]
    assert doctor.unreached(addresses[:1], there.token) == [f"127.0.0.1:{there.port} (Connection refused)"]
    rows = [
        {"host": "a", "failure": "", "unreachable": found},
        {"host": "b", "failure": "", "unreachable": ""},
    ]
    check = doctor._linkage(rows)
    assert check.found == f"no way from a to 127.0.0.1:{port} (Connection refused)"


def test_what_executors_see_is_compared_with_the_driver() -> None:
    versions = doctor._versions()
    assert f"pyspark {pyspark.__version__}, " in versions and f"numpy {np.__version__}, " in versions
    good: dict[str, Any] = {
        "host": "a",
        "python": "3.11",
        "versions": versions,
        "features": "avx2 avx512_bf16",
        "cores": 8,
        "gpus": "0",
        "import_seconds": 4.0,
        "import_error": "",
        "clock": 1005.0,
        "reaches": "",
        "local": "",
    }
    probe = doctor.Probe("driver", 4100, "token", "/nfs/x")
    rows = by_name(list(doctor._executors([good], 1000.0, 1010.0, probe, "conf/c.txt")))
    assert {check.verdict for check in rows.values()} == {GOOD}
    assert rows["GPUs assigned to tasks"].found == "0 on a"
    other = {
        "host": "b",
        "versions": versions.replace(f"pyspark {pyspark.__version__}", "pyspark 3.5.0"),
        "features": "avx2",
        "import_seconds": 45.0,
        "clock": 1100.0,
        "reaches": "Connection refused",
        "local": "No such file or directory",
    }
    rows = by_name(list(doctor._executors([good, {**good, **other}], 1000.0, 1010.0, probe, "conf/c.txt")))
    assert {name for name, check in rows.items() if check.verdict == BAD} == {
        "driver's port from the executors",
        "the same folder on the executors",
    }
    assert {name for name, check in rows.items() if check.verdict == FAIR} == {
        "TensorFlow on the executors",
        "versions",
        "processors",
        "clocks",
    }
    found = f"pyspark 3.5.0 on executors, {pyspark.__version__} on the driver"
    assert rows["versions"].found == found and "conf/c.txt" in rows["versions"].remedy
    assert rows["clocks"].found == "within 90 s of the driver's"
    assert "Connection refused from b" in rows["driver's port from the executors"].found
    broken = {**good, "import_error": "No module named tensorflow"}
    rows = by_name(list(doctor._executors([broken], 1000.0, 1010.0, probe, "conf/c.txt")))
    assert rows["TensorFlow on the executors"].verdict == BAD


def test_the_gpu_of_each_task_is_shown_and_one_that_tasks_share_or_lack_is_told() -> None:
    def seen(*of_tasks: tuple[str, str]) -> tuple[str, str]:
        check = doctor._gpus([{"host": host, "gpus": gpus} for host, gpus in of_tasks])
        return check.found, check.verdict

    assert seen(("b", "1"), ("b", "0"), ("a", "0")) == ("0 on a; 0, 1 on b", GOOD)
    assert seen(("a", ""), ("b", "")) == ("none", GOOD)
    assert seen(("a", "0"), ("a", "0")) == ("0, 0 on a", FAIR)
    assert seen(("a", "0 1"), ("b", "")) == ("0 1 on a; none on b", FAIR)
