"""What lives and crowds are measured on: a daemon by its API, or a bare runtime."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple, Protocol

from bench.bare import Bare
from bench.container import Life, whole_exec, whole_life
from bench.targets import Target
from cradled.errors import Error

LONG = ["sleep", "100000"]


class Subject(Protocol):
    """Times are milliseconds, by phase where there are several."""

    @property
    def name(self) -> str: ...

    def cpu(self) -> float:
        """Seconds so far, containers' own processes left out."""

    async def life(self) -> dict[str, float]:
        """A container that does nothing, from nothing to nothing."""

    async def exec(self) -> dict[str, float]:
        """A process that does nothing, in a container that runs already."""

    async def many(self, concurrency: int, count: int) -> float:
        """Seconds of so many lives, so many of them at a time."""

    async def burst(self, count: int) -> tuple[list[float], int]:
        """From the same moment until each of many runs; and how many failed to."""

    async def probes(self, count: int, seconds: int) -> Probes:
        """Execs, one a second in each of many containers."""


class Probes(NamedTuple):
    """Milliseconds of each exec; the seconds it all took; and the CPU seconds."""

    times: list[float]
    elapsed: float
    used: float


class Daemon:
    """A daemon, asked over one connection."""

    def __init__(self, target: Target, chain: str) -> None:
        self.target, self._chain = target, chain
        self._kept: Life | None = None

    @property
    def name(self) -> str:
        return self.target.name

    def cpu(self) -> float:
        return self.target.cpu()

    async def life(self) -> dict[str, float]:
        return await whole_life(self.target, self._chain)

    async def exec(self) -> dict[str, float]:
        if self._kept is None:
            self._kept = await self.started()
        return await whole_exec(self._kept)

    async def many(self, concurrency: int, count: int) -> float:
        waiting = iter(range(count))

        async def worker() -> None:
            for _ in waiting:
                await self.life()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return time.perf_counter() - began

    async def burst(self, count: int) -> tuple[list[float], int]:
        lives = [Life(self.target, self._chain, LONG) for _ in range(count)]
        began = time.perf_counter()

        async def one(life: Life) -> float:
            await life.start()
            return (time.perf_counter() - began) * 1e3

        found = await asyncio.gather(*map(one, lives), return_exceptions=True)
        times = []
        for result in found:
            if isinstance(result, float):
                times.append(result)
            elif not isinstance(result, Error):
                raise result
        ran = [life for life, result in zip(lives, found, strict=True) if result in times]
        await ended(ran)
        return times, count - len(times)

    async def probes(self, count: int, seconds: int) -> Probes:
        lives = [await self.started() for _ in range(count)]
        clock = time.perf_counter
        began, before = clock(), self.cpu()

        async def probe(number: int, life: Life) -> list[float]:
            times, due = [], began + number / count
            for _ in range(seconds):
                await asyncio.sleep(max(0.0, due - clock()))
                due += 1
                times.append(sum((await whole_exec(life)).values()))
            return times

        found = await asyncio.gather(*(probe(*each) for each in enumerate(lives)))
        elapsed, used = clock() - began, self.cpu() - before
        await ended(lives)
        return Probes([took for times in found for took in times], elapsed, used)

    async def started(self) -> Life:
        """A container that stays."""
        life = Life(self.target, self._chain, LONG)
        await life.start()
        return life

    async def aclose(self) -> None:
        if self._kept is not None:
            await self._kept.kill()


class BareRuntime:
    """A runtime without a daemon; its figures stand in the column ``bare``."""

    name = "bare"

    def __init__(self, bare: Bare) -> None:
        self._bare = bare
        self._kept = ""

    def cpu(self) -> float:
        return self._bare.cpu()

    async def life(self) -> dict[str, float]:
        return dict(await self._bare.ask("life"))

    async def exec(self) -> dict[str, float]:
        if not self._kept:
            self._kept = await self._bare.ask("keep")
        return dict(await self._bare.ask("exec", self._kept))

    async def many(self, concurrency: int, count: int) -> float:
        return float(await self._bare.ask("many", concurrency, count))

    async def burst(self, count: int) -> tuple[list[float], int]:
        return await self._bare.ask("burst", count), 0

    async def probes(self, count: int, seconds: int) -> Probes:
        names = [await self._bare.ask("keep") for _ in range(count)]
        before = self.cpu()
        times, elapsed = await self._bare.ask("probe", names, seconds)
        used = self.cpu() - before
        for name in names:
            await self._bare.ask("drop", name)
        return Probes(times, elapsed, used)

    async def aclose(self) -> None:
        if self._kept:
            await self._bare.ask("drop", self._kept)


async def ended(lives: list[Life], at_once: int = 8) -> None:
    """Kill containers and remove all that is theirs."""
    waiting = iter(lives)

    async def worker() -> None:
        for life in waiting:
            await life.kill()

    await asyncio.gather(*(worker() for _ in range(at_once)))
