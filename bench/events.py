"""Events to many subscribers.

Twenty subscribers, each with a connection and the filter that dockerd has, listen from a process
of their own; a publisher calls ``Publish`` with one call in flight, then with sixteen. Subscribers
keep the bytes they get and look at nothing but a mark in the last event; what they got is counted
when the clock has stopped. Also measured: how long one event takes to one idle subscriber.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.report import Report, interleaved
from bench.rpc import Client, cpu, request_frames
from bench.targets import Target
from bench.workloads import Bench
from cradled.api import events_pb2, events_service_pb2, wellknown_pb2
from cradled.http2 import frames

PUBLISH = events_service_pb2.Events.methods["Publish"].path
SUBSCRIBE = events_service_pb2.Events.methods["Subscribe"].path
FILTER = "namespace==bench,topic~=|^/tasks/|"
HELLO, EVENT, LAST = "/tasks/hello", "/tasks/exit", "/tasks/last"
SUBSCRIBERS = 20
EVENTS = 5000  # of each sample


def publish_frames(topic: str) -> object:
    event = events_pb2.TaskExit(
        container_id="a" * 64,
        id="a" * 64,
        pid=12345,
        exit_status=137,
        exited_at=wellknown_pb2.Timestamp(seconds=1_700_000_000, nanos=123_456_789),
    )
    any_ = wellknown_pb2.Any(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString())
    request = events_service_pb2.PublishRequest(topic=topic, event=any_)
    return request_frames(PUBLISH, request.SerializeToString())


# The subscribers' process


class Subscriber:
    """A connection that keeps what comes."""

    def __init__(self, path: Path) -> None:
        request = events_service_pb2.SubscribeRequest(filters=[FILTER])
        make = request_frames(SUBSCRIBE, request.SerializeToString())
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.sock.sendall(Client.HELLO + make(1))  # type: ignore[operator]
        self.pieces: list[bytes] = []

    def read(self) -> bytes:
        """New bytes, behind the end of those before: a mark may lie across."""
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the daemon hung up")
        tail = self.pieces[-1][-64:] if self.pieces else b""
        self.pieces.append(data)
        return tail + data

    def messages(self) -> int:
        """How many events came."""
        data, at, body = b"".join(self.pieces), 0, []
        while len(data) - at >= frames.HEAD_SIZE:
            word, _, _ = frames.HEAD.unpack_from(data, at)
            end = at + frames.HEAD_SIZE + (word >> 8)
            if word & 0xFF == frames.DATA:
                body.append(data[at + frames.HEAD_SIZE : end])
            at = end
        joined, at, count = b"".join(body), 0, 0
        while at < len(joined):
            at += 5 + int.from_bytes(joined[at + 1 : at + 5], "big")
            count += 1
        return count


def listen(path: Path, count: int) -> None:
    """Subscribe; say when all have heard hello, when all have heard the last, and what they got."""
    subscribers = [Subscriber(path) for _ in range(count)]
    with selectors.DefaultSelector() as selector:
        for subscriber in subscribers:
            selector.register(subscriber.sock, selectors.EVENT_READ, subscriber)
        for mark in (HELLO.encode(), LAST.encode()):
            missing = set(subscribers)
            while missing:
                for key, _ in selector.select():
                    if mark in key.data.read():
                        missing.discard(key.data)
            print(time.monotonic(), flush=True)
    print(*(subscriber.messages() for subscriber in subscribers), flush=True)


# The publisher


def publish(client: Client, make: object, count: int, concurrency: int) -> None:
    """So many calls, so many of them at a time."""
    issued = ended = 0
    while ended < count:
        out = []
        while issued < count and issued - ended < concurrency:
            out.append(make(client.take_id()))  # type: ignore[operator]
            issued += 1
        if out:
            client.sock.sendall(b"".join(out))
        for kind, flags, *_ in client.frames():
            ended += kind == frames.HEADERS and bool(flags & frames.END_STREAM)


def fan_out(path: Path, count: int, concurrency: int) -> float:
    """Seconds until all subscribers had all events."""
    command = [sys.executable, "-m", "bench.events", str(path)]
    client = Client(path)
    hello = publish_frames(HELLO)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            greetings = 0
            while not selector.select(0.02):
                publish(client, hello, 1, 1)
                greetings += 1
        process.stdout.readline()
        began = time.monotonic()
        publish(client, publish_frames(EVENT), count, concurrency)
        publish(client, publish_frames(LAST), 1, 1)
        elapsed = float(process.stdout.readline()) - began
        got = [int(word) for word in process.stdout.readline().split()]
    client.close()
    if not all(count + 2 <= number <= count + 1 + greetings for number in got):
        raise RuntimeError(f"{count} events and {greetings} greetings, but they got {got}")
    return elapsed


def latencies(path: Path, count: int) -> list[float]:
    """Seconds from the call to the event at the one subscriber, one event at a time."""
    client, subscriber = Client(path), Subscriber(path)
    make, found = publish_frames(EVENT), []
    subscriber.sock.settimeout(0.05)
    while True:  # until it is there
        publish(client, make, 1, 1)
        try:
            while EVENT.encode() not in subscriber.read():
                pass
            break
        except TimeoutError:
            continue
    subscriber.sock.settimeout(5)
    for _ in range(count):
        time.sleep(0.002)
        began = time.perf_counter()
        client.sock.sendall(make(client.take_id()))  # type: ignore[operator]
        subscriber.pieces.clear()
        while EVENT.encode() not in subscriber.read():
            pass
        found.append(time.perf_counter() - began)
        while not any(k == frames.HEADERS and f & 1 for k, f, *_ in client.frames()):
            pass
    for sock in (client.sock, subscriber.sock):
        sock.close()
    return found


def measure(report: Report, targets: dict[str, Target], rounds: int) -> None:
    for number, name in interleaved(targets, rounds):
        target = targets[name]
        assert target.process is not None
        found = latencies(target.socket, 100)
        if number >= 0:
            report.add("events: to one subscriber, p50", "us", name, statistics.median(found) * 1e6)
        for concurrency in (1, 16):
            before = cpu(target.process.pid)
            elapsed = fan_out(target.socket, EVENTS, concurrency)
            used = cpu(target.process.pid) - before
            if number < 0:
                continue
            at = f"events: {SUBSCRIBERS} subscribers, publisher c={concurrency}"
            deliveries = EVENTS * SUBSCRIBERS
            report.add(f"{at}: deliveries", "1/s", name, deliveries / elapsed)
            report.add(f"{at}: CPU per delivery", "us", name, used / deliveries * 1e6)


async def events(bench: Bench) -> None:
    """Events to twenty subscribers, and to one."""
    await bench.up(image=False)
    rounds = max(3, bench.rounds // 4)
    await asyncio.to_thread(measure, bench.report, bench.targets, rounds)


if __name__ == "__main__":
    listen(Path(sys.argv[1]), SUBSCRIBERS)
