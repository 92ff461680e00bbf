"""Root tokens: two hosts know by a file whether their data roots are one disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from catalogzero.clock import SystemClock
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.reading.records import ReadOptions
from catalogzero.cloud.reading.root_tokens import (
    ROOT_FILE,
    make_token,
    read_token,
    root_of,
    root_with,
)
from catalogzero.cloud.reading.sources import Roots
from catalogzero.errors import BadParamsError, ConfigError
from catalogzero.testing import Serving, serving

from tests.cloud.processors import Plain
from tests.cloud.test_shared_store_needs import check
from tests.core.support import until
from tests.scheduler.conftest import postgresql as postgresql

KILLED_AT_ITS_FIRST_BYTE = """
import resource, signal, sys
from pathlib import Path
from catalogzero.cloud.reading.root_tokens import make_token

signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
make_token(Path(sys.argv[1]))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    (folder / "a.csv").write_text("n\n1\n")
    return folder


# --- the file


def narrow(root: Path) -> str:
    """What one host makes, as the service does: with a umask that shuts others out."""
    os.umask(0o077)
    return make_token(root)


def test_of_many_that_make_it_at_once_all_have_one_and_every_user_can_read_it(root: Path) -> None:
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        found = set(pool.map(narrow, [root] * 64))

    assert found == {read_token(root)}
    assert sorted(os.listdir(root)) == [ROOT_FILE, "a.csv"]
    assert (root / ROOT_FILE).stat().st_mode & 0o777 == 0o644


def test_a_host_that_is_killed_as_it_writes_leaves_none_and_the_next_one_makes_it(
    root: Path,
) -> None:
    command = [sys.executable, "-c", KILLED_AT_ITS_FIRST_BYTE, str(root)]
    done = subprocess.run(command, check=False, timeout=60)
    left = read_token(root)

    assert (done.returncode, left) == (-signal.SIGXFSZ, None)
    assert make_token(root) == read_token(root)


def test_one_that_is_there_stays(root: Path) -> None:
    (root / ROOT_FILE).write_text("made-by-hand\n")

    assert (make_token(root), read_token(root)) == ("made-by-hand", "made-by-hand")


@pytest.mark.parametrize("content", ["", "two words", "short", "x" * 5_000, "fifo", "link"])
def test_what_is_no_token_is_refused_with_the_command_that_makes_one(
    root: Path, content: str
) -> None:
    path = root / ROOT_FILE
    if content == "fifo":
        os.mkfifo(path)
    elif content == "link":
        path.symlink_to(root / "a.csv")
    else:
        path.write_text(content)

    command = f"`cat /proc/sys/kernel/random/uuid > {path} && chmod 644 {path}`"
    fix = {"link": "let it be no link", "fifo": "is no file: take it away"}.get(content, command)
    with pytest.raises(ConfigError) as raised:
        read_token(root)

    assert raised.value.message.startswith(f"{root}: {path} ")
    assert fix in raised.value.message


def test_where_it_cannot_be_made_the_command_for_another_host_is_named() -> None:
    with pytest.raises(
        ConfigError, match="make it by hand, on a host that may write there"
    ) as raised:
        make_token(Path("/proc/sys"))

    assert "> /proc/sys/.catalogzero-root`" not in raised.value.message
    assert "> /proc/sys/.catalogzero-root && chmod 644" in raised.value.message


def test_it_is_neither_read_as_data_nor_counted_among_what_is_left_out(root: Path) -> None:
    make_token(root)
    (root / "notes.pdf").write_text("")
    for data_source in (root, root / "*", root / "**" / "*"):
        files = Roots([root]).items(str(data_source), ReadOptions())
        assert [item.name for item in files] == ["exports/a.csv"]
        assert (len(files), files.left_out_names) == (1, ["notes.pdf"])
    with pytest.raises(BadParamsError):
        Roots([root]).items(str(root / ROOT_FILE), ReadOptions())


# --- the item of a run


def test_a_file_has_the_token_of_the_innermost_root_that_it_lies_in(tmp_path: Path) -> None:
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    tokens = {tmp_path / "link": "outer", tmp_path / "data" / "in": "inner"}

    assert root_of(f"{tmp_path}/data/a.csv", tokens) == "outer"
    assert root_of(f"{tmp_path}/data/in/a.csv", tokens) == "inner"
    assert root_of(f"{tmp_path}/data/inner.csv", tokens) == "outer"
    assert root_of(f"{tmp_path}/database/a.csv", tokens) is None


def test_an_item_of_another_disk_is_refused_also_once_that_disk_has_gone(
    tmp_path: Path, root: Path
) -> None:
    (tmp_path / "other").mkdir()
    roots = [tmp_path / "other", root]
    token = make_token(root)
    found = root_with(token, roots, "exports/a.csv")
    (root / ROOT_FILE).unlink()  # unmounted

    assert found == root
    with pytest.raises(BadParamsError, match=r"exports/a\.csv lies on a disk that is not mounted"):
        root_with(token, roots, "exports/a.csv")


# --- what instances agree on


def test_a_store_keeps_the_first_token_of_a_root_and_names_those_that_differ(
    tmp_path: Path,
) -> None:
    first, second = (Outbox(tmp_path, SystemClock()) for _ in range(2))
    given = [
        first.agree_on_roots({"a": ""}),
        first.agree_on_roots({"a": "one"}),
        second.agree_on_roots({"a": "one", "b": "two"}),
        second.agree_on_roots({"a": "other", "c": "three"}),
        first.agree_on_roots({"a": "", "b": "two"}),
        first.agree_on_roots({"c": "another"}),
    ]
    for one in (first, second):
        one.close()

    assert given == [{}, {}, {}, {"a": "one"}, {"a": "one"}, {}]


class Host:
    """A host of an instance; `disks` are the folders that may be mounted as its data root."""

    def __init__(self, folder: Path, state: str) -> None:
        self.folder, self.state = folder, state
        self.disks = [folder / name for name in ("disk", "other")]
        for disk in self.disks:
            disk.mkdir()
        self.mount(0)

    def mount(self, number: int) -> None:
        """Have one of the disks at the data root's path."""
        self.exports.unlink(missing_ok=True)
        self.exports.symlink_to(self.disks[number])

    @property
    def exports(self) -> Path:
        return self.folder / "exports"

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Serving]:
        """The handler, served."""
        roots = [self.exports]
        one = Plain(endpoint="http://127.0.0.1:9/v1", api_key="key", data_roots=roots)
        given: dict[str, Any] = {"state": self.state, "state_dir": self.folder / "state"}
        async with serving(one, handler_id="site", installation_id="i", **given) as served:
            yield served

    async def refusal(self) -> str:
        with pytest.raises(ConfigError) as raised:
            async with self.started():
                raise AssertionError("it was started")
        return raised.value.message


async def test_a_start_makes_the_token_and_another_disk_is_refused_and_gets_none(
    tmp_path: Path, postgresql: str
) -> None:
    host = Host(tmp_path, postgresql)
    async with host.started() as served:
        pong = await served.client.ping()
    token = read_token(host.disks[0])
    host.mount(1)
    empty = await host.refusal()
    left = os.listdir(host.disks[1])
    own = make_token(host.disks[1])
    other = await host.refusal()
    (host.disks[1] / ROOT_FILE).write_text(f"{token}\n")  # moved there for good, as it says
    async with host.started():
        pass

    assert pong["status"] == "ok"
    assert token is not None
    begin = f"data_roots[0] {host.exports} is another disk here than at the other instances"
    assert empty.startswith(f"{begin}: it has no {ROOT_FILE}, theirs says {token}")
    assert left == []
    assert other.startswith(f"{begin}: its {ROOT_FILE} says {own}, theirs says {token}")
    assert f"`echo {token} > {host.exports / ROOT_FILE}`" in other


async def test_without_a_shared_store_no_file_is_made(tmp_path: Path, root: Path) -> None:
    one = Plain(endpoint="http://127.0.0.1:9/v1", api_key="key", data_roots=[root])
    async with serving(one, handler_id="site") as served:
        await served.client.call("send_now", timeout_s=30)  # its worker is there
        await until(lambda: served.handler.worker.status)

    assert os.listdir(root) == ["a.csv"]


# --- check


def test_check_makes_none_and_says_what_a_start_will_do(tmp_path: Path) -> None:
    given = {"state": "postgresql://127.0.0.1:1/none", "installation_id": "i"}
    _, [before] = check(tmp_path, **given)
    made = make_token(tmp_path / "exports")
    _, [after] = check(tmp_path, **given)
    (tmp_path / "exports" / ROOT_FILE).write_text("no token")
    _, [broken] = check(tmp_path, **given)
    _, [cannot] = check(tmp_path, **given, config={"data_roots": ["/proc/sys"]})

    assert made
    assert before["status"] == after["status"] == "pass"
    assert f"{ROOT_FILE} is made at the first start in {tmp_path / 'exports'}" in before["found"]
    assert after["found"] == "1 data root has its token"
    assert broken["status"] == "fail"
    assert broken["found"].startswith(f"data_roots[0] {tmp_path / 'exports'}: ")
    assert "holds no token" in broken["found"]
    assert "data_roots[0]" in cannot["found"]
