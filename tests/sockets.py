"""What the kernel tells of this machine's processes, their TCP sockets above all: Linux only."""

import ipaddress
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED, LISTENING = "01", "0A"


@dataclass(frozen=True)
class Socket:
    """A TCP socket of a process.

    Args:
        address: Its own.
        port: Its own.
        remote_port: Port of the other side.
        state: As the kernel writes it.
    """

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    remote_port: int
    state: str


def sockets(pids: Iterable[int]) -> list[Socket]:
    """The TCP sockets of processes."""
    inodes = set().union(*map(_inodes, pids))
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            _, local, remote, state, *rest = line.split()
            if rest[5] in inodes:
                address, port = local.split(":")
                remote_port = int(remote.split(":")[1], 16)
                found.append(Socket(_address(address), int(port, 16), remote_port, state))
    return found


def _address(digits: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel writes it: groups of 32 bits, each in the order of the machine."""
    groups = (bytes.fromhex(digits[start : start + 8]) for start in range(0, len(digits), 8))
    found = ipaddress.ip_address(
        b"".join(group[::-1] if sys.byteorder == "little" else group for group in groups)
    )
    return getattr(found, "ipv4_mapped", None) or found


def _inodes(pid: int) -> set[str]:
    """The inodes of a process' sockets; none if it has ended."""
    found = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass
    return found


def command_line(pid: int) -> bytes:
    """Of a process; empty if it has ended."""
    return _of_process(pid, "cmdline")


def environment_of(pid: int) -> bytes:
    """Of a process; empty if it has ended."""
    return _of_process(pid, "environ")


def _of_process(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
