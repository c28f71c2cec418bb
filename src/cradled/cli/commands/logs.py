"""Async. ``cradle logs``: the files that shims write for containers nobody watches."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import click

from cradled.cli import ondemand
from cradled.cli.app import App, Command
from cradled.cli.failures import Failure
from cradled.cli.output import print_json
from cradled.client import Client, Container, growth
from cradled.core.restart import Verdict, judge
from cradled.errors import InvalidArgument, NotFound

LOG_LABEL = "cradle/log"
"""Label of a container: the file its output goes to."""

_CHUNK = 1 << 16
_BETWEEN_LIVES = 0.05  # seconds


def log_path(namespace: str, name: str) -> Path:
    """Where a container's output goes."""
    return ondemand.home() / "logs" / namespace / f"{name}.log"


def remove_log(container: Container) -> None:
    """The file goes with its container."""
    path = container.record.labels.get(LOG_LABEL)
    if path:
        with suppress(FileNotFoundError):
            os.unlink(path)


@click.command("logs", cls=Command)
@click.option("-f", "--follow", is_flag=True, help="Go on until it exits.")
@click.option("-n", "--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.argument("name")
@click.pass_obj
def logs(app: App, name: str, follow: bool, tail: int | None) -> None:
    """Show what container NAME, started with `cradle run -d`, has written."""

    async def main(client: Client) -> None:
        container = await client.containers.get(name)
        path = container.record.labels.get(LOG_LABEL)
        if not path:
            raise Failure(f'container "{name}" has no log', "only `cradle run -d` keeps one")
        file = _open(name, path)
        with file:
            _seek_tail(file, tail)
            if app.json:
                text = file.read().decode(errors="replace")
                print_json({"name": name, "log": path, "text": text})
                return
            _copy(file)
            if follow:
                await _follow(file, _last_end(client, name))

    app.run(main)


def _open(name: str, path: str) -> BinaryIO:
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise Failure(f'the log of "{name}" is gone: {path}') from None


async def _follow(file: BinaryIO, end: Awaitable[None]) -> None:
    async for data in growth.follow(file.fileno(), end):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


async def _last_end(client: Client, name: str) -> None:
    """Until a container has exited and nobody runs it again."""
    with suppress(NotFound, InvalidArgument):
        while True:
            container = await client.containers.get(name)
            try:
                task = await container.task()
                await task.wait()
                state = await task.state()
            except NotFound:  # just now it is restarted, or removed
                state = None
            if judge(container.record.labels, state) is not Verdict.START:
                return
            await asyncio.sleep(_BETWEEN_LIVES)


def _copy(file: BinaryIO) -> None:
    while data := file.read(_CHUNK):
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _seek_tail(file: BinaryIO, lines: int | None) -> None:
    """Put the file where its last lines begin."""
    if lines is None:
        return
    end = file.seek(0, os.SEEK_END)
    missing = lines
    for start, block in _blocks_backwards(file, end):
        position = len(block)
        if start + position == end and block.endswith(b"\n"):
            position -= 1  # the end of the last line begins no other
        while (found := block.rfind(b"\n", 0, position)) >= 0:
            missing -= 1
            if missing <= 0:
                file.seek(start + found + 1 if lines else end)
                return
            position = found
    file.seek(0 if lines else end)


def _blocks_backwards(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    while end > 0:
        start = max(0, end - _CHUNK)
        file.seek(start)
        yield start, file.read(end - start)
        end = start


COMMANDS = {"logs": logs}
