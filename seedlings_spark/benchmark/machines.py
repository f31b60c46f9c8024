"""Machines with a narrow network, all on this one: network namespaces on a switch, whose links `tc tbf` slows down.

A namespace here has no name: it belongs to a process that ends when the one that made it ends, however that ends, and
is gone with the last process in it. So nothing is left behind, not even by a SIGKILL.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from types import TracebackType

from seedlings_spark.errors import ClusterError, OptionError

_TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
_UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
# Documentation's own addresses (RFC 5737): no route of this machine's is for them.
_NETWORK = "192.0.2"
MOST = 200
# What a link lets pass at once: some milliseconds of the fastest, and more than the longest packet before it is cut
# (64 KiB); and how long a packet may wait before it is dropped.
_BURST, _LATENCY = "256kb", "200ms"
# Says when it is inside, and ends with whoever holds its standard input.
_HOLDER = ["unshare", "--net", "sh", "-c", "echo; exec cat"]


def bits_per_second(text: str) -> int:
    """A bandwidth as `tc` writes it.

    Raises:
        OptionError: It is none.
    """
    match = re.fullmatch(r"([0-9]{1,6})(kbit|mbit|gbit)", text)
    if not match or not int(match[1]):
        raise OptionError(
            f"--bandwidth {text}",
            "a number of kbit, mbit or gbit a second, as in 100mbit",
            "Correct --bandwidth",
        )
    return int(match[1]) * _UNITS[match[2]]


class Machines:
    """Namespaces on one switch, each with a link of its own; a context manager.

    Args:
        count: How many.

    Raises:
        ClusterError: This process may not make them, or lacks the programs for it.
    """

    def __init__(self, count: int) -> None:
        if os.geteuid():
            raise ClusterError(
                f"user {os.geteuid()}, who may not make network namespaces",
                "root, who may",
                "Run it as root, or leave out --bandwidth",
            )
        missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
        if missing:
            raise ClusterError(
                f"a machine without {' and '.join(missing)}",
                f"the programs {', '.join(_TOOLS)}",
                "Install what is missing, or leave out --bandwidth",
            )
        if not 0 < count <= MOST:
            raise ValueError(f"{count} machines, expected 1 to {MOST}")
        self._count = count
        self._holders: list[subprocess.Popen[bytes]] = []  # the switch, then the machines

    def __enter__(self) -> "Machines":
        with contextlib.ExitStack() as undone:
            undone.callback(self._end)
            for _ in range(self._count + 1):
                self._holders.append(_held())
            self._in_switch("ip", "link", "add", "switch", "type", "bridge")
            self._in_switch("ip", "link", "set", "switch", "up")
            for number in range(self._count):
                self._connect(number)
            undone.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def address(self, number: int) -> str:
        """The address of a machine, for the others."""
        return f"{_NETWORK}.{number + 1}"

    def command(self, number: int) -> list[str]:
        """What goes before a command that is to run on a machine."""
        return _inside(self._holders[number + 1])

    def limit(self, bandwidth: int) -> None:
        """Give each machine so many bits a second, in each of both directions."""
        limited = ["tbf", "rate", f"{bandwidth}bit", "burst", _BURST, "latency", _LATENCY]
        for number in range(self._count):
            self._in_switch("tc", "qdisc", "replace", "dev", f"port{number}", "root", *limited)
            _run([*self.command(number), "tc", "qdisc", "replace", "dev", "eth0", "root", *limited])

    def _connect(self, number: int) -> None:
        holder, port = self._holders[number + 1], f"port{number}"
        self._in_switch(
            *("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        )
        self._in_switch("ip", "link", "set", port, "master", "switch", "up")
        here = self.command(number)
        _run([*here, "ip", "link", "set", "lo", "up"])
        _run([*here, "ip", "addr", "add", f"{self.address(number)}/24", "dev", "eth0"])
        _run([*here, "ip", "link", "set", "eth0", "up"])

    def _in_switch(self, *command: str) -> None:
        _run([*_inside(self._holders[0]), *command])

    def _end(self) -> None:
        for holder in self._holders:
            with contextlib.suppress(OSError):
                holder.communicate()


def _held() -> "subprocess.Popen[bytes]":
    """A process in a new namespace."""
    holder = subprocess.Popen(
        _HOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C ends those first that run inside
    )
    assert holder.stdout is not None
    if not holder.stdout.readline():
        _, reason = holder.communicate()
        raise _refused(reason.decode(errors="replace"))
    return holder


def _inside(holder: "subprocess.Popen[bytes]") -> list[str]:
    return ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _refused(f"{' '.join(command[3:])}: {done.stderr}")


def _refused(reason: str) -> ClusterError:
    return ClusterError(
        f"a system that makes no network of namespaces ({' '.join(reason.split())[:300]})",
        "one where root has CAP_NET_ADMIN and CAP_SYS_ADMIN, and a kernel with veth, bridge and tbf",
        "Run it outside of the container, or leave out --bandwidth",
    )
