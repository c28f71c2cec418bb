"""Async. The restart monitor: keeps containers as their labels say, running or stopped.

It is a client like any other, and knows nothing but labels, so whoever runs next goes on where it
was. An exit is acted on soon after it, a crash loop less and less often; besides, everything is
looked at once an interval, which is what the original does. Who is at work on a container is not
disturbed: a task that disappeared, and labels that have just changed, are given time first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cradled.client.client import Client
from cradled.client.containers import Container
from cradled.client.supervision import set_labels
from cradled.core.containers import Container as Record
from cradled.core.restart import (
    COUNT,
    EXPLICITLY_STOPPED,
    LOG_URI,
    PENDING,
    STATUS,
    Verdict,
    judge,
    restarts,
)
from cradled.core.tasks import Process, Status
from cradled.errors import AlreadyExists, Error, InvalidArgument, NotFound
from cradled.events import topics

log = logging.getLogger(__name__)

_AT_ONCE = 8  # containers started or stopped at a time
_PATIENCE = 120.0  # seconds that one may take
_RETRY = 1.0  # seconds until events are followed again
_AFTER_FAILURE = 0.1
_AFTER_ORDER = 1.0
"""Seconds from an exit to the first restart. Who ordered the exit may be about to delete the task:
that is told apart by the status."""

_ORDERS = (0, *(128 + signal for signal in (1, 2, 3, 9, 15)))
_TOPICS = (topics.TASK_EXIT, topics.TASK_DELETE, topics.CONTAINER_UPDATE, topics.CONTAINER_DELETE)

Key = tuple[str, str]


class Patience:
    """When something may be done to one container. Times are seconds since the epoch."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._delay = 0.0
        self._started = 0.0
        self._exit = 0
        self._not_before = 0.0

    def started(self, now: float) -> None:
        """It was started again."""
        self._started = now

    def failed(self, now: float) -> float:
        """It could not be started or stopped: the seconds until the next attempt."""
        self._slow_down(_AFTER_FAILURE)
        self._not_before = now + self._delay
        return self._delay

    def disappeared(self, now: float) -> None:
        """Somebody has deleted its task, and may go on to delete it."""
        self._not_before = max(self._not_before, now + self._interval / 2)

    def due(self, verdict: Verdict, record: Record, task: Process | None, now: float) -> float:
        """When to do what a container wants; never more than an interval from now."""
        due = self._not_before
        if verdict is Verdict.STOP:
            due = max(due, record.updated_at / 1e9 + self._interval)
        elif task is not None and task.exited_at:
            due = max(due, self._after_exit(task))
        elif PENDING not in record.labels:
            due = max(due, record.updated_at / 1e9 + self._interval / 2)
        return due if due <= now + self._interval else now  # or the clock was set back

    def _after_exit(self, task: Process) -> float:
        if task.exited_at != self._exit:
            self._exit = task.exited_at
            first = _AFTER_ORDER if task.exit_status in _ORDERS else _AFTER_FAILURE
            if task.exited_at / 1e9 - self._started < self._interval:
                self._slow_down(first)
            else:
                self._delay = first
        return task.exited_at / 1e9 + self._delay

    def _slow_down(self, first: float) -> None:
        self._delay = min(max(first, 2 * self._delay), self._interval)


class _Watch:
    """A container that is looked after."""

    def __init__(self, interval: float) -> None:
        self.patience = Patience(interval)
        self.complained = False
        self.again = False  # something happened while it is worked on
        self.timer: asyncio.TimerHandle | None = None
        self.work: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self.timer is not None or self.work is not None

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Monitor:
    """Looks after the containers of all namespaces; ``interval`` is in seconds."""

    def __init__(self, client: Client, interval: float) -> None:
        self._client = client
        self._interval = interval
        self._clients: dict[str, Client] = {}
        self._watches: dict[Key, _Watch] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)

    @property
    def busy(self) -> bool:
        """Whether a container is about to be started or stopped."""
        return any(watch.busy for watch in self._watches.values())

    async def run(self) -> None:
        """Until no container wants anything any more."""
        follower = asyncio.create_task(self._follow())
        try:
            while await self._reconcile():  # noqa: ASYNC110 - it polls what others own
                await asyncio.sleep(self._interval)
        finally:
            works = [watch.work for watch in self._watches.values() if watch.work is not None]
            for watch in self._watches.values():
                watch.cancel()
            for task in (follower, *works):
                task.cancel()
            await asyncio.gather(follower, *works, return_exceptions=True)

    # What is seen

    async def _reconcile(self) -> bool:
        """Look at all containers; False when there are none for us."""
        try:
            names = [name for name, _ in await self._client.namespaces.list()]
            found: set[Key] = set()
            for name in names:
                found |= await self._look_into(name)
        except Error as error:
            log.warning("cannot look after containers: %s", error)
            return True
        for key in self._watches.keys() - found:
            if not self._watches[key].busy:
                del self._watches[key]
        self._clients = {name: self._clients[name] for name in names if name in self._clients}
        return bool(self._watches)

    async def _look_into(self, namespace: str) -> set[Key]:
        client = self._within(namespace)
        containers = await client.containers.list(f'labels."{STATUS}"')
        if not containers:
            return set()
        tasks = {task.id: task for task in await client.session.tasks.list()}
        for container in containers:
            key = (namespace, container.id)
            watch = self._watch(key)
            if not watch.busy:
                verdict, wait = self._judge(watch, container.record, tasks.get(container.id))
                if verdict is not Verdict.NOTHING:
                    self._later(key, watch, wait)
        return {(namespace, container.id) for container in containers}

    async def _follow(self) -> None:
        """Hear of what happens to containers, as soon as it does."""
        filters = [f'topic=="{topic}"' for topic in _TOPICS]
        while True:
            try:
                async for event in self._client.events(*filters):
                    self._happened(event.namespace, event.topic, event.fields)
            except Error as error:
                log.warning("cannot follow events: %s", error)
            await asyncio.sleep(_RETRY)

    def _happened(self, namespace: str, topic: str, fields: Mapping[str, Any]) -> None:
        id = str(fields.get("container_id") or fields.get("id", ""))
        key = (namespace, id)
        watch = self._watches.get(key)
        if topic == topics.CONTAINER_DELETE:
            if watch is not None:
                watch.cancel()
        elif topic == topics.TASK_DELETE:
            if watch is not None and watch.work is None and fields.get("id", id) == id:
                watch.patience.disappeared(time.time())
                self._begin(key)
        elif topic == topics.CONTAINER_UPDATE:
            if watch is not None or STATUS in fields.get("labels", ()):
                self._begin(key)
        elif fields.get("id") == id:
            self._begin(key)

    def _watch(self, key: Key) -> _Watch:
        return self._watches.setdefault(key, _Watch(self._interval))

    def _within(self, namespace: str) -> Client:
        if namespace not in self._clients:
            self._clients[namespace] = self._client.within(namespace)
        return self._clients[namespace]

    # What is to be done, and when

    def _judge(self, watch: _Watch, record: Record, task: Process | None) -> tuple[Verdict, float]:
        """What is to be done, and in how many seconds."""
        try:
            verdict = judge(record.labels, task)
        except InvalidArgument as error:
            if not watch.complained:
                log.warning('container "%s" is not looked after: %s', record.id, error)
            watch.complained = True
            return Verdict.NOTHING, 0
        if verdict is Verdict.NOTHING:
            return verdict, 0
        now = time.time()
        return verdict, watch.patience.due(verdict, record, task, now) - now

    def _later(self, key: Key, watch: _Watch, seconds: float) -> None:
        watch.cancel()
        loop = asyncio.get_running_loop()
        watch.timer = loop.call_later(max(seconds, 0), self._begin, key)

    def _begin(self, key: Key) -> None:
        """Look at one container now, or when the work on it is done."""
        watch = self._watch(key)
        watch.cancel()
        if watch.work is None:
            watch.work = asyncio.create_task(self._work(key, watch))
        else:
            watch.again = True

    async def _work(self, key: Key, watch: _Watch) -> None:
        try:
            async with self._turn, asyncio.timeout(_PATIENCE):
                if not await self._look_at(key, watch):
                    del self._watches[key]
                    return
        except (Error, TimeoutError) as error:
            log.warning('container "%s" in "%s": %s', key[1], key[0], error or "takes too long")
            self._later(key, watch, watch.patience.failed(time.time()))
        finally:
            watch.work = None
        if watch.again:
            watch.again = False
            self._begin(key)

    async def _look_at(self, key: Key, watch: _Watch) -> bool:
        """Do what has to be done to a container; False when it is none of ours."""
        client = self._within(key[0])
        try:
            container = await client.containers.get(key[1])
        except NotFound:
            return False
        if STATUS not in container.record.labels:
            return False
        try:
            task = await client.session.tasks.get(container.id)
        except NotFound:
            task = None
        verdict, wait = self._judge(watch, container.record, task)
        if verdict is not Verdict.NOTHING and wait > 0:
            self._later(key, watch, wait)
        elif verdict is Verdict.STOP:
            await _end(container)
        elif verdict is Verdict.START:
            await self._start(client, container, task)
            watch.patience.started(time.time())
        return True

    async def _start(self, client: Client, container: Container, task: Process | None) -> None:
        labels = container.record.labels
        begun = {COUNT: str(restarts(labels) + 1), PENDING: "1"}
        await set_labels(client.session, container.record, begun)
        log.info('restarting container "%s" in "%s"', container.id, client.session.scope.namespace)
        if task is not None:
            with suppress(NotFound):
                await _end(container)
        with suppress(AlreadyExists):  # a client was faster
            made = await container.create_task(output=labels.get(LOG_URI) or "null")
            await made.start()
        now = await set_labels(client.session, container.record, {PENDING: ""})
        if STATUS not in now.labels and EXPLICITLY_STOPPED in now.labels:  # stopped meanwhile
            await _end(container)


async def _end(container: Container) -> None:
    """Kill a task, unless it has exited, and delete it."""
    task = await container.task()
    if (await task.state()).status != Status.STOPPED:
        with suppress(NotFound):  # it exits by itself just now
            await task.kill("KILL", all=True)
        await task.wait()
    await task.delete()
