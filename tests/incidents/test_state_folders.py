"""A state folder that is read-only, foreign, copied, damaged or of a newer release."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cloud.reference import ReferenceBackend
from tests.cloud.test_damage import pages_of, wipe
from tests.incidents.plant import NOBODY, CommandEnd, Plant, until
from tests.incidents.test_registry_files import UNPRIVILEGED

ROWS = [{"n": 1}, {"n": 2}]
NOWHERE = "http://127.0.0.1:9/v1"
OWNER = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""Before a command: run it as the user `nobody`, who may read where the interpreter lies."""

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: mounts, or another user's files")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of all state as a file system of its own."""
    folder = tmp_path / "state"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def commands(plant: Plant, *before: str, run: bool = True) -> dict[str, CommandEnd]:
    """How `run`, `check`, `outbox` and `status` end on the folder."""
    program = (*before, sys.executable, "-m", "catalogzero")
    asked = {
        **({"run": ("run", "site")} if run else {}),
        "check": ("check", "site", "--json"),
        "outbox": ("outbox", "list", "site"),
        "status": ("status", "--json"),
    }
    ends = await asyncio.gather(*(plant.shell(*program, *one) for one in asked.values()))
    assert not any("Traceback" in end.text for end in ends), ends
    return dict(zip(asked, ends, strict=True))


def finding(check: CommandEnd, name: str) -> tuple[str, str, str]:
    """The status, what is found and the fix of one check."""
    [one] = [one for one in check.json["findings"] if one["name"] == name]
    return one["status"], one["found"], one["fix"]


def trouble(status: CommandEnd, part: str) -> str:
    """The next command for the handler's trouble that has this in it."""
    found = [one for one in status.json["troubles"] if one["of"] == "site"]
    [one] = [one for one in found if part in one["what"]] or [found]
    return str(one["next"])


async def test_a_folder_on_a_read_only_disk_is_named_and_served_again_once_it_is_not(
    disk: Path, plant: Plant, backend: ReferenceBackend
) -> None:
    plant.write("a.csv", ROWS)
    await plant.start()
    await plant.run()
    await plant.stop()
    assert (await plant.shell("mount", "-o", "remount,ro", str(disk))).code == 0
    seen = await commands(plant)

    text = f"state folder {plant.state} cannot be written (Read-only file system): "
    assert (seen["run"].code, text in seen["run"].err) == (3, True)
    assert "set `state_dir`" in seen["run"].err
    status, found, fix = finding(seen["check"], "state folder")
    assert (seen["check"].code, status) == (1, "fail")
    assert found == f"{plant.state} is on a read-only file system"
    assert "mount it writable" in fix
    assert seen["outbox"].code == 0
    assert trouble(seen["status"], "is not running").startswith("catalogzero run site")

    assert (await plant.shell("mount", "-o", "remount,rw", str(disk))).code == 0
    plant.write("b.csv", [{"n": 3}])
    await plant.start()
    assert (await plant.run())["skipped"] == 1
    await plant.delivered(backend)


@as_root
async def test_a_folder_of_another_user_is_named_with_its_owner_who_can_go_on(
    plant: Plant, backend: ReferenceBackend
) -> None:
    plant.write("a.csv", ROWS)
    await plant.start()
    await plant.run()
    await plant.stop()
    for path in (plant.folder / "state", plant.state, *plant.state.iterdir(), plant.key_file):
        os.chown(path, NOBODY, NOBODY)
    before = sorted(plant.state.iterdir())
    seen = await commands(plant, *UNPRIVILEGED)

    for name in ("run", "outbox"):
        assert (seen[name].code, "sudo -u nobody" in seen[name].err) == (3, True), seen[name]
    assert finding(seen["check"], "state folder")[0] == "fail"
    assert "sudo -u nobody" in finding(seen["check"], "outbox")[2]
    assert seen["status"].code == 1
    assert "sudo -u nobody" in seen["status"].out
    assert sorted(plant.state.iterdir()) == before
    assert {path.stat().st_uid for path in plant.state.iterdir()} == {NOBODY}

    plant.write("b.csv", [{"n": 3}])
    await plant.start(before=OWNER)
    assert (await plant.run())["skipped"] == 1
    await plant.delivered(backend)
    assert {path.stat().st_uid for path in plant.state.iterdir()} == {NOBODY}


@pytest.mark.parametrize("verb", ["adopt", "new"])
async def test_a_copied_folder_is_paused_and_the_hint_decides_which_one_sends(
    plant: Plant, backend: ReferenceBackend, tmp_path: Path, verb: str
) -> None:
    if verb == "new":  # an id of the machine's own is made again, one of the file is not
        del plant.section["installation_id"]
        plant.write_registry()
    plant.write("a.csv", ROWS)
    await plant.start()
    await plant.run()
    await plant.stop()
    copy = tmp_path / "copy"
    shutil.copytree(plant.state, copy)
    plant.write("b.csv", [{"n": 3}])
    await plant.start()  # the machine goes on, and so does its clone
    await plant.run()
    await plant.stop()
    plant.state.rename(tmp_path / "first")
    copy.rename(plant.state)
    await plant.start()
    line = await plant.logged("sending is paused", level="error")
    refused = await plant.refused()
    checked, status, listed = await asyncio.gather(plant.check(), plant.status(), plant.outbox())
    report = await plant.health(backend)
    async with plant.conductor() as conductor:
        row = await conductor.site(where=lambda row: bool(row["troubles"]))

    hint = f"catalogzero installation {verb} site"
    assert hint in line["reason"]
    assert hint in refused.message
    assert hint in finding(checked, "outbox")[1]
    assert hint in listed.json["paused"]["reason"]
    assert trouble(status, "paused").startswith("catalogzero installation adopt site")
    assert (report["status"], report["outbox"]["paused"]) == ("failing", "installation_moved")
    [paused] = [one for one in row["troubles"] if one["cause"] == "paused"]
    assert hint in paused["why"]
    assert "catalogzero installation adopt" in paused["fix"]

    await plant.follow(hint + (" --yes" if verb == "new" else ""))
    if verb == "new":
        await plant.restart()
    await until(lambda: unpaused(plant), "sending goes on")
    assert (await plant.run())["status"] in ("uploaded", "unchanged")
    mine = plant.rows if verb == "adopt" else 2 * plant.rows  # of two installations then
    await plant.delivered(backend, mine)


async def is_reported(plant: Plant, backend: ReferenceBackend, words: str) -> bool:
    """Whether a health report that arrives now gives a reason with these words."""
    return any(words in reason for reason in (await plant.health(backend))["reasons"])


async def unpaused(plant: Plant) -> bool:
    """Whether the handler sends."""
    outbox = (await plant.metrics()).get("outbox")
    return outbox is not None and outbox["paused"] is None


async def waiting(plant: Plant, files: int) -> Path:
    """A stopped handler's outbox in which the rows of some files wait, all of it in one file."""
    plant.section["config"]["endpoint"] = NOWHERE
    plant.write_registry()
    for number in range(files):
        noise = [{"n": number, "text": os.urandom(300).hex()} for _ in range(50)]
        plant.write(f"{number}.csv", noise)
    await plant.start()
    assert (await plant.run())["status"] == "queued"
    await plant.stop()
    path = plant.state / "outbox.sqlite"
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


async def test_a_damaged_outbox_is_taken_over_and_what_was_lost_is_read_again(
    plant: Plant, backend: ReferenceBackend
) -> None:
    path = await waiting(plant, 3)
    leaves = pages_of(path, "uploads", "leaf")
    wipe(path, leaves[-1])
    stopped = await commands(plant, run=False)
    plant.section["config"]["endpoint"] = backend.url
    plant.write_registry()
    await plant.start()
    line = await plant.logged("the outbox was damaged", level="error")
    [quarantined] = plant.state.glob("outbox.damaged-*.sqlite")
    # A report of before, which waited in the file, may arrive first.
    await until(lambda: is_reported(plant, backend, quarantined.name), "the report names the file")
    status, found, fix = finding(await plant.check(), "outbox")

    assert finding(stopped["check"], "outbox")[0] == "fail"
    assert "takes over what can be read" in finding(stopped["check"], "outbox")[2]
    assert (stopped["outbox"].code, str(path) in stopped["outbox"].err) == (3, True)
    assert any(str(path) in one["what"] for one in stopped["status"].json["troubles"])
    assert quarantined.name in str(line)
    assert (status, quarantined.name in found + fix) == ("warn", True)

    await plant.run()
    quarantined.unlink()
    await plant.delivered(backend)
    assert (await plant.health(backend))["reasons"] == []


async def test_a_chunk_that_changed_on_the_disk_is_never_sent_and_read_again_by_the_hint(
    plant: Plant, backend: ReferenceBackend
) -> None:
    path = await waiting(plant, 2)
    with closing(sqlite3.connect(path)) as file, file:
        [(number, body)] = file.execute("SELECT number, body FROM chunks LIMIT 1").fetchall()
        changed = bytes([body[0] ^ 1]) + body[1:]
        file.execute("UPDATE chunks SET body = ? WHERE number = ?", (changed, number))
    plant.section["config"]["endpoint"] = backend.url
    plant.write_registry()
    await plant.start()
    line = await plant.logged("upload damaged", level="error")
    report, status = await plant.health(backend), await plant.status()
    listed = await plant.follow(trouble(status, "refused"))

    assert "its checksum differs" in line["reason"]
    assert report["status"] == "failing"
    assert report["outbox"]["dead"] == 1
    purge = f"catalogzero outbox purge site {line['upload_id']}"
    assert purge in " ".join(listed.out.split())
    assert purge in line["reason"]
    await plant.follow(f"{purge} --yes")
    await plant.run()
    await plant.delivered(backend)
    assert (await plant.status()).code == 0


async def test_a_downgrade_touches_nothing_and_the_newer_release_goes_on(
    plant: Plant, backend: ReferenceBackend
) -> None:
    path = await waiting(plant, 2)
    with closing(sqlite3.connect(path)) as file:
        [(version,)] = file.execute("PRAGMA user_version").fetchall()
        file.execute(f"PRAGMA user_version = {version + 1}")
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.read_bytes()
    seen = await commands(plant)

    text = f"{path} was written by a newer release (schema {version + 1}"
    assert (seen["run"].code, text in seen["run"].err) == (3, True), seen["run"].err
    assert "install that release again" in seen["run"].err
    assert finding(seen["check"], "outbox")[0] == "fail"
    assert text in finding(seen["check"], "outbox")[1]
    assert (seen["outbox"].code, text in seen["outbox"].err) == (3, True)
    assert trouble(seen["status"], text).startswith("catalogzero check site")
    assert path.read_bytes() == before

    with closing(sqlite3.connect(path)) as file:  # the release that knows this schema is back
        file.execute(f"PRAGMA user_version = {version}")
    plant.section["config"]["endpoint"] = backend.url
    plant.write_registry()
    await plant.start()
    await plant.delivered(backend)
