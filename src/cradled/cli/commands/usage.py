"""Async. ``cradle top`` and ``cradle stats``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cradled.cli import output
from cradled.cli.app import App, Command
from cradled.client import Client
from cradled.core.usage import Usage

_SECONDS = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"
_TOP = {"pid": "PID", "ppid": "PPID", "time": "TIME", "exec": "EXEC", "command": "COMMAND"}
_STATS = ("NAME", "CPU %", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")


@click.command("top", cls=Command)
@click.argument("name")
@click.pass_obj
def top(app: App, name: str) -> None:
    """List the processes of container NAME, numbered as on the host.

    Those that `cradle exec` started are told by the id of their exec.
    """

    async def main(client: Client) -> list[tuple[int, str]]:
        task = await (await client.containers.get(name)).task()
        return await task.processes()

    found = [{**_process(pid), "exec": exec_id} for pid, exec_id in app.run(main)]
    output.print_results(found, _TOP, as_json=app.json)


def _process(pid: int) -> dict[str, Any]:
    """What the kernel tells of a process; little if it is gone, or not of our pid namespace."""
    told = {"pid": pid, "ppid": 0, "time": 0.0, "command": ""}
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return told
    name, _, rest = stat.partition(" (")[2].rpartition(") ")
    fields = rest.split()
    told["ppid"] = int(fields[1])
    told["time"] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    told["command"] = line.replace(b"\0", b" ").decode(errors="replace").strip() or f"[{name}]"
    return told


@click.command("stats", cls=Command)
@click.option("--no-stream", is_flag=True, help="Only once.")
@click.argument("names", nargs=-1)
@click.pass_obj
def stats(app: App, names: Sequence[str], no_stream: bool) -> None:
    """Show what running containers use: all of them, or those named NAMES.

    Every second, until interrupted. As JSON it is a line for each second, an array of containers.
    """

    async def main(client: Client) -> None:
        for name in names:
            await _check(client, name)
        before = await client.containers.usage(*names)
        while True:
            await asyncio.sleep(_SECONDS)
            now = await client.containers.usage(*names)
            _show(
                app, [_told(name, now[name], before.get(name)) for name in sorted(now)], no_stream
            )
            before = now
            if no_stream or (names and not now):
                return

    app.run(main)


async def _check(client: Client, name: str) -> None:
    """Raises NotFound for a container that is not there, or has no task."""
    await (await client.containers.get(name)).task()


def _told(name: str, usage: Usage, before: Usage | None) -> dict[str, Any]:
    share = 0.0
    if before is not None and usage.time > before.time:
        share = max(usage.cpu - before.cpu, 0) / (usage.time - before.time)
    return {
        "name": name,
        "cpu_percent": round(share * 100, 2),
        "memory": usage.memory,
        "memory_limit": usage.memory_limit or None,
        "pids": usage.pids,
        "pids_limit": usage.pids_limit or None,
        "read": usage.read,
        "written": usage.written,
    }


def _show(app: App, told: Sequence[Mapping[str, Any]], once: bool) -> None:
    if app.json and once:
        output.print_json(told)
        return
    if app.json:
        print(json.dumps(told), flush=True)
        return
    if sys.stdout.isatty() and not once:
        print(_HOME_AND_CLEAR, end="")
    output.print_rows(_STATS, [_row(one) for one in told])
    sys.stdout.flush()


def _row(told: Mapping[str, Any]) -> Sequence[str]:
    limit = told["memory_limit"]
    return (
        told["name"],
        f"{told['cpu_percent']:.2f}",
        output.size(told["memory"]),
        output.size(limit) if limit else "-",
        str(told["pids"]),
        output.size(told["read"]),
        output.size(told["written"]),
    )


COMMANDS = {"top": top, "stats": stats}
