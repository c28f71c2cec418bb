"""Async. ``cradle start``, ``stop``, ``restart``, ``pause`` and ``unpause``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cradled.cli.app import App, Command
from cradled.cli.commands.containers import each, names_argument
from cradled.cli.commands.logs import LOG_LABEL, log_path
from cradled.cli.failures import Failure
from cradled.client import Container, Status
from cradled.client.containers import STOP_SECONDS
from cradled.errors import NotFound

_seconds = click.option(
    "-t",
    "--time",
    "seconds",
    type=click.FloatRange(0),
    default=STOP_SECONDS,
    help="Seconds until it is killed.",
)


@click.command("start", cls=Command)
@names_argument
@click.pass_obj
def start(app: App, names: Sequence[str]) -> None:
    """Run containers again that have exited; output goes to their log."""

    async def act(container: Container) -> dict[str, Any]:
        await _start(app, container)
        return {}

    each(app, names, act)


@click.command("stop", cls=Command)
@_seconds
@names_argument
@click.pass_obj
def stop(app: App, names: Sequence[str], seconds: float) -> None:
    """Stop containers: by the signal their image asks for (TERM), then by KILL.

    They stay stopped, whatever their restart policy, until `cradle start`.
    """

    async def act(container: Container) -> dict[str, Any]:
        await container.stop(seconds)
        return {}

    each(app, names, act)


@click.command("restart", cls=Command)
@_seconds
@names_argument
@click.pass_obj
def restart(app: App, names: Sequence[str], seconds: float) -> None:
    """Stop containers and run them again."""

    async def act(container: Container) -> dict[str, Any]:
        await container.stop(seconds)
        await _start(app, container)
        return {}

    each(app, names, act)


@click.command("pause", cls=Command)
@names_argument
@click.pass_obj
def pause(app: App, names: Sequence[str]) -> None:
    """Freeze all processes of containers."""

    async def act(container: Container) -> dict[str, Any]:
        await (await container.task()).pause()
        return {}

    each(app, names, act)


@click.command("unpause", cls=Command)
@names_argument
@click.pass_obj
def unpause(app: App, names: Sequence[str]) -> None:
    """Let the processes of paused containers go on."""

    async def act(container: Container) -> dict[str, Any]:
        await (await container.task()).resume()
        return {}

    each(app, names, act)


async def _start(app: App, container: Container) -> None:
    with suppress(NotFound):
        task = await container.task()
        if (await task.state()).status != Status.STOPPED:
            what = f'container "{container.id}" runs already'
            raise Failure(what, "`cradle restart` stops it first")
        await task.delete()
    path = container.record.labels.get(LOG_LABEL)
    if not path:
        path = str(log_path(app.namespace, container.id))
        await container.label(LOG_LABEL, path)
    await container.start(output=Path(path))


COMMANDS = {
    "start": start,
    "stop": stop,
    "restart": restart,
    "pause": pause,
    "unpause": unpause,
}
