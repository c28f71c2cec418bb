"""Async. ``cradle df``, ``prune``, ``fsck`` and ``backup``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cradled.cli import ondemand, output
from cradled.cli.app import App, Command
from cradled.cli.failures import Failure
from cradled.client import Client, connect
from cradled.client.storage import DiskUsage, Unneeded, prune, unneeded, usage
from cradled.errors import Error

_KINDS = {
    "image": "images", "container": "containers", "content": "content", "snapshot": "snapshots",
    "ingest": "uploads",
}  # fmt: skip
_TOTALS = ("TYPE", "COUNT", "SIZE", "RECLAIMABLE")
_ITEMS = ("NAMESPACE", "TYPE", "NAME", "SIZE", "USED")
_SNAPSHOTTER = "io.containerd.snapshotter.v1"
_STATE = ("io.containerd.runtime.v2", "task", "state")
_CONTENT = ("io.containerd.content.v1", "content", "root")
_ASK_SECONDS = 5.0


@click.command("df", cls=Command)
@click.option("-v", "--verbose", is_flag=True, help="Show each thing.")
@click.pass_obj
def df(app: App, verbose: bool) -> None:
    """Show what images, containers and all else take on disk, in all namespaces.

    RECLAIMABLE is what `cradle prune` would free. Content and snapshots are what images and
    containers consist of, so the lines do not add up.
    """

    async def main(client: Client) -> list[DiskUsage]:
        names = await _snapshotters(client)
        spaces = [name for name, _ in await client.namespaces.list()]
        return [await usage(client.within(space).session, names) for space in spaces]

    found = app.run(main)
    if app.json:
        output.print_json([_told(one) for one in found])
    elif verbose:
        rows = [(one.namespace, item) for one in found for item in one.items]
        output.print_rows(_ITEMS, [
            (space, i.kind, i.name, output.size(i.size), "yes" if i.used else "no")
            for space, i in rows
        ])  # fmt: skip
    else:
        output.print_rows(_TOTALS, [_total(kind, found) for kind in _KINDS])


def _told(one: DiskUsage) -> dict[str, Any]:
    totals = {
        _KINDS[kind]: {"count": count, "size": size, "reclaimable": reclaimable}
        for kind, (count, size, reclaimable) in one.totals().items()
    }
    items = [
        {"type": item.kind, "name": item.name, "size": item.size, "used": item.used}
        for item in one.items
    ]
    return {"namespace": one.namespace, "totals": totals, "items": items}


def _total(kind: str, found: Sequence[DiskUsage]) -> Sequence[str]:
    """Over all namespaces; what several have counts once, and is used if one of them uses it."""
    items: dict[tuple[str, str], tuple[int, bool]] = {}
    for one in found:
        for item in one.items:
            if item.kind == kind:
                space = "" if kind == "content" else one.namespace
                _, used = items.get((space, item.name), (0, False))
                items[space, item.name] = item.size, used or item.used
    size = sum(size for size, _ in items.values())
    unused = sum(size for size, used in items.values() if not used)
    return _KINDS[kind], str(len(items)), output.size(size), output.size(unused)


async def _snapshotters(client: Client) -> list[str]:
    plugins = await client.plugins()
    return [one.id for one in plugins if one.type == _SNAPSHOTTER and not one.error]


@click.command("prune", cls=Command)
@click.option("--containers", is_flag=True, help="Remove containers that have exited, too.")
@click.option(
    "--recovered", is_flag=True, help="Let go of what is kept because metadata was rebuilt."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_obj
def prune_command(app: App, containers: bool, recovered: bool, dry_run: bool, force: bool) -> int:
    """Remove images that no container was made of, and uploads that were broken off.

    In this namespace. Ends with a collection, so that the space is free when it returns.
    """
    if not (dry_run or force or sys.stdin.isatty()):
        raise Failure("there is nobody to ask whether to remove things", "use --force", 2)

    async def main(client: Client) -> tuple[Unneeded, list[str]]:
        session = client.session
        what = await unneeded(session, containers=containers, recovered=recovered)
        if dry_run or not what:
            return what, []
        if not force:
            _print_unneeded(what, "would be removed")
            if not click.confirm("Remove them?"):
                raise click.Abort
        return what, await prune(session, what)

    what, failures = app.run(main)
    if app.json:
        output.print_json({**_listed(what), "removed": not dry_run, "failed": failures})
    elif what and (dry_run or force):
        _print_unneeded(what, "would be removed" if dry_run else "removed")
    for failure in failures:
        print(f"cradle: {failure}", file=sys.stderr)
    return int(bool(failures))


def _listed(what: Unneeded) -> dict[str, list[str]]:
    return {
        "images": [image.name for image in what.images],
        "containers": [container.id for container in what.containers],
        "uploads": list(what.ingests),
        "leases": list(what.leases),
    }


def _print_unneeded(what: Unneeded, verb: str) -> None:
    for kind, names in _listed(what).items():
        for name in names:
            print(f"{kind.removesuffix('s')}\t{name}\t{verb}")


@click.command("fsck", cls=Command)
@click.option("--root", metavar="DIR", default="", help="What the daemon keeps.")
@click.option("--state", metavar="DIR", default="", help="What it keeps until a reboot.")
@click.option("--config", metavar="FILE", default="", help="The daemon's configuration file.")
@click.option("--verify", is_flag=True, help="Read all blobs and compare their digests.")
@click.option("--repair", is_flag=True, help="Repair what can be. Nothing is ever removed.")
@click.option("--explain", is_flag=True, help="Tell what every file is, and who holds it.")
@click.argument("subject", metavar="[PATH|ID]", required=False, default="")
@click.pass_obj
def fsck(
    app: App, /, subject: str, verify: bool, repair: bool, explain: bool, **place: str
) -> None:
    """Check all that a daemon keeps: metadata, blobs, snapshots, uploads, tasks, leftovers.

    Works beside a running daemon and without one; repairing takes that none is running (containers
    may). With --explain only tells about [PATH|ID], if it is given. Exits with 1 if something is
    wrong, with 2 if it cannot be told.
    """
    if subject and not explain:
        raise click.UsageError("a PATH or ID is for --explain")
    words = [f"--{name}" for name, on in (("verify", verify), ("repair", repair)) if on]
    words += ["--json"] if app.json else []
    words += ["--explain", *([subject] if subject else [])] if explain else []
    _execute(app, place, "fsck", *words)


@click.command("backup", cls=Command)
@click.option("--root", metavar="DIR", default="", help="What the daemon keeps.")
@click.option("--state", metavar="DIR", default="", help="What it keeps until a reboot.")
@click.option("--config", metavar="FILE", default="", help="The daemon's configuration file.")
@click.argument("file")
@click.pass_obj
def backup(app: App, /, file: str, **place: str) -> None:
    """Copy the metadata into FILE, also while the daemon is at work.

    Without blobs and file systems. `cradled restore FILE` puts it back.
    """
    _execute(app, place, "backup", os.path.abspath(file))


def _execute(app: App, place: dict[str, str], *words: str) -> None:
    """Become ``cradled``, at the place that is meant."""
    flags = [text for name in ("config", "root", "state") if place[name]
             for text in (f"--{name}", place[name])]  # fmt: skip
    if not flags:
        flags = asyncio.run(_place_flags(app))
    os.execv(sys.executable, [sys.executable, "-I", "-m", "cradled.daemon", *flags, *words])


async def _place_flags(app: App) -> list[str]:
    """What makes ``cradled`` find the daemon that other commands would talk to; none is started."""
    home = ondemand.home()
    own = ["--root", str(home / "root"), "--state", str(home / "state")]
    for address in [app.address] if app.address else ondemand.addresses(home):
        with suppress(Error, OSError, TimeoutError):
            async with asyncio.timeout(_ASK_SECONDS), connect(address) as client:
                return _flags(await client.plugins())
    if app.address and Path(app.address.removeprefix("unix://")) != Path(ondemand.address(home)):
        raise Failure("no daemon answers there", "name its --root and --state", 2)
    return own if home.exists() else []


def _flags(plugins: Sequence[Any]) -> list[str]:
    exports = {(p.type, p.id, key): value for p in plugins for key, value in p.exports.items()}
    if _STATE not in exports or _CONTENT not in exports:
        raise Failure("the daemon does not tell where it keeps things", "name its --root", 2)
    return ["--root", os.path.dirname(exports[_CONTENT]), "--state", exports[_STATE]]


COMMANDS = {"df": df, "prune": prune_command, "fsck": fsck, "backup": backup}
