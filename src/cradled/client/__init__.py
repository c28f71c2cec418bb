"""Async. The library for people: ``connect`` to a runtime, or take the client that ``Runtime`` is.

async with cradled.connect("/run/cradled/cradled.sock") as client:
    result = await client.run("docker.io/library/busybox:latest", ["echo", "hello"])
"""

from cradled.client.client import Client, Event, connect
from cradled.client.containers import Container, Containers
from cradled.client.images import Images
from cradled.client.options import ExecOptions, Options
from cradled.client.processes import Process, Result, Task
from cradled.core.tasks import Exit, Status

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
