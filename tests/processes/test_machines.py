"""A narrow network of machines, all on this one: what it is, and that nothing of it is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seedlings_spark.benchmark.machines import Machines, bits_per_second
from seedlings_spark.errors import ClusterError, OptionError


@pytest.mark.parametrize(("text", "bits"), [("1gbit", 10**9), ("100mbit", 10**8), ("56kbit", 56_000)])
def test_a_bandwidth_is_written_as_tc_does(text: str, bits: int) -> None:
    assert bits_per_second(text) == bits


@pytest.mark.parametrize("text", ["", "1", "0mbit", "1 gbit", "1gbps", "-1gbit", "1gbit;reboot"])
def test_what_is_no_bandwidth_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--bandwidth"):
        bits_per_second(text)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_who_may_make_no_namespaces_is_told_so() -> None:
    with pytest.raises(ClusterError, match="not make network namespaces"):
        Machines(2)


LISTEN = "import socket; s = socket.create_server(('', 5000)); print(1, flush=True); print(s.accept()[1][0])"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 5000), 10)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")
def test_machines_reach_each_other_over_limited_links_and_are_gone_afterwards() -> None:
    inside: list[Path] = []
    try:
        machines = Machines(2)
        machines.__enter__()
    except ClusterError as error:
        pytest.skip(str(error))
    try:
        machines.limit(10**7)
        inside += [Path(machines.command(number)[1].removeprefix("--net=")) for number in range(2)]
        assert len({path.readlink() for path in [*inside, Path("/proc/self/ns/net")]}) == 3
        shown = subprocess.run(
            [*machines.command(1), "tc", "qdisc", "show", "dev", "eth0"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "tbf" in shown.stdout and "rate 10Mbit" in shown.stdout
        with subprocess.Popen(
            [*machines.command(0), sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None and server.stdout.readline() == "1\n"
            subprocess.run(
                [*machines.command(1), sys.executable, "-c", CONNECT, machines.address(0)], check=True
            )
            assert server.stdout.readline().strip() == machines.address(1)
    finally:
        machines.__exit__(None, None, None)
    assert not any(path.exists() for path in inside)
