"""Async. ``cradle run`` and ``cradle exec``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from cradled.cli import terminal
from cradled.cli.app import App, Command
from cradled.cli.commands.attach import farewell
from cradled.cli.commands.logs import LOG_LABEL, log_path
from cradled.cli.failures import Failure, advice, run_status, wording
from cradled.cli.output import print_json
from cradled.client import Client, Container, ExecOptions, Options, Status, Task, names
from cradled.core.restart import Policy
from cradled.errors import Error, InvalidArgument, NotFound
from cradled.oci import spec

RESTART_HELP = "Run it again when it exits: always, unless-stopped, on-failure[:N]; or no."

_COMMAND_LINE = {"allow_interspersed_args": False}


def variables(entries: Sequence[str]) -> list[str]:
    """A bare name takes the value it has here, if it has one."""
    return [
        entry if "=" in entry else f"{entry}={os.environ[entry]}"
        for entry in entries
        if "=" in entry or entry in os.environ
    ]


def checked_policy(text: str) -> str:
    """A restart policy as it was given. Raises Failure."""
    try:
        return str(Policy.parse(text))
    except InvalidArgument as error:
        advice = "say no, always, unless-stopped, on-failure or on-failure:N"
        raise Failure(error.what, advice, 125) from error


def _volume(text: str) -> str:
    """The source may be relative to where the command runs."""
    source, colon, rest = text.partition(":")
    if not colon:
        raise Failure(f'volume "{text}"', "say -v SOURCE:DESTINATION[:ro]")
    if "/" not in source and not os.path.exists(source):
        raise Failure(f'volume "{text}": there is no "{source}"', "give a directory or file")
    return f"{os.path.abspath(source)}:{rest}"


def _options(flags: dict[str, Any]) -> Options:
    """Only what was said: the rest is the library's to decide."""
    options = Options(
        env=variables(flags["env"]), mounts=[_volume(text) for text in flags["volume"]]
    )
    if flags["memory"]:
        options["memory"] = spec.parse_size(flags["memory"])
    if flags["cpus"] is not None:
        options["cpus"] = flags["cpus"]
    if flags["pids_limit"] is not None:
        options["pids"] = flags["pids_limit"]
    if flags["restart"] != "no":
        options["restart"] = checked_policy(flags["restart"])
    if flags["workdir"]:
        options["workdir"] = flags["workdir"]
    if flags["user"]:
        options["user"] = flags["user"]
    if flags["hostname"]:
        options["hostname"] = flags["hostname"]
    if flags["entrypoint"]:
        options["entrypoint"] = flags["entrypoint"]
    for name in ("uidmap", "gidmap", "runtime"):
        if flags[name]:
            options[name] = flags[name]
    options["read_only"] = flags["read_only"]
    options["privileged"] = flags["privileged"]
    options["net"] = flags["net"]
    options["tty"] = flags["tty"]
    return options


@click.command("run", cls=Command, context_settings=_COMMAND_LINE)
@click.option("-i", "--interactive", is_flag=True, help="Give it this command's input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal; ctrl-p ctrl-q leaves it.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running; output goes to its log.")
@click.option("--rm", "remove", is_flag=True, help="Remove it when it has exited.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable.")
@click.option("-v", "--volume", multiple=True, metavar="SRC:DST[:ro]", help="Bind a path.")
@click.option("--name", default="", help="Name of the container; made up by default.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Who it runs as.")
@click.option("--entrypoint", default="", metavar="PROGRAM", help="In place of the image's.")
@click.option("-m", "--memory", default="", metavar="SIZE", help="Limit, like 512m.")
@click.option("--cpus", type=float, metavar="N", help="Limit, in processors, like 1.5.")
@click.option("--pids-limit", type=click.IntRange(0), metavar="N", help="Most processes, 0: any.")
@click.option("--restart", default="no", metavar="POLICY", help=RESTART_HELP)
@click.option("--read-only", is_flag=True, help="It cannot write its root file system.")
@click.option("--privileged", is_flag=True, help="Not confined: as good as root here.")
@click.option("--uidmap", default="", metavar="IN:OUT:LENGTH", help="Users of its own.")
@click.option("--gidmap", default="", metavar="IN:OUT:LENGTH", help="Groups; as users by default.")
@click.option("--runtime", default="", metavar="RUNTIME", help="Like crun; or a type, or a shim.")
@click.option("--hostname", default="", help="Its host name; by default its name.")
@click.option(
    "--net",
    type=click.Choice(["none", "host"]),
    default="none",
    help="Network: none but loopback (default), or the host's.",
)
@click.argument("image")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(app: App, /, image: str, args: tuple[str, ...], **flags: Any) -> int:
    """Run a container of IMAGE; ARGS take the place of its command.

    The exit status is the container's; 125 when it could not be run, 126 and 127 when its command
    could not.
    """
    _check_run(flags)
    options = _options(flags)

    async def main(client: Client) -> int:
        if flags["detach"]:
            return await _run_detached(app, client, image, args, flags, options)
        container = await client.containers.create(image, args, name=flags["name"], **options)
        return await _run_here(app, container, flags)

    return _guarded(app, main)


def _check_run(flags: dict[str, Any]) -> None:
    if flags["detach"] and flags["remove"]:
        raise Failure(
            "-d and --rm exclude each other: nobody is left to remove it",
            "leave one out; `cradle rm` removes a container",
            125,
        )
    if not flags["detach"]:
        if flags["restart"] != "no":
            raise Failure("--restart is for containers that are left running", "add -d", 125)
        _check_terminal(tty=flags["tty"], interactive=flags["interactive"])


def _check_terminal(*, tty: bool, interactive: bool) -> None:
    if tty and interactive and not os.isatty(0):
        raise Failure("the input is no terminal", "leave out -t", 125)


def _guarded(app: App, main: Any) -> int:
    """Errors of ours must not look like an exit of the container."""
    try:
        return int(app.run(main))
    except Error as error:
        raise Failure(wording(error), advice(error), run_status(error)) from error


async def _run_detached(
    app: App,
    client: Client,
    image: str,
    args: Sequence[str],
    flags: dict[str, Any],
    options: Options,
) -> int:
    name = flags["name"] or names.generate()
    path = log_path(app.namespace, name)
    options["labels"] = {LOG_LABEL: str(path)}
    container = await client.containers.create(image, args, name=name, **options)
    try:
        task = await container.start(stdin=flags["interactive"], output=path)
        await task.leave()  # its input is for who attaches
    except BaseException:
        await container.remove(force=True)
        raise
    if app.json:
        print_json({"name": container.id, "pid": task.pid})
    else:
        print(container.id)
    return 0


async def _run_here(app: App, container: Container, flags: dict[str, Any]) -> int:
    try:
        task = await container.start(stdin=flags["interactive"])
    except BaseException:
        await container.remove(force=True)
        raise
    try:
        async with task:
            if app.json and not flags["tty"]:
                return await _run_to_json(container, task)
            try:
                return await terminal.follow(
                    task,
                    stdin=flags["interactive"],
                    tty=flags["tty"],
                    detachable=not flags["remove"],  # or nobody would be left to remove it
                )
            except terminal.Detached:
                await task.leave()
                return farewell(container.id)
    finally:
        if flags["remove"]:
            with suppress(NotFound), terminal.uninterrupted():
                await container.remove(force=True)


async def _run_to_json(container: Container, task: Task) -> int:
    assert task.stdout is not None
    assert task.stderr is not None
    reads = asyncio.gather(task.stdout.read(), task.stderr.read())
    end = await task.wait()
    out, err = (data.decode(errors="replace") for data in await reads)
    print_json({"name": container.id, "status": end.status, "stdout": out, "stderr": err})
    return end.status


@click.command("exec", cls=Command, context_settings=_COMMAND_LINE)
@click.option("-i", "--interactive", is_flag=True, help="Give it this command's input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running, without output.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Who it runs as.")
@click.argument("name")
@click.argument("args", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(app: App, /, name: str, args: tuple[str, ...], **flags: Any) -> int:
    """Run a further command in the running container NAME.

    The exit status is the command's; 125 to 127 as for `cradle run`. With -it, ctrl-p ctrl-q leaves
    it running, and the status is 0.
    """
    detach, interactive, tty = flags["detach"], flags["interactive"], flags["tty"]
    if detach and (interactive or tty):
        raise Failure("-d excludes -i and -t", "leave one out", 125)
    _check_terminal(tty=tty, interactive=interactive)
    options = ExecOptions(env=variables(flags["env"]), tty=tty)
    if flags["workdir"]:
        options["workdir"] = flags["workdir"]
    if flags["user"]:
        options["user"] = flags["user"]

    async def main(client: Client) -> int:
        task = await (await client.containers.get(name)).task()
        if (await task.state()).status != Status.RUNNING:
            raise Failure(f'container "{name}" does not run', "`cradle ps -a` tells its state", 125)
        process = await task.exec(args, stdin=interactive, output=not detach, **options)
        async with process:
            if detach:
                return 0
            try:
                status = await terminal.follow(process, stdin=interactive, tty=tty, detachable=True)
            except terminal.Detached:
                await process.leave()
                return farewell(name, process.exec_id)
            with suppress(NotFound):  # who attached to it was faster
                await process.delete()
            return status

    return _guarded(app, main)


COMMANDS = {"run": run, "exec": exec_}
