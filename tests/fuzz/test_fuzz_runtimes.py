"""What a runtime says to the shim: its log, its pid files, its notes about a container, what ``ps``
and ``features`` print. Nonsense is an error that is documented, or as good as nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.corpus import fuzz, replay
from hypothesis import given
from hypothesis import strategies as st

from cradled.errors import Error
from cradled.linux import capture, direct, leftovers, plain_json
from cradled.linux.coroutines import Future, Loop
from cradled.shim import bundle, messages, runc

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below),
    max_leaves=12,
)
WOUNDS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3)


def wounded(data: bytes, wounds: list[tuple[int, int]]) -> bytes:
    """Bytes changed here and there; a place beyond the end cuts it short."""
    out = bytearray(data)
    for place, byte in wounds:
        if place < len(out):
            out[place] = byte
        elif out:
            del out[place % len(out) :]
    return bytes(out)


@contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def outcome(function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """What a function returns, or the text of its error."""
    try:
        return function(*args), ""
    except Error as error:
        return None, str(error) or "nothing"


# The log

LINES = st.one_of(
    st.text(max_size=40),
    JSON.map(json.dumps),
    st.fixed_dictionaries({"level": st.sampled_from(["error", "warning"]) | JSON, "msg": JSON}).map(
        json.dumps
    ),
    st.just("[" * 100_000),
)


@fuzz(200)
@given(st.lists(LINES, max_size=6))
def test_logs(lines: list[str]) -> None:
    """The last error counts, whatever is around it."""
    assert isinstance(runc.last_error("\n".join(lines)).encode(), bytes)
    said = json.dumps({"level": "error", "msg": " why \n"})
    harmless = [line for line in lines if '"level"' not in line]
    assert runc.last_error("\n".join([*lines, said, *harmless])) == "why"


# Pid files


@fuzz(200)
@given(st.binary(max_size=30) | st.integers().map(lambda n: str(n).encode()))
def test_pid_files(data: bytes) -> None:
    with directory() as place:
        (place / "pid").write_bytes(data)
        pid, refusal = outcome(bundle.read_pid, f"{place}/pid")
        assert refusal.isprintable()
        assert refusal or pid == int(data) > 0


# What ps and features print


@fuzz(200)
@given(
    st.binary(max_size=60) | (JSON | st.lists(st.integers())).map(lambda x: json.dumps(x).encode())
)
def test_processes(printed: bytes) -> None:
    pids, refusal = outcome(runc.pids, printed)
    if refusal:
        assert refusal.startswith("OCI runtime ps failed: ")
        assert refusal.isprintable()
    else:
        assert pids == (json.loads(printed) or [])
        assert all(pid > 0 for pid in pids)


@fuzz(100)
@given(st.binary(max_size=6000))
def test_what_is_shown_of_it(printed: bytes) -> None:
    assert capture.line(printed).isprintable()
    assert len(capture.line(printed)) <= 4096


@fuzz(300)
@given(JSON.map(json.dumps) | st.text(max_size=40), st.text(max_size=3))
def test_objects_are_read_as_by_the_package(text: str, rest: str) -> None:
    try:
        found = json.loads(text)
    except ValueError:
        plain_json.parse(text)
        return
    expected = found if isinstance(found, dict) and text.startswith("{") else {}
    assert plain_json.parse(text) == plain_json.parse(text + rest) == expected


@fuzz(300)
@given(JSON, JSON, st.text(max_size=5), st.booleans())
def test_a_member_is_read_without_the_rest(before: Any, value: Any, name: str, dense: bool) -> None:
    """Text that only looks like it is in quotes of its own."""
    key = f"the {name}"
    text = json.dumps(
        {"a": [before, f'"{key}":1'], "b": {key: value}, "c": before},
        separators=(",", ":") if dense else None, ensure_ascii=False,
    )  # fmt: skip
    if json.dumps(key, ensure_ascii=False) == f'"{key}"':
        assert plain_json.member(text, key) == value
    with pytest.raises(KeyError):
        plain_json.member(text, f"not {key}")
    with pytest.raises(KeyError):
        plain_json.member(f'{{"{key}":', key)


# Notes about a container

RUNC = {
    "id": "c",
    "init_process_pid": 1,
    "config": {"cgroups": {"path": "/n/c", "Systemd": False}, "Hooks": {"poststop": []}},
    "cgroup_paths": {"cpu": "{cpu}", "pids": "{pids}"},
    "rootless": False,
    "intel_rdt_path": "",
}
CRUN = {
    "pid": 1,
    "cgroup-path": "/n/c",
    "scope": None,
    "intelrdt": None,
    "systemd-cgroup": False,
    "detached": True,
}
KEYS = st.sampled_from([*RUNC, *CRUN, "cgroups", "Systemd", "Hooks", "poststop", "poststart"])


@st.composite
def notes(draw: st.DrawFn, whole: dict[str, Any]) -> bytes:
    """A runtime's notes with something changed, at any depth, or damaged as bytes."""
    changed = json.loads(json.dumps(whole))
    for key, value in draw(st.dictionaries(KEYS, JSON, max_size=2)).items():
        for where in [x for x in (changed, *changed.values()) if isinstance(x, dict)]:
            if key in where or draw(st.booleans()):
                where[key] = value
    return wounded(json.dumps(changed).encode(), draw(WOUNDS))


def run(loop: Loop, work: Coroutine[Future, None, bool]) -> bool:
    """The result of what does not wait for anything."""
    task = loop.spawn(work)
    while loop.ready:
        tasks, loop.ready = loop.ready, []
        for each in tasks:
            each.step()
    assert task.done
    with pytest.raises(StopIteration) as caught:
        task.__await__().send(None)
    return bool(caught.value.value)


@fuzz(150)
@given(notes(RUNC))
def test_notes_of_runc(state: bytes) -> None:
    """They are followed, or left as they are; what is not named in them is never touched."""
    with directory() as place:
        groups = {name: place / "groups" / name for name in ("cpu", "pids", "other")}
        for path in groups.values():
            path.mkdir(parents=True)
        kept = place / "runc" / "c"
        kept.mkdir(parents=True)
        for name in ("cpu", "pids"):
            state = state.replace(f"{{{name}}}".encode(), str(groups[name]).encode())
        (kept / "state.json").write_bytes(state)
        container = direct.of("runc", str(kept))
        assert container is not None
        assert run(Loop(pytest.fail), container.start(Loop(pytest.fail), Future())) is False
        assert container.delete() == (not kept.exists())
        assert groups["other"].exists()
        assert kept.parent.exists()


def test_whole_notes_of_runc_are_followed(tmp_path: Path) -> None:
    """Or else what is above would prove nothing."""
    kept, group = tmp_path / "c", tmp_path / "group"
    kept.mkdir()
    group.mkdir()
    state = RUNC | {"cgroup_paths": {"cpu": str(group), "gone": f"{tmp_path}/gone"}}
    (kept / "state.json").write_text(json.dumps(state))
    container = direct.of("runc", str(kept))
    assert container is not None
    assert container.delete()
    assert os.listdir(tmp_path) == []


@fuzz(100)
@given(notes(CRUN), notes({"ociVersion": "1.0", "hooks": {"poststop": []}}))
def test_notes_of_crun(status: bytes, config: bytes) -> None:
    with directory() as place:
        kept = place / "c"
        kept.mkdir()
        (kept / "status").write_bytes(status)
        (kept / "config.json").write_bytes(config)
        container = direct.of("crun", str(kept))
        assert container is not None
        assert run(Loop(pytest.fail), container.start(Loop(pytest.fail), Future())) is False
        assert container.delete() == (not kept.exists())


# The bundle, as ``delete`` finds it


@fuzz(150)
@given(
    notes({"binary_name": "runc", "root": "/r", "systemd_cgroup": True}),
    notes({"pid": 1, "exit_status": 2, "exited_at": 3}),
    notes({"linux": {"cgroupsPath": "/n/c"}}),
)
def test_bundles(options: bytes, end: bytes, spec: bytes) -> None:
    with directory() as place:
        (place / "options.json").write_bytes(options)
        (place / "exit.json").write_bytes(end)
        (place / "config.json").write_bytes(spec)
        found = bundle.load_options(str(place), messages.Options())
        blank = messages.Options()
        for name, _, _ in blank.FIELDS.values():
            assert type(getattr(found, name)) is type(getattr(blank, name))
        told = bundle.load_exit(str(place))
        assert told is None or all(type(number) is int for number in told)
        bundle.group_annotations(str(place))
        assert leftovers.remove(str(place), "c", f"{place}/notes")


@replay("runtimes")
def test_kept_cases(data: bytes) -> None:
    """Whatever it was meant to be."""
    runc.last_error(data.decode(errors="replace")).encode()
    with directory() as place:
        for name in ("state.json", "status", "config.json", "options.json", "exit.json", "pid"):
            (place / name).write_bytes(data)
        for name in ("runc", "crun"):
            container = direct.of(name, str(place))
            assert container is not None
            container.delete()
        bundle.load_options(str(place), messages.Options())
        bundle.load_exit(str(place))
        outcome(bundle.read_pid, f"{place}/pid")
        outcome(runc.pids, data)
