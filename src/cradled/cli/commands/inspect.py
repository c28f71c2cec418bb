"""Async. ``cradle inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
import msgspec

from cradled.cli import output
from cradled.cli.app import App, Command
from cradled.cli.commands.containers import describe
from cradled.cli.failures import Failure
from cradled.client import Client, Container
from cradled.core.images import Image
from cradled.core.tasks import Process
from cradled.errors import NotFound


@click.command("inspect", cls=Command)
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def inspect(app: App, names: Sequence[str]) -> None:
    """Show all that is known of containers or images, as JSON."""

    async def main(client: Client) -> list[dict[str, Any]]:
        return [await _inspect(client, name) for name in names]

    output.print_json(app.run(main))


async def _inspect(client: Client, name: str) -> dict[str, Any]:
    try:
        container = await client.containers.get(name)
    except NotFound:
        pass
    else:
        return _container(container, await _state(container))
    try:
        image = await client.images.get(name)
    except NotFound:
        advice = "`cradle ps -a` and `cradle images` list what there is"
        raise Failure(f'no container or image is called "{name}"', advice) from None
    return await _image(client, image)


async def _state(container: Container) -> Process | None:
    try:
        return await (await container.task()).state()
    except NotFound:
        return None


def _container(container: Container, task: Process | None) -> dict[str, Any]:
    record = container.record
    return {
        **describe(container, task),
        "exited": output.instant(task.exited_at) if task else "",
        "runtime": record.runtime.name,
        "snapshotter": record.snapshotter,
        "snapshot_key": record.snapshot_key,
        "stdio": asdict(task.stdio) if task else None,
        "spec": container.spec(),
    }


async def _image(client: Client, image: Image) -> dict[str, Any]:
    contents = await client.images.contents(image)
    return {
        "name": image.name,
        "target": asdict(image.target),
        "labels": dict(image.labels),
        "created": output.instant(image.created_at),
        "chain_id": contents.chain_id,
        "manifest": msgspec.to_builtins(contents.manifest),
        "config": msgspec.to_builtins(contents.config),
    }


COMMANDS = {"inspect": inspect}
