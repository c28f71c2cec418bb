"""Lives of containers and images under a daemon that is killed again and again.

A step that fails while the daemon is killed is *lost*: whether it happened is not known, so it is
looked for or repeated. One that fails otherwise, or an answer that is not true later, fails the
test.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import cradled
from cradled.client import Client, Container
from cradled.errors import Error, NotFound
from harness.daemon import Daemon, rows, wait_until
from harness.images import LayerTar, TestImage

IMAGE = "docker.io/library/busybox:test"
KEPT = 3
POLL = 0.02

T = TypeVar("T")
State = tuple[int, str]


class Lost(Exception):
    """The daemon was killed under a step."""


class Killer:
    """Kills a daemon at random instants; knows whether a step met a kill."""

    def __init__(self, daemon: Daemon, dice: random.Random) -> None:
        self.daemon = daemon
        self.kills = 0
        self.done = False
        self.told: list[Path] = []
        self._dice = dice
        self._up = asyncio.Event()
        self._listener: subprocess.Popen[bytes] | None = None
        self._rise()

    async def kill(self, times: int) -> None:
        """So often; the daemon is up in the end. A listener hears each of its lives' events."""
        for _ in range(times):
            await asyncio.sleep(self._dice.uniform(0, self._dice.choice((0.2, 1, 3))))
            self._up.clear()
            self.kills += 1
            await asyncio.to_thread(self.daemon.kill)
            await self.end_listener()
            if self._dice.random() < 0.3:
                await asyncio.sleep(self._dice.uniform(0, 0.3))  # containers exit meanwhile
            await asyncio.to_thread(self.daemon.start)
            self._rise()
        self.done = True

    def _rise(self) -> None:
        self.told.append(self.daemon.directory / f"events-{self.kills}")
        with open(self.told[-1], "wb") as out:
            self._listener = subprocess.Popen(self.daemon.ctr_command("events"), stdout=out,
                stderr=subprocess.DEVNULL, env=self.daemon.env)  # fmt: skip
        self._up.set()

    async def end_listener(self, *, stop: bool = False) -> None:
        assert self._listener is not None
        if stop:
            self._listener.terminate()
        await asyncio.to_thread(self._listener.wait, 20)

    async def step(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do one step while the daemon is up. Raises Lost when it failed and met a kill."""
        await self._up.wait()
        kills = self.kills
        try:
            return await step()
        except (Error, OSError) as error:
            if kills != self.kills:
                raise Lost from error
            raise

    async def surely(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step that may be repeated until it is not lost."""
        while True:
            try:
                return await self.step(step)
            except Lost:
                continue

    async def removal(self, step: Callable[[], Awaitable[T]]) -> T | None:
        """Repeat a removal; None when a lost one had removed it, or the daemon's end had."""
        lost = False
        while True:
            try:
                return await self.step(step)
            except Lost:
                lost = True
            except NotFound:
                if not lost:
                    raise
                return None


class Hands(Protocol):
    """One kind of client. Raises Error, NotFound for what is not there."""

    async def run(self, name: str, script: str) -> None: ...
    async def state(self, name: str) -> State | None: ...
    async def execute(self, name: str, *args: str) -> str: ...
    async def terminate(self, name: str) -> None: ...
    async def forget(self, name: str) -> int: ...
    async def force(self, name: str) -> None: ...
    async def remove(self, name: str) -> None: ...
    async def import_image(self, archive: Path) -> None: ...
    async def remove_image(self, name: str) -> None: ...


class Ctr:
    """The Go client, a process for each step."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def _ctr(self, *words: str) -> tuple[str, str]:
        done = await asyncio.to_thread(self._daemon.try_ctr, *words)
        if done.returncode and "exit with non-zero exit code" not in done.stderr:
            kind = NotFound if "not found" in done.stderr else Error
            raise kind(f"ctr {' '.join(words)}: {done.stderr}")
        return done.stdout, done.stderr

    async def run(self, name: str, script: str) -> None:
        await self._ctr("run", "-d", "--null-io", IMAGE, name, "sh", "-c", script)

    async def state(self, name: str) -> State | None:
        listed = rows((await self._ctr("tasks", "ls"))[0])
        return next(((int(row[1]), row[2]) for row in listed if row[0] == name), None)

    async def execute(self, name: str, *args: str) -> str:
        exec_id = os.urandom(4).hex()
        # A ctr whose daemon dies leaves its FIFOs behind.
        flags = ("--exec-id", exec_id, "--fifo-dir", str(self._daemon.directory))
        return (await self._ctr("tasks", "exec", *flags, name, *args))[0]

    async def terminate(self, name: str) -> None:
        await self._ctr("tasks", "kill", "-s", "TERM", name)

    async def forget(self, name: str) -> int:
        told = re.search(r"non-zero exit code (\d+)", (await self._ctr("tasks", "rm", name))[1])
        return int(told[1]) if told else 0

    async def force(self, name: str) -> None:
        await self._ctr("tasks", "rm", "-f", name)

    async def remove(self, name: str) -> None:
        await self._ctr("containers", "rm", name)

    async def import_image(self, archive: Path) -> None:
        await self._ctr("images", "import", str(archive))

    async def remove_image(self, name: str) -> None:
        await self._ctr("images", "rm", name)


class Library:
    """Our own client, a connection for each step."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        socket, namespace = str(self._daemon.socket), self._daemon.namespace
        async with cradled.connect(socket, namespace=namespace) as client:
            yield client

    @asynccontextmanager
    async def _container(self, name: str) -> AsyncIterator[Container]:
        async with self._client() as client:
            yield await client.containers.get(name)

    async def run(self, name: str, script: str) -> None:
        async with self._client() as client:
            made = await client.containers.create(IMAGE, ["sh", "-c", script], name=name)
            await made.start(output="null")

    async def state(self, name: str) -> State | None:
        async with self._client() as client:
            listed = await client.session.tasks.list()
            return next(((p.pid, p.status.name) for p in listed if p.id == name), None)

    async def execute(self, name: str, *args: str) -> str:
        async with self._container(name) as container:
            process = await (await container.task()).exec(args)
            return (await process.communicate()).stdout.decode()

    async def terminate(self, name: str) -> None:
        async with self._container(name) as container:
            await (await container.task()).kill("TERM")

    async def forget(self, name: str) -> int:
        async with self._container(name) as container:
            return (await (await container.task()).delete()).status

    async def force(self, name: str) -> None:
        async with self._container(name) as container:
            await container.remove(force=True)

    async def remove(self, name: str) -> None:
        async with self._container(name) as container:
            await container.remove()

    async def import_image(self, archive: Path) -> None:
        async with self._client() as client:
            await client.images.import_(archive)

    async def remove_image(self, name: str) -> None:
        async with self._client() as client:
            await client.images.remove(name)


@dataclass
class Life:
    """What was acknowledged of a container: the state it must be in."""

    name: str
    code: int
    hands: Hands
    pid: int = 0
    status: str = "RUNNING"

    @property
    def script(self) -> str:
        return f"trap 'exit {self.code}' TERM; sleep 1000 & wait"


@dataclass
class People:
    """One client that lets containers live, one after another."""

    killer: Killer
    hands: Hands
    name: str
    dice: random.Random
    kept: list[Life] = field(default_factory=list)
    lived: dict[str, int] = field(default_factory=dict)

    async def go_on(self) -> None:
        number = 0
        while not self.killer.done:
            number += 1
            life = Life(f"{self.name}-{number}", self.dice.randint(1, 120), self.hands)
            await self.live(life)

    async def live(self, life: Life) -> None:
        hands, killer, name = self.hands, self.killer, life.name
        try:
            await killer.step(lambda: hands.run(name, life.script))
        except Lost:
            await self.clear_away(name)
            return
        self.lived[name] = life.code
        await self.must_be(life)
        for _ in range(self.dice.randint(0, 2)):
            try:
                assert await killer.step(lambda: hands.execute(name, "echo", "hi")) == "hi\n"
            except Lost:
                await self.must_be(life)
        if self.may_stay(life):
            return
        await self.terminate(life)
        if self.may_stay(life):
            return
        told = await killer.removal(lambda: hands.forget(name))
        assert told in (None, life.code), (life, told)
        await killer.removal(lambda: hands.remove(name))
        assert await killer.surely(lambda: hands.state(name)) is None

    def may_stay(self, life: Life) -> bool:
        """A few are left as they are, to be looked at in the end."""
        if len(self.kept) >= KEPT or self.dice.random() > 0.2:
            return False
        self.kept.append(life)
        return True

    async def must_be(self, life: Life) -> None:
        """The container is in the state that was acknowledged, and so is its process."""
        state = await self.killer.surely(lambda: self.hands.state(life.name))
        assert state is not None, f"{life} is gone"
        life.pid = life.pid or state[0]
        assert state == (life.pid, life.status), (life, state)
        assert os.path.exists(f"/proc/{life.pid}") == (life.status == "RUNNING"), life

    async def terminate(self, life: Life) -> None:
        """Send SIGTERM until it has exited: the first may come before the trap is set.

        None comes before the shell is there: the runtime's init would end by it, with 2.
        """
        shell = Path(f"/proc/{life.pid}/comm")
        await asyncio.to_thread(
            wait_until, lambda: shell.read_text() == "sh\n", "the shell is there"
        )
        while True:
            state = await self.killer.surely(lambda: self.hands.state(life.name))
            assert state is not None, f"{life} is gone"
            if state[1] == "STOPPED":
                break
            try:
                await self.killer.step(lambda: self.hands.terminate(life.name))
            except (Lost, NotFound):
                continue
            await asyncio.sleep(POLL)
        life.status = "STOPPED"
        await self.must_be(life)

    async def clear_away(self, name: str) -> None:
        """Whatever has become of a creation that was lost, it can be removed."""
        for step in (self.hands.force, self.hands.remove):
            try:
                await self.killer.removal(lambda step=step: step(name))  # type: ignore[misc]
            except NotFound:
                continue


@dataclass
class Images:
    """A client that imports images and removes them again."""

    killer: Killer
    hands: list[Hands]
    directory: Path
    dice: random.Random
    kept: dict[str, list[bytes]] = field(default_factory=dict)

    async def go_on(self) -> None:
        number = 0
        while not self.killer.done:
            number += 1
            await self.live(f"docker.io/library/image:{number}", self.dice.choice(self.hands))

    async def live(self, name: str, hands: Hands) -> None:
        archive, blobs = self.make(name)
        try:
            await self.killer.step(lambda: hands.import_image(archive))
        except Lost:
            found = (await self.listed()).count(name)
        else:
            assert name in await self.listed()
            found = 1
        if found:
            self.must_be_whole(name, blobs)
            if len(self.kept) < KEPT and self.dice.random() < 0.2:
                self.kept[name] = blobs
                return
            await self.killer.removal(lambda: hands.remove_image(name))
        assert name not in await self.listed()

    def make(self, name: str) -> tuple[Path, list[bytes]]:
        layers = []
        for _ in range(self.dice.randint(1, 3)):
            layer = LayerTar().directory("d")
            for number in range(20):
                layer.add(f"d/{number}", data=self.dice.randbytes(self.dice.randint(0, 100_000)))
            layers.append(layer.bytes())
        image = TestImage(name, layers)
        archive = image.write_oci_layout(self.directory / "image.tar")
        return archive, list(image.blobs()[0].values())

    async def listed(self) -> list[str]:
        daemon = self.killer.daemon

        async def listed() -> list[str]:
            done = await asyncio.to_thread(daemon.try_ctr, "images", "ls", "-q")
            if done.returncode:
                raise Error(done.stderr)
            return done.stdout.split()

        return await self.killer.surely(listed)

    def must_be_whole(self, name: str, blobs: list[bytes]) -> None:
        """An image that is listed has all its content, whatever was killed."""
        content = self.killer.daemon.root / "io.containerd.content.v1.content/blobs/sha256"
        for blob in blobs:
            digest = hashlib.sha256(blob).hexdigest()
            assert (content / digest).read_bytes() == blob, f"{name}: {digest}"
