"""Blocking. ``cradle doctor``: whether this host can run containers, and what stands in the way."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from cradled.cli import ondemand, output
from cradled.cli.app import App, Command
from cradled.cli.doctor import cgroups, daemon, kernel, places, programs
from cradled.cli.doctor.daemon import Place
from cradled.cli.doctor.finding import FAIL, OK, WARN, Finding
from cradled.version import VERSION

_COLOURS = {OK: "32", WARN: "33", FAIL: "31"}


@click.command("doctor", cls=Command)
@click.option("--config", metavar="FILE", default="", help="The daemon's configuration file.")
@click.pass_obj
def doctor(app: App, config: str) -> int:
    """Check kernel, cgroups, runtimes, configuration and daemon of this host.

    Works without a daemon and starts none. The report has no secrets: paste it where you ask for
    help. Exits with 1 if something is found that keeps containers from running.
    """
    found = list(_examine(app, config))
    if app.json:
        output.print_json([one._asdict() for one in found])
    else:
        _print(found)
    return int(any(one.status == FAIL for one in found))


def _examine(app: App, config: str) -> Iterator[Finding]:
    yield Finding("cradle", "version", OK, f"{VERSION}, Python {platform.python_version()}")
    yield from kernel.findings()
    yield from cgroups.findings()
    configured, about_config = daemon.configuration(config)
    yield from programs.findings(configured.binary_name if configured else "")
    yield from about_config
    for place in _places(app, configured):
        yield from daemon.sockets(place.address)
        if place.root:
            running = daemon.is_served(place.address)
            yield from places.findings(place.root, place.state, running=running)
    yield from places.registries()
    yield daemon.clock()


def _places(app: App, configured: Place | None) -> Iterator[Place]:
    """Of the system's daemon, and of this user's own where there is one."""
    home = ondemand.home()
    own = Place(ondemand.address(home), str(home / "root"), str(home / "state"))
    if app.address:
        address = str(Path(app.address.removeprefix("unix://")).absolute())
        unknown = Place(address, "", "")
        yield own if address == own.address else (configured or unknown)._replace(address=address)
        return
    if configured is not None:
        yield configured
    if home.exists():
        yield own


def _print(found: Sequence[Finding]) -> None:
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    area = ""
    for one in found:
        if one.area != area:
            area = one.area
            print(area)
        status = one.status.ljust(4)
        if coloured:
            status = f"\x1b[{_COLOURS[one.status]}m{status}\x1b[0m"
        print(f"  {status}  {one.name}: {one.text}")
        if one.advice and one.status != OK:
            print(f"        -> {one.advice}")
    failures = sum(one.status == FAIL for one in found)
    warnings = sum(one.status == WARN for one in found)
    print(f"{failures} failed, {warnings} warned, {len(found) - failures - warnings} ok")


COMMANDS = {"doctor": doctor}
