"""The daemon as a program: how it starts, what it refuses, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from harness.program import call, places, started

from cradled import errors
from cradled.api import events_service_pb2, health_pb2, version_pb2, wellknown_pb2
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub
from cradled.version import SERVER_VERSION, VERSION

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


async def version(address: Path) -> version_pb2.VersionResponse:
    channel = await grpc_client.connect(str(address))
    try:
        return await Stub(channel, version_pb2.Version).version(wellknown_pb2.Empty())
    finally:
        await channel.aclose()


async def test_answers_and_ends_cleanly(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        assert (await version(program.socket)).version == SERVER_VERSION
        for path in (program.socket, Path(f"{program.socket}.ttrpc")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o711
        assert stat.S_IMODE((tmp_path / "state/events.sock").stat().st_mode) == 0o600
        assert program.stop() == 0
        assert program.told() == ["STOPPING=1", "STATUS=stopping"]
        assert not program.socket.exists()
        assert not Path(f"{program.socket}.ttrpc").exists()
        assert not (tmp_path / "state/events.sock").exists()


async def test_who_watches_its_health_is_told_of_the_end(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        channel = await grpc_client.connect(str(program.socket))
        seen = []
        async for response in Stub(channel, health_pb2.Health).watch(
            health_pb2.HealthCheckRequest()
        ):
            seen.append(response.status)
            if len(seen) == 1:
                program.process.send_signal(signal.SIGTERM)
        await channel.aclose()
        assert program.process.wait(20) == 0
        status = health_pb2.HealthCheckResponse
        assert seen == [status.SERVING, status.NOT_SERVING]


async def test_same_identity_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "root/io.containerd.grpc.v1.introspection/uuid"
    with started(tmp_path):
        first = path.read_text()
    with started(tmp_path):
        assert path.read_text() == first


async def test_pending_calls_end_in_an_error_when_the_daemon_stops(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        channel = await grpc_client.connect(str(program.socket))
        try:
            events = Stub(channel, events_service_pb2.Events)
            stream = events.subscribe(events_service_pb2.SubscribeRequest())
            waiting = asyncio.ensure_future(anext(stream))
            await Stub(channel, version_pb2.Version).version(wellknown_pb2.Empty())
            assert await asyncio.to_thread(program.stop) == 0
            with pytest.raises(errors.Unavailable):
                await waiting
            await stream.aclose()
        finally:
            await channel.aclose()


async def test_comes_back_after_kill_9(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        program.process.kill()
        program.process.wait()
        assert program.socket.exists()
    with started(tmp_path) as program:
        assert (await version(program.socket)).version == SERVER_VERSION


async def test_second_daemon_on_the_same_root_is_told_who_has_it(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        refused = call(tmp_path, *places(tmp_path))
        assert refused.returncode == 1
        pid = program.process.pid
        text = f"cradled: root {tmp_path}/root is in use by another daemon (pid {pid})\n"
        assert refused.stderr == text
        assert (await version(program.socket)).version == SERVER_VERSION


async def test_socket_of_a_living_daemon_is_not_taken(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with started(tmp_path) as program:
        refused = call(
            tmp_path, f"--root={other}/root", f"--state={other}/state", f"-a={program.socket}"
        )
        assert refused.returncode == 1
        pid = program.process.pid
        assert refused.stderr == f"cradled: address {program.socket} is in use by process {pid}\n"
        assert (await version(program.socket)).version == SERVER_VERSION


def test_unusable_root(tmp_path: Path) -> None:
    refused = call(tmp_path, "--root=/proc/x", f"--state={tmp_path}/s", f"-a={tmp_path}/a")
    assert refused.returncode == 1
    assert refused.stderr.startswith("cradled: root /proc/x: ")
    refused = call(tmp_path, f"--root={tmp_path}/x", f"--state={tmp_path}/x")
    assert refused.returncode == 1
    assert "root and state must differ" in refused.stderr


def test_command_line(tmp_path: Path) -> None:
    assert call(tmp_path, "--version").stdout == (
        f"cradled github.com/containerd/containerd/v2 {SERVER_VERSION} unreleased\n"
    )
    assert "usage: cradled" in call(tmp_path, "--help").stdout
    wrong = call(tmp_path, "--nonsense")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("cradled: unknown flag --nonsense\nusage:")
    missing = call(tmp_path, "-c", "absent.toml", "config", "dump")
    assert missing.returncode == 1
    assert "cannot read" in missing.stderr


def test_configuration_is_dumped_with_imports_and_flags(tmp_path: Path) -> None:
    default = call(tmp_path, "config", "default")
    assert default.returncode == 0
    (tmp_path / "more.toml").write_text('version = 2\n[debug]\nlevel = "warn"\n')
    (tmp_path / "c.toml").write_text(
        'version = 2\nimports = ["m*.toml"]\nroot = "/r"\n[grpc]\naddress = "/g"\n'
    )
    dumped = call(tmp_path, "-c", "c.toml", "--state", "st", "config", "dump").stdout
    assert 'root = "/r"' in dumped
    assert f'state = "{tmp_path}/st"' in dumped
    assert 'level = "warn"' in dumped
    assert 'address = "/g"' in dumped


async def test_log_is_told_in_json_and_warns_of_unknown_keys(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('version = 2\nrott = "x"\n[debug]\nformat = "json"\nlevel = "debug"\n')
    with started(tmp_path, "-c", str(config)) as program:
        program.stop()
        lines = [json.loads(line) for line in program.log.read_text().splitlines()]
    (warned,) = [line for line in lines if line["level"] == "warning"]
    del warned["time"], warned["level"]
    assert warned == {
        "msg": "Ignoring unknown key in TOML",
        "key": "rott",
        "nearest": "root",
        "file": str(config),
        "line": 2,
    }
    assert any(line["msg"].startswith("containerd successfully booted in ") for line in lines)


def test_bad_log_level_is_refused(tmp_path: Path) -> None:
    refused = call(tmp_path, *places(tmp_path), "-l", "loud")
    assert refused.returncode == 1
    assert "loud" in refused.stderr
    assert not (tmp_path / "d.sock").exists()


async def test_idle_daemon_stops_itself_but_not_under_a_client(tmp_path: Path) -> None:
    with started(tmp_path, "--exit-idle", "0.5") as program:
        channel = await grpc_client.connect(str(program.socket))
        stub = Stub(channel, version_pb2.Version)
        await stub.version(wellknown_pb2.Empty())
        with pytest.raises(subprocess.TimeoutExpired):
            await asyncio.to_thread(program.process.wait, 1.5)
        await channel.aclose()
        assert await asyncio.to_thread(program.process.wait, 20) == 0
        assert "idle for 0.5 s" in program.log.read_text()


def test_required_plugin_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('version = 2\nrequired_plugins = ["com.example.v1.absent"]\n')
    refused = call(tmp_path, *places(tmp_path), "-c", "c.toml")
    assert refused.returncode == 1
    assert "required plugin com.example.v1.absent not included" in refused.stderr
    assert not (tmp_path / "d.sock").exists()


def test_release_and_package_agree() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert f'version = "{VERSION}"' in pyproject.read_text()
