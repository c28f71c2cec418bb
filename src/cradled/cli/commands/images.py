"""Async. ``cradle images``, ``import``, ``pack``, ``tag`` and ``rmi``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from cradled import references
from cradled.cli import output
from cradled.cli.app import App, Command
from cradled.cli.commands.run import variables
from cradled.client import Client
from cradled.core.images import Image
from cradled.core.transfer import Progress, Tell
from cradled.errors import Error

_DIGEST_SHOWN = 19  # with "sha256:" in front
_NAME_SHOWN = 25
_DONE = frozenset({"complete", "already exists", "extracted"})


async def _describe(client: Client, image: Image) -> dict[str, Any]:
    """Size and platform are of the image for this host; empty when its parts are missing."""
    told = {
        "name": image.name,
        "digest": image.target.digest,
        "size": 0,
        "platform": "",
        "created": output.instant(image.created_at),
        "labels": dict(image.labels),
    }
    try:
        contents = await client.images.contents(image)
    except Error:
        return told
    told["size"] = sum(layer.size for layer in contents.manifest.layers)
    told["platform"] = str(contents.config.platform)
    return told


@click.command("images", cls=Command)
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.pass_obj
def images(app: App, quiet: bool) -> None:
    """List images."""

    async def main(client: Client) -> list[tuple[Image, dict[str, Any]]]:
        found = await client.images.list()
        return [(image, {} if quiet else await _describe(client, image)) for image in found]

    found = app.run(main)
    if quiet and not app.json:
        for image, _ in found:
            print(image.name)
    elif app.json:
        output.print_json([told or {"name": image.name} for image, told in found])
    else:
        headers = ("IMAGE", "DIGEST", "SIZE", "PLATFORM", "CREATED")
        output.print_rows(headers, [_row(image, told) for image, told in found])


def _row(image: Image, told: dict[str, Any]) -> Sequence[str]:
    return (
        references.familiar(image.name),
        image.target.digest[:_DIGEST_SHOWN],
        output.size(told["size"]),
        told["platform"] or "-",
        output.age(image.created_at),
    )


@click.command("import", cls=Command)
@click.option("--name", default="", help="For an image that the archive gives no name.")
@click.option("--no-unpack", is_flag=True, help="Only store it; it is unpacked when first run.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.pass_obj
def import_(app: App, file: str, name: str, no_unpack: bool) -> None:
    """Bring in the images of FILE (- is the input): an OCI layout or a Docker archive."""
    from cradled.linux import memory  # with ctypes, wanted by few

    memory.own_process()
    memory.reuse_buffers()
    if name:
        name = references.normalise(name)

    async def main(client: Client) -> list[Image]:
        source = sys.stdin.buffer if file == "-" else file
        with _progress() as tell:
            return list(
                await client.images.import_(source, name=name, unpack=not no_unpack, tell=tell)
            )

    _print_images(app, app.run(main))


@click.command("pack", cls=Command, context_settings={"allow_interspersed_args": False})
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Who it runs as.")
@click.option("--entrypoint", default="", metavar="PROGRAM", help="What the command is given to.")
@click.option("-l", "--label", multiple=True, metavar="NAME=VALUE", help="Set a label.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def pack(app: App, /, directory: str, name: str, command: tuple[str, ...], **flags: Any) -> None:
    """Make image NAME from DIRECTORY, in one layer; COMMAND is what it runs by default."""
    config = {
        "Cmd": list(command),
        "Env": variables(flags["env"]),
        "Entrypoint": [flags["entrypoint"]] if flags["entrypoint"] else [],
        "WorkingDir": flags["workdir"],
        "User": flags["user"],
        "Labels": dict(label.partition("=")[::2] for label in flags["label"]),
    }
    said = {key: value for key, value in config.items() if value}

    async def main(client: Client) -> Image:
        with _progress() as tell:
            return await client.images.pack(directory, name, config=said, tell=tell)

    _print_images(app, [app.run(main)])


@click.command("tag", cls=Command)
@click.argument("source")
@click.argument("target")
@click.pass_obj
def tag(app: App, source: str, target: str) -> None:
    """Give image SOURCE the name TARGET too."""
    _print_images(app, [app.run(lambda client: client.images.tag(source, target))])


@click.command("rmi", cls=Command)
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def rmi(app: App, names: Sequence[str]) -> None:
    """Remove names of images; what no name and no container needs is collected."""

    async def main(client: Client) -> list[Image]:
        return [await client.images.remove(name) for name in names]

    _print_images(app, app.run(main))


def _print_images(app: App, found: Sequence[Image]) -> None:
    if app.json:
        told = [{"name": image.name, "digest": image.target.digest} for image in found]
        output.print_json(told)
        return
    for image in found:
        print(image.name)


@contextmanager
def _progress() -> Iterator[Tell | None]:
    """Bars for what is under way, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        known: dict[str, Any] = {}

        def tell(progress: Progress) -> None:
            if not progress.total:
                return
            if progress.name not in known:
                known[progress.name] = bars.add_task("", total=progress.total)
            done = progress.total if progress.event in _DONE else progress.done
            description = f"{progress.event:>11} {progress.name[:_NAME_SHOWN]}"
            bars.update(known[progress.name], description=description, completed=done)

        yield tell


COMMANDS = {"images": images, "import": import_, "pack": pack, "tag": tag, "rmi": rmi}
