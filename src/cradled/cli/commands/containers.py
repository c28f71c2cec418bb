"""Async. ``cradle ps``, ``kill``, ``rm`` and ``wait``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from cradled import references
from cradled.cli import output
from cradled.cli.app import App, Command
from cradled.cli.commands.logs import remove_log
from cradled.client import Client, Container, Status
from cradled.core.restart import Verdict, judge, restarts
from cradled.core.tasks import Process
from cradled.errors import InvalidArgument

names_argument = click.argument("names", nargs=-1, required=True)


def state(container: Container, task: Process | None) -> str:
    """A container's state in a word: ``running``, ``exited``, ``restarting`` and so on."""
    if task is None:
        return "created"
    if task.status == Status.STOPPED and _restarts(container, task):
        return "restarting"
    return {Status.STOPPED: "exited"}.get(task.status, task.status.name.lower())


def _restarts(container: Container, task: Process) -> bool:
    try:
        return judge(container.record.labels, task) is Verdict.START
    except InvalidArgument:  # a policy that nobody knows
        return False


def describe(container: Container, task: Process | None) -> dict[str, Any]:
    """A container as a line of ``ps``."""
    process = container.spec().get("process", {})
    alive = task is not None and task.status != Status.STOPPED
    return {
        "name": container.id,
        "image": container.record.image,
        "command": process.get("args", []),
        "state": state(container, task),
        "pid": task.pid if task and alive else 0,
        "exit_status": task.exit_status if task and not alive else None,
        "restarts": restarts(container.record.labels),
        "created": output.instant(container.record.created_at),
        "labels": dict(container.record.labels),
    }


@click.command("ps", cls=Command)
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.pass_obj
def ps(app: App, everything: bool, quiet: bool) -> None:
    """List running containers."""

    async def main(client: Client) -> list[tuple[Container, Process | None]]:
        containers, tasks = await asyncio.gather(
            client.containers.list(), client.session.tasks.list()
        )
        by_id = {task.id: task for task in tasks}
        return [(container, by_id.get(container.id)) for container in containers]

    running = (Status.RUNNING, Status.PAUSED, Status.PAUSING)
    found = [
        (container, task)
        for container, task in app.run(main)
        if everything or (task is not None and task.status in running)
    ]
    if quiet and not app.json:
        for container, _ in found:
            print(container.id)
    elif app.json:
        output.print_json([describe(container, task) for container, task in found])
    else:
        headers = ("NAME", "IMAGE", "COMMAND", "STATE", "PID", "CREATED", "RESTARTS")
        output.print_rows(headers, [_row(container, task) for container, task in found])


def _row(container: Container, task: Process | None) -> Sequence[str]:
    told = describe(container, task)
    ended = told["exit_status"]
    return (
        told["name"],
        references.familiar(told["image"]),
        " ".join(told["command"])[:40],
        told["state"] if ended is None else f"{told['state']} ({ended})",
        str(told["pid"] or "-"),
        output.age(container.record.created_at),
        str(told["restarts"]),
    )


def each(
    app: App, names: Sequence[str], act: Callable[[Container], Awaitable[dict[str, Any]]]
) -> None:
    """Act on containers one after the other and print a line, or one JSON array, of results."""

    async def main(client: Client) -> None:
        done = []
        for name in names:
            result = {"name": name, **await act(await client.containers.get(name))}
            done.append(result)
            if not app.json:
                print("\t".join(str(value) for value in result.values()), flush=True)
        if app.json:
            output.print_json(done)

    app.run(main)


@click.command("kill", cls=Command)
@click.option("-s", "--signal", default="KILL", metavar="SIGNAL", help="Name or number.")
@names_argument
@click.pass_obj
def kill(app: App, names: Sequence[str], signal: str) -> None:
    """Send a signal (KILL by default) to containers."""

    async def act(container: Container) -> dict[str, Any]:
        await (await container.task()).kill(signal)
        return {}

    each(app, names, act)


@click.command("rm", cls=Command)
@click.option("-f", "--force", is_flag=True, help="Also while it runs: it is killed.")
@names_argument
@click.pass_obj
def rm(app: App, names: Sequence[str], force: bool) -> None:
    """Remove containers, their file systems and their logs."""

    async def act(container: Container) -> dict[str, Any]:
        await container.remove(force=force)
        remove_log(container)
        return {}

    each(app, names, act)


@click.command("wait", cls=Command)
@names_argument
@click.pass_obj
def wait(app: App, names: Sequence[str]) -> None:
    """Wait until containers have exited, and print their exit status."""

    async def act(container: Container) -> dict[str, Any]:
        return {"status": (await (await container.task()).wait()).status}

    each(app, names, act)


COMMANDS = {"ps": ps, "kill": kill, "rm": rm, "wait": wait}
