"""Async. The library for people: ``connect`` to a runtime, or take the client that ``Runtime`` is.

    async with cradled.connect("/run/cradled/cradled.sock") as client:
        result = await client.run("docker.io/library/busybox:latest", ["echo", "hello"])

Names are loaded on first use: a program that asks for little starts as if there were little.
"""

TYPE_CHECKING = False  # as in typing, which is not worth its import here

if TYPE_CHECKING:
    from cradled.client.client import Client, connect
    from cradled.client.containers import Container, Containers
    from cradled.client.events import Event
    from cradled.client.images import Images
    from cradled.client.options import ExecOptions, Options
    from cradled.client.processes import Process, Result, Task
    from cradled.core.tasks import Exit, Status

_HOMES = {
    "Client": "client.client",
    "Event": "client.events",
    "connect": "client.client",
    "Container": "client.containers",
    "Containers": "client.containers",
    "Images": "client.images",
    "ExecOptions": "client.options",
    "Options": "client.options",
    "Process": "client.processes",
    "Result": "client.processes",
    "Task": "client.processes",
    "Exit": "core.tasks",
    "Status": "core.tasks",
}
__all__ = [
    "Client",
    "Container",
    "Containers",
    "Event",
    "ExecOptions",
    "Exit",
    "Images",
    "Options",
    "Process",
    "Result",
    "Status",
    "Task",
    "connect",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"cradled.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
