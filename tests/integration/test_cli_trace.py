"""``cradle trace``: the steps of real work, as a real daemon tells them."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cradle import IMAGE, Cradle, running_cradle

import cradled
from cradled import spans

GO_SHIM = "/usr/bin/containerd-shim-runc-v2"
REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def cradle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cradle]:
    with running_cradle(tmp_path_factory.mktemp("c")) as cradle:
        cradle.ok("run", "--name", "traced", IMAGE, "true")
        yield cradle
        cradle.remove_containers()


def traces(cradle: Cradle, *flags: str) -> list[Any]:
    found: list[Any] = json.loads(cradle.ok("trace", "last", *flags, "--json"))
    return found


def spans_of(cradle: Cradle, name: str) -> list[dict[str, Any]]:
    """Those of the only trace that has a step of this name."""
    (found,) = [
        one["spans"]
        for one in traces(cradle, "100", "--all")
        if any(span["name"].endswith(name) for span in one["spans"])
    ]
    return list(found)


def the_one(cradle: Cradle, name: str) -> dict[str, dict[str, Any]]:
    """The same by their names, of those with the same name the last; services' are short."""
    return {
        span["name"].rpartition(".")[2] if "/" in span["name"] else span["name"]: span
        for span in spans_of(cradle, name)
    }


def test_creating_a_task_step_by_step(cradle: Cradle) -> None:
    steps = the_one(cradle, "Tasks/Create")
    parents = {span["id"]: name for name, span in steps.items()}
    above = {name: parents.get(span["parent"], "") for name, span in steps.items()}
    assert {
        "bundle.create": "Tasks/Create",
        "shim.start": "Tasks/Create",
        "zygote.fork": "shim.start",
        "shim.connect": "shim.start",
        "shim.Create": "Tasks/Create",
    }.items() <= above.items()
    create = steps["Tasks/Create"]
    assert create["attributes"]["namespace"] == cradle.daemon.namespace
    assert all(
        create["start"] <= steps[name]["start"] <= steps[name]["end"] <= create["end"]
        for name, parent in above.items()
        if parent == "Tasks/Create"
    )


def test_writes_say_what_they_waited_for(cradle: Cradle) -> None:
    steps = the_one(cradle, "Containers/Create")
    assert {"metadata.queue", "metadata.apply", "metadata.fsync"} <= steps.keys()


def test_an_import_step_by_step(cradle: Cradle) -> None:
    found = spans_of(cradle, "import.read")
    names = {span["name"] for span in found}
    assert {"content.commit", "content.fsync", "unpack", "snapshot.commit"} <= names
    applies = {span["id"]: span for span in found if span["name"] == "unpack.apply"}
    for name in ("layer.write", "layer.decompress"):
        steps = [span for span in found if span["name"] == name]
        assert {span["parent"] for span in steps} == applies.keys()
        for step in steps:
            apply = applies[step["parent"]]
            assert apply["start"] <= step["start"] <= step["end"] <= apply["end"]
    assert float(steps[0]["attributes"]["busy"].removesuffix(" ms")) > 0


def test_a_command_is_one_trace(cradle: Cradle) -> None:
    (found,) = [
        one
        for one in traces(cradle, "100")
        if any(span["name"].endswith("Tasks/Start") for span in one["spans"])
    ]
    names = [span["name"].rpartition(".")[2] for span in found["spans"]]
    assert {"Containers/Create", "Tasks/Create", "Tasks/Start"} <= {*names}
    known = {span["id"] for span in found["spans"]}
    outermost = {span["parent"] for span in found["spans"] if span["parent"] not in known}
    assert len(outermost) == 1


def test_who_started_a_command_may_have_a_trace(cradle: Cradle) -> None:
    traced = Cradle(cradle.daemon, cradle.home)
    traced.env["TRACEPARENT"] = REMOTE
    traced.ok("tag", IMAGE, "docker.io/library/other:tag")
    found = {one["id"]: one for one in traces(cradle, "10")}["0af7651916cd43dd8448eb211c80319c"]
    assert any(span["name"] == "metadata.fsync" for span in found["spans"])


def test_the_slowest_come_first(cradle: Cradle) -> None:
    found = traces(cradle, "5", "--slowest")
    durations = [
        max(span["end"] for span in one["spans"]) - min(span["start"] for span in one["spans"])
        for one in found
    ]
    assert len(durations) == 5
    assert durations == sorted(durations, reverse=True)
    assert durations[0] > 1_000_000


def test_lines_in_a_pipe(cradle: Cradle) -> None:
    lines = [line.split("\t") for line in cradle.ok("trace", "last", "2").splitlines()]
    assert {len(fields) for fields in lines} == {6}
    assert len({fields[0] for fields in lines}) == 2
    assert {fields[1] for fields in lines} >= {"0", "1"}


def test_bars_on_a_terminal(cradle: Cradle) -> None:
    controller, terminal = pty.openpty()
    os.set_blocking(controller, False)
    with open(controller, "rb", buffering=0) as screen:
        process = cradle.popen("trace", "last", "20", stdout=terminal)
        os.close(terminal)
        shown = b""
        while process.poll() is None or shown[-1:] != b"\n":
            try:
                shown += screen.read(1 << 16) or b""
            except OSError:
                break
    assert process.wait() == 0
    assert "Tasks/Create" in shown.decode()
    assert "█" in shown.decode()


def test_another_daemon_keeps_none(cradle: Cradle) -> None:
    done = cradle.run("trace", "last", "--address", "/nowhere/at/all.sock")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


async def test_a_shim_written_in_go_is_handed_the_span(cradle: Cradle) -> None:
    """It goes on with the trace if it is told to; here it must at least not mind."""
    address, namespace = str(cradle.daemon.socket), cradle.daemon.namespace
    async with cradled.connect(address, namespace=namespace) as client:
        with spans.program("program"):
            await client.run(IMAGE, ["true"], runtime=GO_SHIM)
            identity = f"{spans.current().trace_id:032x}"  # type: ignore[union-attr]
        found = {one.id: one for one in await client.trace(last=20)}[identity]
    shim = {span.name: span for span in found.spans if span.name.startswith("shim.")}
    assert {"shim.start", "shim.Create", "shim.Start", "shim.Delete"} <= shim.keys()
    assert {span.error for span in shim.values()} == {""}


async def test_a_runtime_in_process_tells_the_same(tmp_path: Path) -> None:
    spans.clear()  # of this process: other tests have runtimes in it too
    async with cradled.Runtime(tmp_path / "root", tmp_path / "state") as client:
        await client.namespaces.create("traced", {})
        (trace,) = [one for one in await client.trace(last=50) if "Create" in one.spans[0].name]
    names = [span.name for span in trace.spans]
    assert names[0] == "containerd.services.namespaces.v1.Namespaces/Create"
    assert names[1:] == ["metadata.queue", "metadata.apply", "metadata.fsync"]
    assert 0 < trace.spans[3].seconds < trace.seconds
