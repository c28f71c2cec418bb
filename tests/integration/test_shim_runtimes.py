"""What a container may be given, by each OCI runtime under the same shim.

How the shim's service answers with them is in ``test_shim_task``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.pairings import RUNTIMES, Missing
from harness.shims import Fifos, Shim, eventually, finish, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LINES = 24, 80
Spec = dict[str, Any]


@pytest.fixture(scope="module", params=RUNTIMES)
def shim(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shim]:
    runtime = RUNTIMES[request.param]
    try:
        program = runtime.find()
    except Missing as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("shim")
    with running(directory, runtime=program, wrapper=runtime.wrapper) as shim:
        yield shim


def run(
    shim: Shim, tmp_path: Path, id: str, script: str, change: Callable[[Spec], None]
) -> tuple[int, str]:
    """The life of a container with a changed spec: its exit status and output."""
    bundle = shim.bundle(id, "/bin/sh", "-c", script)
    spec = json.loads((bundle / "config.json").read_text())
    change(spec)
    (bundle / "config.json").write_text(json.dumps(spec))
    fifos = Fifos(tmp_path / "fifos", "stdout")
    shim.create(id, stdout=fifos.paths["stdout"])
    shim.call("Start", id=id)
    out = fifos.read()
    fifos.close()
    return finish(shim, id), out.decode()


def test_a_user_namespace(shim: Shim, tmp_path: Path) -> None:
    def change(spec: Spec) -> None:
        mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        spec["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
        spec["linux"]["namespaces"].append({"type": "user"})
        for above in (shim.bundles / "user" / "rootfs").parents:
            if above.is_relative_to(Path("/tmp")) and above != Path("/tmp"):
                above.chmod(0o755)

    status, out = run(shim, tmp_path, "user", "cat /proc/self/uid_map; kill -0 1", change)
    assert (status, out.split()) == (0, ["0", "100000", "65536"])


def test_a_read_only_root(shim: Shim, tmp_path: Path) -> None:
    def change(spec: Spec) -> None:
        spec["root"]["readonly"] = True

    script = "echo x > /file || echo refused; echo y > /dev/shm && echo taken"
    assert run(shim, tmp_path, "ro", script, change) == (0, "refused\ntaken\n")


def test_a_seccomp_profile(shim: Shim, tmp_path: Path) -> None:
    def change(spec: Spec) -> None:
        refused = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
        spec["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"] if os.uname().machine == "x86_64" else [],
            "syscalls": [refused],
        }

    script = "busybox mkdir /d 2>/dev/null || echo refused; grep Seccomp: /proc/self/status"
    status, out = run(shim, tmp_path, "sec", script, change)
    assert (status, out.split()) == (0, ["refused", "Seccomp:", "2"])


def test_masked_and_read_only_paths(shim: Shim, tmp_path: Path) -> None:
    def change(spec: Spec) -> None:
        spec["linux"] |= {"maskedPaths": ["/proc/meminfo"], "readonlyPaths": ["/proc/sys"]}

    script = "busybox wc -c < /proc/meminfo; echo 1 > /proc/sys/kernel/panic || echo refused"
    assert run(shim, tmp_path, "mask", script, change) == (0, "0\nrefused\n")


def test_limits_user_and_groups(shim: Shim, tmp_path: Path) -> None:
    def change(spec: Spec) -> None:
        spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": 123, "soft": 123}]
        spec["process"]["user"] = {"uid": 7, "gid": 8, "additionalGids": [9]}
        spec["process"]["oomScoreAdj"] = 321

    script = "ulimit -n; busybox id -u; busybox id -G; cat /proc/self/oom_score_adj"
    status, out = run(shim, tmp_path, "lim", script, change)
    assert (status, out.split()) == (0, ["123", "7", "8", "9", "321"])


def test_hooks(shim: Shim, tmp_path: Path) -> None:
    """All stages, told the container's state."""
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$1 $(wc -c)" >> {tmp_path}/ran\n')
    hook.chmod(0o755)
    stages = ("prestart", "createRuntime", "poststart", "poststop")

    def change(spec: Spec) -> None:
        spec["hooks"] = {stage: [{"path": str(hook), "args": ["hook", stage]}] for stage in stages}

    assert run(shim, tmp_path, "hooks", "exit 3", change) == (3, "")
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert [stage for stage, _ in ran] == list(stages)
    assert all(int(told) > 50 for _, told in ran)


def test_a_terminal(shim: Shim, tmp_path: Path) -> None:
    fifos = Fifos(tmp_path / "fifos", "stdin", "stdout")
    script = "read x; stty size; test -t 1 && echo terminal $x"
    shim.create("tty", "/bin/sh", "-c", script, terminal=True, spec={"terminal": True},
                **fifos.paths)  # fmt: skip
    shim.call("Start", id="tty")
    shim.call("ResizePty", id="tty", width=LINES[1], height=LINES[0])
    os.write(fifos.open_stdin(), b"one\n")
    assert fifos.read(until=b"terminal one").split() == [b"one", b"24", b"80", b"terminal", b"one"]
    assert finish(shim, "tty") == 0
    fifos.close()


def test_an_exec_in_a_terminal(shim: Shim, tmp_path: Path) -> None:
    shim.create("xtty", "/bin/sleep", "1000")
    shim.call("Start", id="xtty")
    fifos = Fifos(tmp_path / "fifos", "stdout")
    shim.exec("xtty", "e", "/bin/sh", "-c", "test -t 1 && echo terminal; exit 3", terminal=True,
              **fifos.paths)  # fmt: skip
    assert fifos.read(until=b"terminal").strip() == b"terminal"
    assert shim.wait("xtty", "e") == 3
    fifos.close()
    shim.call("Delete", id="xtty", exec_id="e")
    shim.call("Kill", id="xtty", signal=9)
    finish(shim, "xtty")


def test_pids_pause_update_and_kill_all(shim: Shim) -> None:
    shim.create("run", "/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait")
    shim.call("Start", id="run")
    eventually(lambda: len(shim.call("Pids", id="run").processes) == 3)
    shim.call("Pause", id="run")
    assert shim.state("run").status == 4
    shim.call("Resume", id="run")
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 77}, "cpu": {"shares": 300}}
    kind = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    value = json.dumps(limits).encode()
    shim.call("Update", id="run", resources={"type_url": kind, "value": value})
    pid = shim.state("run").pid
    assert group_file(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert group_file(pid, "pids", "pids.max", "pids.max") == "77"
    assert shim.call("Stats", id="run").stats.value
    shim.call("Kill", id="run", signal=9, all=True)
    assert finish(shim, "run") == 137


def group_file(pid: int, controller: str, legacy: str, unified: str) -> str:
    """A file of a process's cgroup, in whichever hierarchy the controller is."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path(f"/sys/fs/cgroup/{controllers}{path}/{legacy}").read_text().strip()
    return Path(f"/sys/fs/cgroup{path}/{unified}").read_text().strip()


def test_out_of_memory(shim: Shim) -> None:
    eats = "x=a; while :; do x=$x$x; done"
    limit = {"resources": {"memory": {"limit": 16 << 20, "swap": 16 << 20}}}
    shim.create("oom", "/bin/sh", "-c", eats, spec=limit)
    shim.call("Start", id="oom")
    assert finish(shim, "oom") == 137
    assert shim.ear.wait("oom").container_id == "oom"
