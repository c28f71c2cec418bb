"""What operators do with a running daemon: signals, supervision, the debug socket, its process."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import leaks
from harness.daemon import wait_until
from harness.program import call, places, started

from cradled import errors
from cradled.api import content_pb2, version_pb2, wellknown_pb2
from cradled.daemon.app import App
from cradled.daemon.config import Config
from cradled.linux import cgroup
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def curl(path: str, address: Path | str) -> str:
    words = ["curl", "-sS", "--fail-with-body", "--max-time", "30"]
    if isinstance(address, Path):
        words += ["--unix-socket", str(address)]
        address = "localhost"
    done = subprocess.run(
        [*words, f"http://{address}{path}"], capture_output=True, text=True, check=False, timeout=40
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_stacks_are_told_on_usr1(tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    (tmp_path / "c.toml").write_text(f'version = 4\ntemp = "{temp}"\n')
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        path = temp / f"cradled.{program.process.pid}.stacks.log"
        program.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "END task stack dump" in program.log.read_text(), "the dump in the log")
        text = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for title in ("tasks", "spans under way", "locks held", "calls in thread pools", "threads"):
            assert f"=== {title}\n" in text
        assert "age 0." in text
        assert "_serve (" in text
        assert "thread MainThread" in text
        assert "=== threads\\nthread MainThread" in program.log.read_text()
        assert program.stop() == 0


def test_configuration_is_read_again_on_hup(tmp_path: Path) -> None:
    config, more = tmp_path / "c.toml", tmp_path / "more.toml"
    config.write_text('version = 4\nimports = ["m*.toml"]\n[debug]\nlevel = "warn"\n')
    with started(tmp_path, "-c", str(config)) as program:
        assert "successfully booted" not in program.log.read_text()
        more.write_text('version = 4\noom_score = 7\nrott = 1\n[debug]\nlevel = "info"\n')
        hang_up(program.process.pid)
        reloading, usec = program.told()
        assert reloading == "RELOADING=1"
        assert usec.startswith("MONOTONIC_USEC=")
        assert program.told()[0] == "READY=1"
        log = program.log.read_text()
        assert "the configuration was read again" in log
        assert 'only a restart brings what changed" keys="[\'oom_score\']"' in log
        assert "key=rott" in log
        assert f"file={more}" in log

        more.write_text("what")
        hang_up(program.process.pid)
        assert program.told()[0] == "RELOADING=1"
        assert program.told()[0] == "READY=1"
        assert "the configuration stays as it was: " in program.log.read_text()
        assert program.stop() == 0


def hang_up(pid: int) -> None:
    os.kill(pid, signal.SIGHUP)


def test_supervisor_is_told_of_life(tmp_path: Path) -> None:
    env = {"WATCHDOG_USEC": "400000"}
    with started(tmp_path, env=env) as program:
        assert program.told() == ["WATCHDOG=1"]
        assert program.told() == ["WATCHDOG=1"]
        assert program.told() == ["WATCHDOG=1"]
        program.stop()
        while (told := program.told()) == ["WATCHDOG=1"]:
            continue
        assert told[0] == "STOPPING=1"
    with started(tmp_path, env={**env, "WATCHDOG_PID": "1"}) as program:
        program.stop()
        assert program.told()[0] == "STOPPING=1"


def test_ready_tells_the_pid_and_the_status(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        assert program.ready == [
            "READY=1",
            f"MAINPID={program.process.pid}",
            f"STATUS=serving {tmp_path}/root",
        ]


def test_debug_socket(tmp_path: Path) -> None:
    address = tmp_path / "run/debug.sock"
    (tmp_path / "c.toml").write_text(
        f'version = 2\n[debug]\naddress = "unix://{address}"\ngid = 7\n'
    )
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        status = address.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, 7)
        assert "/debug/pprof/heap" in curl("/debug/pprof/", address)
        assert "thread MainThread" in curl("/debug/pprof/goroutine?debug=2", address)
        assert "builtins.dict" in curl("/debug/pprof/heap", address)
        assert "MainThread;" in curl("/debug/pprof/profile?seconds=0.1", address)
        assert json.loads(curl("/debug/vars", address))["now"]["threads"] >= 1
        # The original's ctr finds its way about.
        command = ["ctr", "pprof", "-d", str(address), "goroutines"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        assert "thread MainThread" in told.stdout
        assert program.stop() == 0
    assert not address.exists()


def test_disabled_plugins_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'version = 4\ndisabled_plugins = ["io.containerd.snapshotter.v1.native"]\n'
        '[proxy_plugins.far]\ntype = "snapshot"\naddress = "/far.sock"\n'
        '[proxy_plugins.odd]\ntype = "oddity"\naddress = "/odd.sock"\n'
    )
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        command = ["ctr", "-a", str(program.socket), "plugins", "ls"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        plugins = [line.split()[1::2] for line in told.stdout.splitlines()]
        assert ["overlayfs", "ok"] in plugins
        assert ["far", "ok"] in plugins  # it may come later
        assert ["odd", "skip"] in plugins
        assert "native" not in [id for id, *_ in plugins]
        assert "unknown type of a proxy plugin" in program.log.read_text()


@pytest.fixture
def few_files() -> Iterator[tuple[int, int]]:
    """Whatever is started meanwhile may have few files open, unless it helps itself."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = (256, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, low)
    yield low
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_connections_than_a_program_usually_has_files(
    tmp_path: Path, few_files: tuple[int, int]
) -> None:
    low, high = few_files
    with started(tmp_path) as program, ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (high, high))
        for _ in range(2 * low):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(program.socket))
        command = ["ctr", "-a", str(program.socket), "version"]
        subprocess.run(command, capture_output=True, check=True, timeout=30)
        raised = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
        assert raised == (high, high)


def test_oom_score(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("version = 4\noom_score = 123\n")
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        score = Path(f"/proc/{program.process.pid}/oom_score_adj").read_text()
        assert score == "123\n"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[str]:
    name = f"cradled-test-{os.getpid()}"
    yield name
    for directory in cgroup.directories(name):
        os.rmdir(directory)


def test_cgroup_is_joined(tmp_path: Path, group: str) -> None:
    (tmp_path / "c.toml").write_text(f'version = 4\n[cgroup]\npath = "/{group}"\n')
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        lines = Path(f"/proc/{program.process.pid}/cgroup").read_text().splitlines()
        assert any(line.endswith(f":/{group}") for line in lines), lines


def test_message_sizes_are_those_configured(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        "version = 3\n[grpc]\nmax_recv_message_size = 1000\nmax_send_message_size = 30\n"
    )
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        asyncio.run(refused_for_their_size(program.socket))


async def refused_for_their_size(address: Path) -> None:
    async with await grpc_client.connect(str(address)) as channel:
        content = Stub(channel, content_pb2.Content, [("containerd-namespace", "n")])
        request = content_pb2.StatusRequest(ref="x" * 2000)
        with pytest.raises(errors.ResourceExhausted, match=r"received message larger than max"):
            await content.status(request)
        with pytest.raises(errors.ResourceExhausted, match=r"trying to send .* \(\d+ vs. 30\)"):
            await Stub(channel, version_pb2.Version).version(wellknown_pb2.Empty())


def test_address_that_is_none_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'version = 4\n[plugins."io.containerd.server.v1.grpc-tcp"]\naddress = "nonsense"\n'
    )
    refused = call(tmp_path, *places(tmp_path), "-c", "c.toml")
    assert refused.returncode == 1
    assert 'cradled: address "nonsense" is not host:port\n' in refused.stderr
    assert not (tmp_path / "d.sock").exists()


async def test_a_library_opens_no_listeners(tmp_path: Path) -> None:
    config = Config(
        root=f"{tmp_path}/r",
        state=f"{tmp_path}/s",
        plugins={"io.containerd.server.v1.debug": {"address": f"{tmp_path}/debug.sock"}},
    )
    for directory in (config.root, config.state):
        os.mkdir(directory)
    async with App(config) as app:
        assert app.plugins["io.containerd.server.v1", "debug"].skipped
    assert not (tmp_path / "debug.sock").exists()
    async with App(config, "/somewhere.sock") as app:
        plugin = app.plugins["io.containerd.server.v1", "debug"]
        assert plugin.exports == {"address": f"{tmp_path}/debug.sock"}
    await asyncio.to_thread(
        wait_until, lambda: not leaks.processes_with(str(tmp_path)), "nothing of it is left"
    )


def test_metrics_are_served(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "c.toml").write_text(
        f'version = 2\n[metrics]\naddress = "127.0.0.1:{port}"\ngrpc_histogram = true\n'
    )
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        command = ["ctr", "-a", str(program.socket), "namespaces", "ls"]
        subprocess.run(command, capture_output=True, check=True, timeout=30)
        page = curl("/v1/metrics", f"127.0.0.1:{port}")
        assert 'grpc_service="containerd.services.namespaces.v1.Namespaces"' in page
        assert "# TYPE grpc_server_handling_seconds histogram" in page
        assert "cradled_loop_lag_seconds_count" in curl("/metrics", f"127.0.0.1:{port}")
        assert program.stop() == 0
