"""What clients learn of the daemon itself: plugins, identity, what goes out of support."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from harness import newer
from harness.daemon import Daemon, rows, target

from cradled import errors
from cradled.api import types_pb2, wellknown_pb2
from cradled.core.deprecations import MESSAGES
from cradled.core.values import AnyValue
from cradled.linux.cgroup import Cgroup
from cradled.proxies.introspection import ProxyIntrospection
from cradled.rpc import grpc_client

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ours = pytest.mark.skipif(target() != "cradled", reason="about plugins newer than the original")

WANTED = """
content.v1/content snapshotter.v1/overlayfs,native,btrfs,zfs,devmapper,blockfile,erofs
differ.v1/walking,erofs metadata.v1/bolt gc.v1/scheduler lease.v1/manager event.v1/exchange
runtime.v2/task shim.v1/manager monitor.task.v1/cgroups monitor.container.v1/restart
service.v1/containers-service,content-service,images-service,introspection-service
service.v1/namespaces-service,snapshots-service,tasks-service,diff-service
grpc.v1/containers,content,diff,events,healthcheck,images,introspection,leases,mounts,namespaces
grpc.v1/sandbox-controllers,sandboxes,snapshots,streaming,tasks,transfer,version,cri
cri.v1/images,runtime podsandbox.controller.v1/podsandbox sandbox.store.v1/local
sandbox.controller.v1/shim streaming.v1/manager transfer.v1/local image-verifier.v1/bindir
mount-manager.v1/bolt nri.v1/nri internal.v1/opt,tracing mount-handler.v1/erofs http.v1/pprof
metrics.v1/grpc-prometheus,grpc-otel tracing.processor.v1/otlp warning.v1/deprecations
server.v1/grpc,grpc-tcp,ttrpc,debug,metrics
"""
"""The plugins that clients of the original look for."""

WORKING = """
content.v1/content snapshotter.v1/overlayfs,native differ.v1/walking metadata.v1/bolt
gc.v1/scheduler lease.v1/manager event.v1/exchange runtime.v2/task shim.v1/manager
grpc.v1/containers,content,diff,events,healthcheck,images,introspection,leases,namespaces
grpc.v1/sandbox-controllers,sandboxes,snapshots,streaming,tasks,transfer,version
sandbox.controller.v1/shim streaming.v1/manager
transfer.v1/local sandbox.store.v1/local warning.v1/deprecations server.v1/grpc,ttrpc
"""


def keys(text: str) -> set[tuple[str, str]]:
    found = set()
    for word in text.split():
        kind, _, ids = word.partition("/")
        found |= {(f"io.containerd.{kind}", id) for id in ids.split(",")}
    return found


def test_the_table(empty_daemon: Daemon) -> None:
    table = empty_daemon.ctr("plugins", "ls").splitlines()
    assert table[0].split() == ["TYPE", "ID", "PLATFORMS", "STATUS"]
    assert {line.split()[-1] for line in table[1:]} <= {"ok", "skip", "error"}
    overlay = next(line.split() for line in table if " overlayfs " in line)
    assert overlay[0] == "io.containerd.snapshotter.v1"
    assert re.fullmatch(r"linux/\w+", overlay[2])
    assert overlay[3] == "ok"


@ours
def test_all_that_clients_look_for_is_there_and_nothing_is_broken(empty_daemon: Daemon) -> None:
    listed = {(row[0], row[1]): row[-1] for row in rows(empty_daemon.ctr("plugins", "ls"))}
    assert keys(WANTED) - set(listed) == set()
    assert set(listed.values()) == {"ok", "skip"}
    assert {key for key in keys(WORKING) if listed[key] != "ok"} == set()


def details(daemon: Daemon, *filters: str) -> dict[str, str]:
    """The details of a plugin, name by name, lists joined with spaces."""
    found: dict[str, str] = {}
    name = ""
    for line in daemon.ctr("plugins", "ls", "-d", *filters).splitlines():
        head, colon, rest = line.partition(":")
        if colon and not line.startswith(" "):
            name = head.strip()
            found[name] = rest.strip()
        elif name:
            found[name] = f"{found[name]} {' '.join(line.split())}".strip()
    return found


def test_details(empty_daemon: Daemon) -> None:
    found = details(empty_daemon, "type==io.containerd.snapshotter.v1,id==overlayfs")
    assert (found["Type"], found["ID"]) == ("io.containerd.snapshotter.v1", "overlayfs")
    root = f"{empty_daemon.root}/io.containerd.snapshotter.v1.overlayfs"
    assert found["Exports"] == f"root {root}"
    scheduler = details(empty_daemon, "type==io.containerd.gc.v1")
    assert scheduler["Requires"].split() == ["io.containerd.metadata.v1"]
    exports = scheduler["Exports"].split()
    assert dict(zip(exports[::2], exports[1::2], strict=True)) == {
        "PauseThreshold": "0.02",
        "DeletionThreshold": "0",
        "MutationThreshold": "100",
        "ScheduleDelay": "0s",
    }


def test_identity(empty_daemon: Daemon) -> None:
    found = empty_daemon.ctr("version")
    uuid = (empty_daemon.root / "io.containerd.grpc.v1.introspection/uuid").read_text().strip()
    assert f"UUID: {uuid}" in found


@ours
def test_what_goes_out_of_support(empty_daemon: Daemon) -> None:
    """As a client new enough to ask shows it; it asks the host, as the daemon does."""
    try:
        program = newer.ctr()
    except newer.Unavailable as error:
        pytest.skip(f"no ctr of 1.7 or later: {error}")
    command = [str(program), "-a", str(empty_daemon.socket), "deprecations", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    with open("/proc/self/cgroup") as file:
        unified = Cgroup(file.read()).unified
    table = done.stdout.splitlines()
    if unified:
        assert table[1:] == []
        return
    assert table[0].split() == ["ID", "LAST", "OCCURRENCE", "MESSAGE"]
    (line,) = table[1:]
    assert line.startswith("io.containerd.deprecation/cgroup-v1")
    assert line.endswith(MESSAGES["cgroup-v1"])


@ours
async def test_a_runtime_of_others_is_asked_about_itself(
    empty_daemon: Daemon, tmp_path: Path
) -> None:
    """Its shim is run with -info and given the options; what it prints is passed on."""
    told = types_pb2.RuntimeInfo(name="strange", annotations={"a": "b"})
    (tmp_path / "told").write_bytes(told.SerializeToString())
    shim = tmp_path / "containerd-shim-strange-v1"
    shim.write_text(
        f'#!/bin/sh\n[ "$*" = -info ] || exit 3\ncat > {tmp_path}/options && cat {tmp_path}/told\n'
    )
    shim.chmod(0o755)
    request = types_pb2.RuntimeRequest(
        runtime_path=str(shim), options=wellknown_pb2.Any(type_url="some.Options", value=b"o")
    )
    packed = AnyValue("containerd.types.RuntimeRequest", request.SerializeToString())
    async with await grpc_client.connect(str(empty_daemon.socket)) as channel:
        introspection = ProxyIntrospection(channel)
        answer = await introspection.plugin_info("io.containerd.runtime.v2", "task", packed)
        assert answer.type_url == "containerd.types.RuntimeInfo"
        assert types_pb2.RuntimeInfo.FromString(answer.value) == told
        options = wellknown_pb2.Any.FromString((tmp_path / "options").read_bytes())
        assert options == request.options
        shim.write_text("#!/bin/sh\necho no such thing >&2; exit 3\n")
        with pytest.raises(errors.Error, match="no such thing"):
            await introspection.plugin_info("io.containerd.runtime.v2", "task", packed)
