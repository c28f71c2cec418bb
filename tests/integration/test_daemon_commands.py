"""The daemon program's other commands."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness.daemon import Daemon, target

from cradled.api import events_service_pb2 as pb
from cradled.api.wellknown_pb2 import Any
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub

PROGRAM = str(Path(sys.executable).parent / "cradled")


def call(
    directory: Path, *words: str, program: str = PROGRAM, input: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, *words], capture_output=True, timeout=30, check=False, cwd=directory, input=input
    )


def test_migrate_of_the_default_is_the_default(tmp_path: Path) -> None:
    default = call(tmp_path, "config", "default").stdout
    (tmp_path / "c.toml").write_bytes(default)
    assert call(tmp_path, "config", "migrate", "c.toml").stdout == default
    assert call(tmp_path, "-c", "c.toml", "config", "migrate").stdout == default
    assert call(tmp_path, "-c", "c.toml", "config", "dump").stdout == default
    checked = call(tmp_path, "--strict", "config", "check", "c.toml")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_migrate_keeps_what_nobody_here_knows(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'version = 2\n[plugins."io.containerd.nri.v1.nri"]\nsocket_path = "/x"\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "native"\n'
    )
    assert call(tmp_path, "config", "migrate", "c.toml").stdout.decode() == (
        "version = 4\n\n[plugins]\n\n"
        '[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "native"\n\n'
        '[plugins."io.containerd.cri.v1.runtime"]\n\n'
        '[plugins."io.containerd.cri.v1.runtime".containerd]\n\n'
        '[plugins."io.containerd.nri.v1.nri"]\nsocket_path = "/x"\n'
    )
    dumped = call(tmp_path, "-c", "c.toml", "config", "dump").stdout.decode()
    assert '[plugins."io.containerd.nri.v1.nri"]\nsocket_path = "/x"\n' in dumped


def test_check_tells_every_problem_and_its_status(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('rott = "x"\n')
    checked = call(tmp_path, "config", "check", "c.toml")
    text = 'warning: Ignoring unknown key in TOML: rott (did you mean "root"?)'
    assert (checked.returncode, checked.stdout.decode()) == (0, f"{tmp_path}/c.toml:1: {text}\n")
    assert call(tmp_path, "--strict", "config", "check", "c.toml").returncode == 1
    (tmp_path / "c.toml").write_text('rott = "x"\nroot = 1\nstate = 2\n')
    checked = call(tmp_path, "config", "check", "c.toml")
    assert checked.returncode == 1
    assert len(checked.stdout.splitlines()) == 3
    started = call(tmp_path, "-c", "c.toml")
    assert started.returncode == 1
    assert b'"root" wants a text' in started.stderr
    assert b'"state" wants a text' in started.stderr
    assert call(tmp_path, "config", "check", "none.toml").returncode == 1


@pytest.fixture
def running(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


async def test_publish(running: Daemon, tmp_path: Path) -> None:
    program = "containerd" if target() == "containerd" else PROGRAM
    event = Any(type_url="types/of.mine", value=b"\x00\x01")
    await asyncio.to_thread(running.start)
    try:
        channel = await grpc_client.connect(str(running.socket))
        events = Stub(channel, pb.Events).subscribe(
            pb.SubscribeRequest(filters=['topic=="/mine/thing"'])
        )
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        address = ("--address", str(running.socket))
        words = (*address, "publish", "--topic", "/mine/thing", "--namespace", "mine")

        def publish(*words: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
            return call(tmp_path, *words, program=program, input=input)

        # The subscription may be later than the first of them.
        while not waiting.done():
            done = await asyncio.to_thread(publish, *words, input=event.SerializeToString())
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        envelope = await waiting
        assert (envelope.namespace, envelope.topic) == ("mine", "/mine/thing")
        assert (envelope.event.type_url, envelope.event.value) == ("types/of.mine", b"\x00\x01")
        await events.aclose()
        await channel.aclose()

        refused = await asyncio.to_thread(publish, *address, "publish", "--namespace=n")
        assert refused.returncode == 1
        assert b": topic required to publish event: invalid argument\n" in refused.stderr
        refused = await asyncio.to_thread(
            publish, *address, "publish", "--topic", "bad", "--namespace=n"
        )
        assert refused.returncode == 1
        assert b"must start with '/'" in refused.stderr
    finally:
        await asyncio.to_thread(running.destroy)


def test_publish_without_a_daemon(tmp_path: Path) -> None:
    done = call(tmp_path, f"-a={tmp_path}/none", "publish", "--topic", "/a", "--namespace", "b")
    assert done.returncode == 1
    assert done.stderr.startswith(b"cradled: ")
    assert b"Traceback" not in done.stderr


def test_oci_hook_becomes_the_program(tmp_path: Path) -> None:
    program = "containerd" if target() == "containerd" else PROGRAM
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": "root"}}))
    state = {"id": "me", "bundle": str(tmp_path), "pid": 5, "status": "created"}
    state["annotations"] = {"k": "v"}
    words = ('{{annotation "k"}}', "{{id}} {{pid}} {{status}} {{rootfs}}")
    done = call(
        tmp_path, "oci-hook", "/bin/sh", "-c", 'echo "$0" "$1"; exit 3', *words,
        program=program, input=json.dumps(state).encode(),
    )  # fmt: skip
    assert done.stdout.decode() == f"v me 5 created {tmp_path}/root\n"
    assert done.returncode == 3
    absent = call(tmp_path, "oci-hook", "/none", program=program, input=json.dumps(state).encode())
    assert absent.returncode == 1
