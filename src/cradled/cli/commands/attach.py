"""Async. ``cradle attach``: back to what was started elsewhere, or left."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import click

from cradled.cli import terminal
from cradled.cli.app import App, Command
from cradled.cli.failures import Failure
from cradled.client import Client, Status
from cradled.errors import NotFound

STOPPED = 125


@click.command("attach", cls=Command)
@click.option("--no-stdin", is_flag=True, help="Only watch its output.")
@click.argument("name")
@click.argument("exec_id", required=False, default="")
@click.pass_obj
def attach(app: App, name: str, exec_id: str, no_stdin: bool) -> int:
    """Connect this terminal to container NAME, or to EXEC_ID, a further command in it that was
    left: its output from now on, and its input if it has one.

    Of a container without a log, each of several readers gets a part of the output. An interrupt
    ends this command and not the container, unless the container has a terminal: there ctrl-p
    ctrl-q does. The exit status is that of what was attached to, or 0 after ctrl-p ctrl-q.
    """

    async def main(client: Client) -> int:
        task = await (await client.containers.get(name)).task()
        process = task.process(exec_id) if exec_id else task
        state = await process.state()
        if state.status == Status.STOPPED:
            if exec_id:  # what it wrote and nobody read has gone with it
                return (await process.delete()).status
            raise Failure(
                f'container "{name}" does not run', "`cradle ps -a` tells its state", STOPPED
            )
        tty = state.stdio.terminal
        await process.attach()
        try:
            stdin = process.stdin is not None and not no_stdin and not (tty and not os.isatty(0))
            status = await terminal.follow(
                process, stdin=stdin, tty=tty, detachable=True, guest=True
            )
            if exec_id:
                with suppress(NotFound):  # who started it is there still, and was faster
                    await process.delete()
            return status
        except terminal.Detached:
            return farewell(name, exec_id)
        finally:
            await process.leave()

    return app.run(main)


def farewell(*names: str) -> int:
    """Say how to come back to a container, or an exec in it; the exit status."""
    command = " ".join(("cradle attach", *filter(None, names)))
    print(f"\r\nleft running; `{command}` comes back", file=sys.stderr)
    return 0


COMMANDS = {"attach": attach}
