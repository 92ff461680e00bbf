"""Two hosts as network namespaces, each on a cable to a bridge of this machine.

What runs in a host is a process of this machine with another network: it reaches the bridge's
address, and nothing else. A cable can be pulled, or be a slow one.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

HOSTS = ("a", "b")
TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TAP_NO_PI = 0x0002 | 0x1000
FRAME_BYTES = 1 << 16
NEEDED = ("ip", "nsenter")

_numbers = count()


class NoLanError(Exception):
    """Why there can be no such hosts here."""


@dataclass(frozen=True)
class Host:
    """One host: its network namespace, the bridge's end of its cable, and its IP address."""

    namespace: str
    cable: str
    address: str

    @property
    def within(self) -> tuple[str, ...]:
        """What runs a command there."""
        return ("nsenter", f"--net=/run/netns/{self.namespace}")

    def cut(self) -> None:
        """Pull its cable: what runs there goes on, and is not heard."""
        command("ip", "link", "set", self.cable, "down")

    def heal(self) -> None:
        """Put the cable back."""
        command("ip", "link", "set", self.cable, "up")

    def kill(self) -> None:
        """kill -9 of all that runs there."""
        for pid in command("ip", "netns", "pids", self.namespace).split():
            os.kill(int(pid), signal.SIGKILL)


@dataclass(frozen=True)
class Lan:
    """The bridge, with this machine's own address there, and the hosts by name."""

    address: str
    hosts: dict[str, Host]


@contextmanager
def two_hosts(delay_s: float = 0.0) -> Iterator[Lan]:
    """A bridge with two hosts, whose names are this process's own; removed at the end.

    Args:
        delay_s: How long each packet is under way, there and back.

    Raises:
        NoLanError: This machine, or this user, cannot have them.
    """
    own = f"cz{os.getpid():x}{next(_numbers):x}"
    # Of the range that is kept for tests of networks (RFC 2544).
    net = f"198.{18 + os.getpid() // 256 % 2}.{os.getpid() % 256}"
    with ExitStack() as undo:
        check_possible(own, slow=delay_s > 0)
        command("ip", "link", "add", own, "type", "bridge")
        undo.callback(command, "ip", "link", "del", own)
        command("ip", "addr", "add", f"{net}.1/24", "dev", own)
        command("ip", "link", "set", own, "up")
        hosts = {}
        for number, name in enumerate(HOSTS, 2):
            host = hosts[name] = Host(own + name, own + name, f"{net}.{number}")
            command("ip", "netns", "add", host.namespace)
            undo.callback(command, "ip", "netns", "del", host.namespace)
            undo.enter_context(slow_cable(host, delay_s) if delay_s else cable(host))
            command("ip", "link", "set", host.cable, "master", own, "up")
            inside = ("ip", "-n", host.namespace)
            command(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
            command(*inside, "link", "set", "eth0", "up")
            command(*inside, "link", "set", "lo", "up")
        yield Lan(f"{net}.1", hosts)


def check_possible(name: str, *, slow: bool) -> None:
    """Whether this machine and this user can have such hosts.

    Raises:
        NoLanError: They cannot.
    """
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        raise NoLanError(f"there is no {missing[0]}")
    if slow and not os.access(TUN, os.R_OK | os.W_OK):
        raise NoLanError(f"{TUN} is not there for this user")
    try:
        command("ip", "netns", "add", name)
        command("ip", "netns", "del", name)
        command("ip", "link", "add", name, "type", "bridge")
        command("ip", "link", "del", name)
    except RuntimeError as error:
        raise NoLanError(str(error)) from None


@contextmanager
def cable(host: Host) -> Iterator[None]:
    """A cable from the bridge to `eth0` of a host."""
    other_end = ("peer", "name", "eth0", "netns", host.namespace)
    command("ip", "link", "add", host.cable, "type", "veth", *other_end)
    try:
        yield
    finally:
        command("ip", "link", "del", host.cable)


@contextmanager
def slow_cable(host: Host, delay_s: float) -> Iterator[None]:
    """The same, whose frames a thread passes on after a while: netem is not in every kernel."""
    far = f"{host.cable}x"
    with ExitStack() as undo:
        ends = tap(host.cable), tap(far)
        undo.callback(os.close, ends[0])
        undo.callback(os.close, ends[1])
        command("ip", "link", "set", far, "netns", host.namespace, "name", "eth0")
        stopped, stop = os.pipe()
        undo.callback(os.close, stopped)
        carrier = threading.Thread(target=carry, args=(ends, delay_s, stopped))
        undo.callback(carrier.join)
        undo.callback(os.close, stop)
        carrier.start()
        yield


def tap(name: str) -> int:
    """A network device whose frames are read and written here; it goes with its descriptor."""
    device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TAP_NO_PI))
    return device


def carry(ends: tuple[int, int], delay_s: float, stopped: int) -> None:
    """Pass each frame on to the other end after a while, until a pipe is closed."""
    under_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([*ends, stopped], [], [], wait_s)
        if stopped in ready:
            return
        now_s = time.monotonic()
        for end in ready:
            frame = os.read(end, FRAME_BYTES)
            under_way.append((now_s + delay_s, ends[end == ends[0]], frame))
        while under_way and under_way[0][0] <= now_s:
            _, end, frame = under_way.popleft()
            with suppress(OSError):  # a device that is down loses it, as a wire would
                os.write(end, frame)


def command(*words: str) -> str:
    """What a command of the system says.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(words)}`: {done.stderr.strip()}")
    return done.stdout
