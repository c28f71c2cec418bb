"""What the doctor says of hosts that are made up here."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cradled.cli.commands import doctor as command
from cradled.cli.doctor import cgroups, daemon, kernel, places, programs
from cradled.cli.doctor.finding import FAIL, OK, WARN, Finding


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    found = {one.name: one for one in findings}
    for one in found.values():
        assert one.text
        assert bool(one.advice) >= (one.status != OK), f"{one} says not what to do"
    return found


# Control groups


def unified(root: Path, controllers: str) -> str:
    root.mkdir()
    (root / "cgroup.controllers").write_text(controllers)
    return str(root)


def legacy(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "cgroup.procs").touch()
    return str(root)


ALL = ("cpu,cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio")


def test_a_unified_host(tmp_path: Path) -> None:
    root = unified(tmp_path / "c", "cpuset cpu io memory hugetlb pids")
    found = by_name(cgroups.findings(root))
    assert {one.status for one in found.values()} == {OK}
    assert found["hierarchy"].text == "unified (version 2)"
    assert found["others"].text == "cpuset, io, hugetlb"


@pytest.mark.parametrize(("more", "kind"), [((), "legacy"), (("unified", "systemd"), "hybrid")])
def test_older_hosts(tmp_path: Path, more: tuple[str, ...], kind: str) -> None:
    found = by_name(cgroups.findings(legacy(tmp_path / "c", *ALL, *more)))
    assert {one.status for one in found.values()} == {OK}
    assert found["hierarchy"].text.startswith(kind)
    assert found["cpu"].text == "there"
    assert found["others"].text == "cpuset, blkio"


def test_a_controller_that_is_missing(tmp_path: Path) -> None:
    found = by_name(cgroups.findings(unified(tmp_path / "a", "cpu pids")))
    assert found["memory"].status == WARN
    found = by_name(cgroups.findings(legacy(tmp_path / "b", "cpu", "memory", "pids")))
    assert found["legacy"].text == "devices, freezer not mounted"


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert by_name(cgroups.findings(str(tmp_path)))["hierarchy"].status == FAIL
    assert by_name(cgroups.findings(str(tmp_path / "none")))["hierarchy"].status == FAIL


# Runtimes


def program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


FEATURES = '{"ociVersionMin": "1.0.0", "ociVersionMax": "1.2.0"}'


def test_runtimes_that_work(path: Path) -> None:
    script = f"[ $1 = features ] && echo '{FEATURES}' || echo runc version 1.2.3"
    program(path, "runc", script)
    program(path, "crun", "[ $1 = --version ] || exit 1; echo crun version 1; echo spec: 1.0.0")
    program(path, "containerd-shim-kata-v2", "true")
    found = by_name(programs.findings())
    assert found["runc"] == (
        "runtimes", "runc", OK, f"{path}/runc: runc version 1.2.3, OCI 1.0.0 to 1.2.0", "",
    )  # fmt: skip
    assert found["crun"].text == f"{path}/crun: crun version 1, OCI 1.0.0"
    assert found["shims of others"].text == "containerd-shim-kata-v2"


def test_no_runtime(path: Path) -> None:
    found = by_name(programs.findings())
    assert found["runc"].status == FAIL
    assert found["runc"].advice == "install runc"


def test_another_runtime_than_the_one_that_is_used(path: Path) -> None:
    program(path, "crun", "echo crun version 1")
    found = by_name(programs.findings())
    assert found["runc"].status == FAIL
    assert 'binary_name = "crun"' in found["runc"].advice
    assert {one.status for one in by_name(programs.findings("crun")).values()} == {OK}


def test_a_runtime_that_does_not_start(path: Path) -> None:
    program(path, "runc", "echo no libseccomp >&2; exit 127")
    found = by_name(programs.findings())
    assert found["runc"].status == FAIL
    assert "no libseccomp" in found["runc"].text


def test_a_runtime_that_others_may_write(path: Path) -> None:
    program(path, "runc", "echo runc version 1")
    (path / "runc").chmod(0o777)
    assert by_name(programs.findings())["runc"].status == WARN


# Places


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A file system to order."""
    disk = SimpleNamespace(type="ext4", free=50.0, of=100.0, inodes=0.5, flags=0)
    gib = 1 << 30

    def statvfs(path: str) -> object:
        return SimpleNamespace(
            f_frsize=1,
            f_bavail=int(disk.free * gib),
            f_blocks=int(disk.of * gib),
            f_files=1000,
            f_favail=int(disk.inodes * 1000),
            f_flag=disk.flags,
        )

    monkeypatch.setattr(places.os, "statvfs", statvfs)
    monkeypatch.setattr(places, "_mount_of", lambda path: disk)
    return disk


def storage(tmp_path: Path) -> dict[str, Finding]:
    found = places.findings(str(tmp_path / "root"), str(tmp_path / "state"), running=False)
    return by_name(one for one in found if one.area == "storage")


@pytest.mark.parametrize(
    ("facts", "name", "status"),
    [
        ({}, "root", OK),
        ({"free": 20.0, "of": 1000.0}, "root", OK),  # little of much is enough
        ({"free": 0.5, "of": 10.0}, "root", WARN),
        ({"free": 0.05, "of": 10.0}, "root", FAIL),
        ({"inodes": 0.0}, "root", FAIL),
        ({"type": "overlay"}, "root's file system", WARN),
        ({"type": "tmpfs"}, "root's file system", WARN),
        ({"type": "nfs4"}, "root's file system", WARN),
        ({"flags": os.ST_NOEXEC}, "root's file system", FAIL),
        ({"flags": os.ST_NODEV}, "root's file system", WARN),
        ({"flags": os.ST_RDONLY >> 20}, "root", OK),
    ],
)
def test_what_root_lies_on(
    disk: SimpleNamespace, tmp_path: Path, facts: dict[str, object], name: str, status: str
) -> None:
    vars(disk).update(facts)
    found = storage(tmp_path)
    assert found[name].status == status
    if status == OK:
        assert {one.status for one in found.values()} == {OK}


def test_directories_that_are_not_there_yet(tmp_path: Path) -> None:
    found = storage(tmp_path / "deep" / "down")
    assert "made when a daemon starts" in found["root"].text
    assert not (tmp_path / "deep").exists()


def test_the_mount_below_a_path() -> None:
    assert places._mount_of("/proc/self/status").type == "proc"
    assert places._mount_of("/").target == "/"


def bundle(state: Path, id: str, address: str) -> Path:
    path = state / "io.containerd.runtime.v2.task" / "ns" / id
    path.mkdir(parents=True)
    (path / "bootstrap.json").write_text(f'{{"address": "unix://{address}"}}')
    return path


def test_bundles_with_and_without_a_shim(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as shim:
        shim.bind(str(tmp_path / "shim"))
        shim.listen()
        bundle(tmp_path, "alive", str(tmp_path / "shim"))
        bundle(tmp_path, "dead", str(tmp_path / "gone"))
        (bundle(tmp_path, "half", "") / "bootstrap.json").unlink()
        (tmp_path / "io.containerd.runtime.v2.task" / "ns" / ".removed").mkdir()
        found = by_name(places.findings(str(tmp_path), str(tmp_path), running=False))
        assert found["tasks"].text == "1 have a shim; the next daemon takes them over"
        assert found["left over"].text == "without a shim: ns/dead, ns/half"
        assert found["left over"].advice == "start a daemon"
        found = by_name(places.findings(str(tmp_path), str(tmp_path), running=True))
        assert found["tasks"].text == "1 have a shim"


def test_registries(tmp_path: Path) -> None:
    assert by_name(places.registries((str(tmp_path / "none"),)))["hosts"].status == OK
    for name, text in (("good.example", 'server = "x"\n'), ("bad.example", 'auth = "s3cret')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(text)
    (tmp_path / "plain.example").mkdir()
    found = by_name(places.registries((str(tmp_path),)))
    assert found["hosts"].text.endswith("bad.example, good.example, plain.example")
    assert found["bad.example"].status == FAIL
    assert "s3cret" not in found["bad.example"].text
    assert set(found) == {"hosts", "bad.example"}


# The daemon


def test_no_daemon(tmp_path: Path) -> None:
    assert [one.status for one in daemon.sockets(str(tmp_path / "d.sock"))] == [OK]


def test_a_socket_that_nobody_serves_any_more(tmp_path: Path) -> None:
    path = str(tmp_path / "d.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    os.chmod(path, 0o660)
    found = by_name(daemon.sockets(path))
    assert found["socket"].status == WARN
    assert "refused" in found["socket"].text


def test_a_file_in_the_place_of_a_socket(tmp_path: Path) -> None:
    (tmp_path / "d.sock").touch(0o600)
    assert by_name(daemon.sockets(str(tmp_path / "d.sock")))["socket"].status == FAIL


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[str]:
    """A server that accepts and says nothing."""
    path = str(tmp_path / "d.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        os.chmod(path, 0o660)
        sock.listen()
        yield path


def test_a_daemon_that_does_not_answer(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_ANSWER_SECONDS", 0.05)
    found = by_name(daemon.sockets(mute))
    assert found["socket"].status == OK
    assert f"pid {os.getpid()}" in found["socket"].text
    assert found["answer"].status == FAIL


def test_a_socket_for_everybody(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_ANSWER_SECONDS", 0.05)
    os.chmod(mute, 0o666)
    found = by_name(daemon.sockets(mute))
    assert found["socket"].status == FAIL
    assert stat.S_IMODE(os.stat(mute).st_mode) == 0o666


def test_configurations(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        f'version = 4\nroot = "{tmp_path}/r"\nstate = "{tmp_path}/s"\n'
        '[plugins."io.containerd.server.v1.grpc"]\naddress = "/x/y.sock"\n'
        '[plugins."io.containerd.shim.v1.manager"]\nbinary_name = "crun"\n'
    )
    place, findings = daemon.configuration(str(path))
    assert place == ("/x/y.sock", f"{tmp_path}/r", f"{tmp_path}/s", "crun")
    assert [one.status for one in findings] == [OK]
    path.write_text("version = 4\nrooot = 1\n")
    place, findings = daemon.configuration(str(path))
    assert place is not None
    assert [one.status for one in findings] == [WARN]
    assert "rooot" in findings[0].text
    path.write_text('version = 4\nroot = "')
    place, findings = daemon.configuration(str(path))
    assert place is None
    assert FAIL in [one.status for one in findings]
    place, findings = daemon.configuration(str(tmp_path / "none"))
    assert place is None
    assert FAIL in [one.status for one in findings]


def test_a_clock_of_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert daemon.clock().status == OK
    monkeypatch.setattr(daemon.time, "time", lambda: 3600.0)
    assert daemon.clock().status == FAIL


# The kernel


def test_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, status in (("5.4.0-1", FAIL), ("5.10.0-30-amd64", OK), ("6.1", OK)):
        system = SimpleNamespace(sysname="Linux", release=release, machine="x86_64")
        monkeypatch.setattr(kernel.os, "uname", lambda system=system: system)
        assert kernel._release().status == status


def test_a_call_that_is_not_there() -> None:
    def refuse() -> None:
        raise OSError(38, "Function not implemented")

    assert kernel._call("x", refuse).status == FAIL


def test_this_kernel_can_run_containers() -> None:
    """Tests of containers run here, so the doctor must not say that they cannot."""
    found = by_name(kernel.findings())
    assert [one for one in found.values() if one.status == FAIL] == []
    assert {"overlay mounts", "openat2", "pidfd", "seccomp"} <= found.keys()


# The report


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    command._print(
        [
            Finding("kernel", "version", OK, "6.1"),
            Finding("kernel", "oom", WARN, "low", "raise it"),
            Finding("daemon", "socket", FAIL, "open to all", "close it"),
        ]
    )
    assert capsys.readouterr().out == (
        "kernel\n"
        "  ok    version: 6.1\n"
        "  warn  oom: low\n"
        "        -> raise it\n"
        "daemon\n"
        "  fail  socket: open to all\n"
        "        -> close it\n"
        "1 failed, 1 warned, 1 ok\n"
    )


def test_what_takes_root_is_not_tried_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    bundle(tmp_path, "dead", str(tmp_path / "gone"))
    found = by_name([*kernel.findings(), *places.findings("/", str(tmp_path), running=False)])
    assert {one.status for name, one in found.items() if name != "root"} == {OK}
    for name in ("mounts", "oom_score_adj", "tasks"):
        assert found[name].text.endswith("takes root")
