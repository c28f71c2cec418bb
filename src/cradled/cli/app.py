"""Blocking. The command line's frame: global options, commands loaded on first use, the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cradled.cli import ondemand
from cradled.cli.failures import Failure

if TYPE_CHECKING:
    from cradled.client import Client

T = TypeVar("T")

# Name -> module, what it does. The texts are here so that help loads no command.
_COMMANDS = {
    "run": ("run", "Run a container of an image."),
    "ps": ("containers", "List containers."),
    "exec": ("run", "Run a further command in a running container."),
    "attach": ("attach", "Connect this terminal to a running container."),
    "logs": ("logs", "Show what a container started with `run -d` has written."),
    "start": ("life", "Run containers again that have exited."),
    "stop": ("life", "Stop containers, gently first."),
    "restart": ("life", "Stop containers and run them again."),
    "pause": ("life", "Freeze all processes of containers."),
    "unpause": ("life", "Let the processes of paused containers go on."),
    "update": ("update", "Change the limits and the restart policy of containers."),
    "top": ("usage", "List the processes of a container."),
    "stats": ("usage", "Show what containers use, second by second."),
    "kill": ("containers", "Send a signal to containers."),
    "rm": ("containers", "Remove containers."),
    "wait": ("containers", "Wait for containers to exit, and print their status."),
    "inspect": ("inspect", "Show all that is known of containers or images, as JSON."),
    "images": ("images", "List images."),
    "import": ("images", "Bring in the images of an archive."),
    "pack": ("images", "Make an image from a directory."),
    "tag": ("images", "Give an image another name."),
    "rmi": ("images", "Remove names of images."),
    "df": ("storage", "Show what takes how much disk."),
    "prune": ("storage", "Remove what nothing needs."),
    "fsck": ("storage", "Check all that the daemon keeps, explain it, repair it."),
    "backup": ("storage", "Copy the daemon's metadata into a file."),
    "events": ("system", "Show what happens, as it happens."),
    "trace": ("trace", "Show what the daemon did last, step by step."),
    "doctor": ("doctor", "Check whether this host can run containers."),
    "version": ("system", "Show the versions of client and server."),
    "daemon": ("system", "Run a daemon in the foreground."),
}


@dataclass
class App:
    """The global options; what a command needs to get at the runtime."""

    address: str = ""
    namespace: str = "default"
    json: bool = False

    def run(self, main: Callable[[Client], Awaitable[T]]) -> T:
        """Call ``main`` with a client, on a loop of its own."""
        import asyncio
        import os

        from cradled import spans

        name = click.get_current_context().command_path
        traceparent = os.environ.get("TRACEPARENT", "")

        async def with_client() -> T:
            with spans.program(name, traceparent):
                async with AsyncExitStack() as stack:
                    return await main(await self.connect(stack))

        return asyncio.run(with_client())

    async def connect(self, stack: AsyncExitStack) -> Client:
        """A client of the daemon at the address; without an address one is started if need be."""
        from cradled.client import connect
        from cradled.errors import Unavailable

        if self.address:
            return await stack.enter_async_context(connect(self.address, namespace=self.namespace))
        home = ondemand.home()
        for _ in range(ondemand.ATTEMPTS):
            for address in ondemand.addresses(home):
                attempt = AsyncExitStack()
                try:
                    client = await attempt.enter_async_context(
                        connect(address, namespace=self.namespace)
                    )
                    await client.version()  # a daemon on its way out accepts, but never answers
                except Unavailable:
                    await attempt.aclose()
                    continue
                stack.push_async_exit(attempt)
                return client
            ondemand.ensure(home)
        raise Failure("the daemon goes away as soon as it is started", f"see {home}/daemon.log")


class Command(click.Command):
    """A command that takes the global options behind its name too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()


class Group(click.Group):
    """Commands under a name of their own; takes the global options behind that name too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        import importlib

        found = _COMMANDS.get(name)
        if found is None:
            return None
        module = importlib.import_module(f"cradled.cli.commands.{found[0]}")
        command: click.Command = module.COMMANDS[name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _global_options() -> list[click.Parameter]:
    def store(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(App), parameter.name or "", value)

    common: dict[str, Any] = {"expose_value": False, "callback": store}
    return [
        click.Option(
            ["--address"],
            metavar="SOCKET",
            help="Socket of the daemon; without it one is started when none is there. "
            "[CRADLE_ADDRESS]",
            **common,
        ),
        click.Option(
            ["--namespace"],
            metavar="NAME",
            help="Namespace of containers and images (default). [CRADLE_NAMESPACE]",
            **common,
        ),
        click.Option(["--json"], is_flag=True, help="Print JSON.", **common),
    ]


def cradle(words: Sequence[str]) -> int:
    """Run a command line; returns its exit status. Raises Failure and errors of the runtime."""
    import os

    app = App(os.environ.get("CRADLE_ADDRESS", ""), os.environ.get("CRADLE_NAMESPACE") or "default")
    group = _Commands(
        "cradle",
        params=_global_options(),
        no_args_is_help=False,
        help="Run containers. `cradle COMMAND --help` explains a command.",
        epilog=f"Without --address it is the daemon at {ondemand.SYSTEM_ADDRESS}, or else one of "
        "this user's own, which is started when it is needed and keeps everything in $CRADLE_HOME "
        "(~/.local/share/cradle).",
    )
    if not words:
        print(group.get_help(click.Context(group, info_name="cradle")))
        return 2
    try:
        status = group.main(list(words), "cradle", standalone_mode=False, obj=app)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "cradle"
        raise Failure(error.format_message().rstrip("."), f"see `{command} --help`", 2) from error
    except click.Abort as error:
        raise KeyboardInterrupt from error
    return status if isinstance(status, int) else 0
