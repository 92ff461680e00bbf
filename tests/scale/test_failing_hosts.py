"""Instances on two hosts while network, hosts, NATS server and database fail.

Whatever fails: no run that ended is recorded as lost, and none that may not run twice does.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from tests.scale.conftest import Site
from tests.scale.lan import Host, command
from tests.scheduler.processes import SchedulerProcess, cut_connections, until

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.postgresql,
    pytest.mark.xdist_group("scale"),
]

DELAY_S = 0.2
SHORT = ("short-0", "short-1", "short-2", "short-3")
HELD = ("held-0", "held-1", "held-2", "held-3")
OPEN = {"running", "retry"}
CONNECTS = """
import socket, sys, time
began_s = time.monotonic()
socket.create_connection((sys.argv[1], int(sys.argv[2])), 9).close()
print(time.monotonic() - began_s)
"""


@pytest.fixture
def hosts(site: Site) -> tuple[Host, Host]:
    """The two hosts, with an instance on each: `a1` and `b1`."""
    a, b = site.lan.hosts["a"], site.lan.hosts["b"]
    site.start(a, "a1")
    site.start(b, "b1")
    return a, b


def begin_on_both(site: Site) -> None:
    """Have runs in progress on both: some that end by themselves, and some that are held."""
    site.begin("note", *SHORT, seconds=4)
    site.begin("hold", *HELD)
    until(lambda: site.all_noted("began") == sorted(HELD + SHORT))
    for name in site.names:
        assert set(site.noted(name, "began")) & set(SHORT)
        assert set(site.noted(name, "began")) & set(HELD)


@pytest.mark.parametrize("for_s", [8.0, pytest.param(45.0, marks=pytest.mark.slow)])
def test_a_host_that_is_cut_off_for_a_while_loses_nothing_and_runs_nothing_twice(
    site: Site, hosts: tuple[Host, Host], for_s: float
) -> None:
    """For a longer while the connections end as well, and are made again."""
    begin_on_both(site)
    cut_off = site.noted("a1", "began")
    hosts[0].cut()
    heals_s = time.monotonic() + for_s
    until(lambda: not site.sees("a1"))
    site.let_go("b1")
    site.begin("note", "later-0", "later-1")
    until(lambda: site.all_noted("ended").count("later-0") == 1)
    until(lambda: set(SHORT) <= set(site.all_noted("ended")))
    until(lambda: time.monotonic() >= heals_s, for_s + 30)
    during = site.results()
    hosts[0].heal()
    site.let_go("a1")
    site.wait_for("success")

    assert {during[text] for text in cut_off} <= OPEN
    assert "later-0" in site.noted("b1", "began")
    assert site.all_noted("began") == site.all_noted("ended") == sorted(site.executions)


@pytest.mark.parametrize("lan", [DELAY_S], indirect=True)
def test_over_slow_links_all_runs_end_and_each_ran_once(
    site: Site, hosts: tuple[Host, Host]
) -> None:
    port = site.scheduler.zmq_address.rpartition(":")[2]
    connects = (sys.executable, "-c", CONNECTS, site.lan.address, port)
    takes_s = [float(command(*host.within, *connects)) for host in hosts]
    for number in range(10):
        site.begin("note", f"once-{number}", seconds=0.2)
        site.begin("again", f"safe-{number}", seconds=0.2)
    site.wait_for("success")

    assert site.all_noted("began") == site.all_noted("ended") == sorted(site.executions)
    assert all(site.noted(name, "began") for name in site.names)
    assert min(takes_s) >= 2 * DELAY_S


@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "without power"])
def test_of_a_host_that_is_gone_what_may_run_twice_ends_elsewhere_and_the_rest_waits(
    site: Site, loses_power: bool
) -> None:
    """Without power nobody hears of its end: its cable goes first."""
    a, b = site.lan.hosts["a"], site.lan.hosts["b"]
    site.start(a, "a1")
    site.start(a, "a2")
    site.begin("hold", "once-0", "once-1")
    until(lambda: len(site.all_noted("began")) == 2)
    site.begin("hold_again", "safe-0", "safe-1")
    until(lambda: len(site.all_noted("began")) == 4)
    once = {name: set(site.noted(name, "began")) & {"once-0", "once-1"} for name in site.names}
    site.start(b, "b1")
    site.let_go("b1")
    if loses_power:
        a.cut()
    a.kill()
    site.wait_for("success", "safe-0", "safe-1")
    waits = site.results()
    if loses_power:
        a.heal()
    site.start(a, "a1")
    site.wait_for("lost", *once["a1"])
    between = site.results()
    site.start(a, "a2")
    site.wait_for("lost", *once["a2"])

    assert all(len(texts) == 1 for texts in once.values())
    assert {waits["once-0"], waits["once-1"]} == {"retry"}
    assert {between[text] for text in once["a2"]} == {"retry"}
    assert site.noted("b1", "ended") == ["safe-0", "safe-1"]
    assert Counter(site.all_noted("began")) == {"once-0": 1, "once-1": 1, "safe-0": 2, "safe-1": 2}


@pytest.mark.parametrize("site", ["nats"], indirect=True)
def test_a_nats_server_that_is_killed_and_started_again_costs_no_run(
    site: Site, hosts: tuple[Host, Host]
) -> None:
    begin_on_both(site)
    site.nats.close()
    until(lambda: not (site.sees("a1") or site.sees("b1")))
    site.begin("note", "later-0", "later-1")
    until(lambda: set(SHORT) <= set(site.all_noted("ended")))
    for name in site.names:
        site.let_go(name)
    until(lambda: set(HELD) <= set(site.all_noted("ended")))
    during = site.results()
    site.start_nats()
    site.wait_for("success")

    assert set(during.values()) <= OPEN
    assert site.all_noted("began") == site.all_noted("ended") == sorted(site.executions)


def test_connections_of_the_database_that_are_cut_cost_no_run(
    site: Site, hosts: tuple[Host, Host]
) -> None:
    """They are cut again and again while the runs go on: amid transactions too."""
    with ExitStack() as undo:
        undo.enter_context(SchedulerProcess(site.database))
        for number in range(5):
            until(lambda: site.api.get("/api/handlers").status_code == 200)
            site.begin("note", f"once-{number}", f"more-{number}", seconds=0.5)
            site.begin("again", f"safe-{number}", f"other-{number}", seconds=0.5)
            until(lambda: cuts_until_ended(site), 60)
        site.wait_for("success")

    assert site.all_noted("began") == site.all_noted("ended") == sorted(site.executions)


def cuts_until_ended(site: Site) -> bool:
    """Cut every connection; whether all runs have ended."""
    cut_connections(site.database)
    return site.all_noted("ended") == sorted(site.executions)
