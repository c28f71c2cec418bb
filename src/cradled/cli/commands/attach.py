"""Async. ``cradle attach``: back to a container that was started elsewhere, or left."""

from __future__ import annotations

import os
import sys

import click

from cradled.cli import terminal
from cradled.cli.app import App, Command
from cradled.cli.failures import Failure
from cradled.client import Client, Status

STOPPED = 125


@click.command("attach", cls=Command)
@click.option("--no-stdin", is_flag=True, help="Only watch its output.")
@click.argument("name")
@click.pass_obj
def attach(app: App, name: str, no_stdin: bool) -> int:
    """Connect this terminal to container NAME: its output from now on, and its input if it has one.

    Of a container without a log, each of several readers gets a part of the output. An interrupt
    ends this command and not the container, unless the container has a terminal: there ctrl-p
    ctrl-q does. The exit status is the container's, or 0 after ctrl-p ctrl-q.
    """

    async def main(client: Client) -> int:
        task = await (await client.containers.get(name)).task()
        state = await task.state()
        if state.status == Status.STOPPED:
            raise Failure(
                f'container "{name}" does not run', "`cradle ps -a` tells its state", STOPPED
            )
        tty = state.stdio.terminal
        await task.attach()
        try:
            stdin = task.stdin is not None and not no_stdin and not (tty and not os.isatty(0))
            return await terminal.follow(task, stdin=stdin, tty=tty, detachable=True, guest=True)
        except terminal.Detached:
            return farewell(name)
        finally:
            await task.leave()

    return app.run(main)


def farewell(name: str) -> int:
    """Say how to come back; the exit status."""
    print(f"\r\nleft running; `cradle attach {name}` comes back", file=sys.stderr)
    return 0


COMMANDS = {"attach": attach}
