"""Events from a position on: on the command line, in the library, and as the page says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from harness.program import Program, call, started
from harness.upgrades import CRADLE, Stranger, cradle, upgrade

import cradled
from cradled import errors
from cradled.api import events_service_pb2
from cradled.client import Client, connect
from cradled.client.events import Event
from cradled.core.values import AnyValue
from cradled.events.exchange import Exchange
from cradled.proxies.events import ProxyEvents
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Router
from cradled.services.events import EventsService

HOWTO = Path(__file__).resolve().parents[2] / "docs/howto"
EVENTS, UPGRADE = ((HOWTO / name).read_text() for name in ("events.md", "upgrade.md"))

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with started(tmp_path) as program:
        yield program


async def make(program: Program, *names: str) -> None:
    async with connect(str(program.socket)) as client:
        for name in names:
            await client.namespaces.create(name, {})


async def some(client: Client, count: int, *filters: str, since: Any) -> list[Event]:
    events = client.events(*filters, since=since)
    try:
        async with asyncio.timeout(20):
            return [await anext(events) for _ in range(count)]
    finally:
        await events.aclose()


def shown(program: Program, count: int, *words: str) -> list[dict[str, Any]]:
    """The first lines that ``cradle events`` shows."""
    command = [CRADLE, "--address", str(program.socket), "--json", "events", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(count)]
        process.terminate()
    return lines


@root
async def test_the_command_resumes(program: Program) -> None:
    await make(program, "a", "b", "c")
    lines = await asyncio.to_thread(shown, program, 3, "--since", "1h")
    assert [line["event"]["name"] for line in lines] == ["a", "b", "c"]
    assert list(lines[0]) == ["position", "time", "namespace", "topic", "event"]
    position = lines[1]["position"]
    for since in (position, position.partition("-")[2]):
        again = await asyncio.to_thread(shown, program, 1, "--since", since)
        assert again == lines[2:]
    chosen = await asyncio.to_thread(shown, program, 1, "--since", "1d2h", "event.name==b")
    assert chosen == lines[1:2]
    time = re.sub(r"\..*", "Z", lines[0]["time"])
    assert await asyncio.to_thread(shown, program, 3, "--since", time) == lines


@root
async def test_what_the_command_refuses(program: Program) -> None:
    await make(program, "a")
    for since, text in {
        "7": "event 7 has not happened yet, the last one is ",
        "00000000-1": "events of 00000000 are lost, the journal has been begun anew as ",
        "yesterday": '"yesterday" is no position in the journal of events',
        "2026-99-01": "--since 2026-99-01: month must be in 1..12",
    }.items():
        refused = await asyncio.to_thread(cradle, program.socket, "events", "--since", since)
        assert (refused.returncode != 0, refused.stdout) == (True, "")
        assert text in refused.stderr


@root
async def test_numbers_go_on_after_kill_9(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        await make(program, "a")
        async with connect(str(program.socket)) as client:
            (first,) = await some(client, 1, since=timedelta(hours=1))
        program.process.kill()
        program.process.wait()
    with started(tmp_path) as program:
        await make(program, "b")
        async with connect(str(program.socket)) as client:
            (second,) = await some(client, 1, since=first.position)
            assert second.fields["name"] == "b"
            assert second.position == first.position[:-1] + "2"


@root
async def test_in_process(tmp_path: Path) -> None:
    async with cradled.Runtime(tmp_path / "root", tmp_path / "state") as client:
        began = datetime.now(UTC)
        for name in ("a", "b"):
            await client.namespaces.create(name, {})
        both = await some(client, 2, since=began)
        assert [event.fields["name"] for event in both] == ["a", "b"]
        assert await some(client, 1, since=both[0].position) == both[1:]
        with pytest.raises(errors.OutOfRange):
            await some(client, 1, since="3")


async def served(directory: Path, router: Router, act: Callable[[str], Awaitable[None]]) -> None:
    """Do something with a server that has only some services."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(directory / "s"))
    sock.listen()
    server = GrpcServer(router)
    await server.serve(sock)
    try:
        await act(str(directory / "s"))
    finally:
        await server.stop(0)


async def test_a_server_without_a_journal(tmp_path: Path) -> None:
    """Such as containerd: events have no positions, and nothing can be resumed."""
    exchange, router = Exchange(), Router()
    router.add(events_service_pb2.Events, EventsService(exchange))

    async def act(address: str) -> None:
        command = [CRADLE, "--address", address, "--json", "events"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while not exchange.waiting():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
            async with connect(address) as client:
                session = client.session
                proxy = ProxyEvents(session.transport, session.scope)
                await proxy.publish("/x/y", AnyValue("a", b""))
            line = json.loads(await process.stdout.readline())
        assert list(line) == ["time", "namespace", "topic", "event"]
        process.terminate()
        await process.wait()
        refused = await asyncio.to_thread(cradle, Path(address), "events", "--since", "1h")
        assert refused.returncode == 1
        assert "unknown service cradled.v1.Journal" in refused.stderr

    await served(tmp_path, router, act)


# The pages


@root
async def test_the_program_of_the_page(program: Program) -> None:
    """It hears each exit once, though the daemon is upgraded and killed meanwhile."""
    (source,) = re.findall(r"```python\n(.*?)```", EVENTS, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(source.replace('"/tasks/exit"', '"/namespaces/create"'), scope)
    heard: list[str] = []
    watching = asyncio.ensure_future(
        scope["watch"](str(program.socket), lambda event: heard.append(event.fields["name"]), "0")
    )

    async def hears(*names: str) -> None:
        await make(program, *names)
        async with asyncio.timeout(20):
            while heard[-1:] != [names[-1]]:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)

    await hears("a", "b")
    done = await asyncio.to_thread(upgrade, program.socket)
    assert program.process.wait(20) == 0
    program.process = Stranger(done.pid)
    await hears("c", "d")
    watching.cancel()
    await asyncio.wait([watching])
    assert heard == ["a", "b", "c", "d"]


def commands(page: str) -> list[str]:
    return [
        line.partition("  #")[0].strip() for line in re.findall(r"^    (cradle .*)$", page, re.M)
    ]


@root
def test_the_commands_of_the_page(program: Program) -> None:
    asyncio.run(make(program, "a"))
    lines = shown(program, 1, "--since", "10m")
    found = commands(EVENTS)
    assert len(found) == 5
    env = {**os.environ, "CRADLE_ADDRESS": str(program.socket)}
    for command in found:
        words = shlex.split(command.replace("6a1c9d02-1042", lines[0]["position"]))
        words[0] = CRADLE
        with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as process:
            if "10m" in words:
                assert process.stdout is not None
                assert "/namespaces/create" in process.stdout.readline()
            else:
                # It listens: it neither ends nor has anything to tell.
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(1)
            process.terminate()


@root
def test_the_command_to_upgrade(program: Program) -> None:
    assert "cradle daemon upgrade" in commands(UPGRADE)
    done = subprocess.run(
        [CRADLE, "daemon", "upgrade"],
        env={**os.environ, "CRADLE_ADDRESS": str(program.socket)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (example,) = re.findall(r"```\n(upgraded.*?)```", UPGRADE, re.DOTALL)
    names = [[line.split("\t")[0] for line in text.splitlines()] for text in (example, done.stdout)]
    assert names[0] == names[1]
    assert program.process.wait(20) == 0
    program.process = Stranger(int(re.findall(r"process\t(\d+)", done.stdout)[0]))


def test_the_size_of_the_page(tmp_path: Path) -> None:
    """What the page says of the configuration is what there is."""
    section, key = re.findall(r"`\[(plugins\..*?)\]`, `(\w+)`", EVENTS)[0]
    (tmp_path / "c.toml").write_text(f"version = 4\n[{section}]\n{key} = 2097152\n")
    checked = call(tmp_path, "--strict", "config", "check", "c.toml")
    assert (checked.returncode, checked.stdout) == (0, "")
    assert f"{key} = {16 << 20}" in call(tmp_path, "config", "default").stdout
    (tmp_path / "c.toml").write_text(f"version = 4\n[{section}]\n{key} = 1000\n")
    assert call(tmp_path, "config", "check", "c.toml").returncode == 1
