"""Async. ``cradle events``, ``version`` and ``daemon``."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cradled import version as ours
from cradled.cli import moments, ondemand, output
from cradled.cli.app import App, Command
from cradled.cli.failures import Failure
from cradled.errors import Unimplemented

if TYPE_CHECKING:
    from cradled.client import Client
    from cradled.client.events import Event


@click.command("events", cls=Command)
@click.argument("filters", nargs=-1)
@click.option(
    "--since",
    metavar="POSITION|TIME",
    help="Show first what happened after an event (its position, from --json), for so long (10m), "
    "or since a time (2026-01-31T08:00:00Z).",
)
@click.pass_obj
def events(app: App, filters: Sequence[str], since: str | None) -> None:
    """Show what happens from now on, a line for each event.

    FILTERS are like `topic~=/tasks/` or `namespace==default`; one that matches is enough.
    """

    begin = None if since is None else moments.parse(since)

    async def main(client: Client) -> None:
        if begin is None and app.json:
            with suppress(Unimplemented):  # no journal: no positions
                await _show(app, client.events(*filters, since=timedelta()))
        await _show(app, client.events(*filters, since=begin))

    app.run(main)


async def _show(app: App, events: AsyncIterator[Event]) -> None:
    import json

    async for event in events:
        fields = event.fields
        if app.json:
            told = {"position": event.position} if event.position else {}
            told |= {"time": output.instant(event.time), "namespace": event.namespace}
            line = json.dumps({**told, "topic": event.topic, "event": fields})
        else:
            shown = json.dumps(fields)
            line = f"{output.instant(event.time)}\t{event.namespace}\t{event.topic}\t{shown}"
        print(line, flush=True)


@click.command("version", cls=Command)
@click.pass_obj
def version(app: App) -> None:
    """Show the versions of client and server."""
    told = {"client": ours.VERSION, "server": _server_version(app)}
    if app.json:
        output.print_json(told)
        return
    for part, number in told.items():
        print(f"{part}\t{number or '(no daemon is running)'}")


def _server_version(app: App) -> str:
    """Empty when no daemon is running."""
    return _running(app)[1]


def _running(app: App) -> tuple[str, str]:
    """Address and version of the daemon; both empty when none is running: none is started."""
    from cradled.client.query import server_version

    candidates = [app.address] if app.address else ondemand.addresses(ondemand.home())
    for address in candidates:
        if found := server_version(address):
            return address, found
    return "", ""


@click.command(
    "daemon",
    cls=click.Command,
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def daemon(app: App, flags: Sequence[str]) -> None:
    """Run a daemon in the foreground: `cradled` with FLAGS.

    Without any it is the one that other commands start when they need it.

    `daemon upgrade` has the running daemon replaced by the program as it is installed now.
    Containers, sockets and what waits in them go over to it; if it does not start, the old one goes
    on.
    """
    if list(flags) == ["upgrade"]:
        _upgrade(app)
        return
    chosen = list(flags) or ondemand.flags(ondemand.home())
    os.execv(sys.executable, [sys.executable, "-I", "-m", "cradled.daemon", *chosen])


def _upgrade(app: App) -> None:
    app.address = app.address or _running(app)[0]
    if not app.address:
        raise Failure("no daemon is running", "the new version will be, when it is started")

    async def main(client: Client) -> None:
        done = await client.upgrade()
        if app.json:
            told = {"old": done.old_version, "new": done.new_version, "pid": done.pid}
            output.print_json({**told, "pause_ms": round(done.pause * 1000, 1)})
            return
        print(f"upgraded\t{done.old_version} to {done.new_version}")
        print(f"process\t{done.pid}")
        print(f"pause\t{done.pause * 1000:.0f} ms")

    app.run(main)


COMMANDS = {"events": events, "version": version, "daemon": daemon}
