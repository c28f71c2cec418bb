"""The default spec and its options, run by the real runtime without any daemon."""

import json
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cradled.oci import platforms, spec
from cradled.oci.users import User

RUNTIMES = [name for name in ("runc", "crun") if shutil.which(name)]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root"),
    pytest.mark.skipif(not RUNTIMES, reason="no OCI runtime"),
]

MIB = 1 << 20
# Old crun refuses hosts with both cgroup versions mounted: hide the second one from it.
HIDE_V2 = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
PREFIX = {"crun": ["unshare", "--mount", "sh", "-c", HIDE_V2, "sh"]}
Run = Callable[..., subprocess.CompletedProcess[str]]


def kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int(minor)


def default_seccomp() -> spec.Option:
    return spec.seccomp(platforms.default().architecture, kernel())


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox")
    root = tmp_path / "bundle" / "rootfs"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for applet in ("sh", "id", "cat", "mount", "unshare", "hostname", "touch", "ls", "grep"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


@pytest.fixture(params=RUNTIMES)
def run(request: pytest.FixtureRequest, rootfs: Path, tmp_path: Path) -> Iterator[Run]:
    """Run a script in a container of the default spec with options on it."""
    runtime: str = request.param
    name = f"spec-{uuid.uuid4().hex[:12]}"
    base = [*PREFIX.get(runtime, []), runtime, "--root", str(tmp_path / "state")]

    def run(script: str, *options: spec.Option) -> subprocess.CompletedProcess[str]:
        made = spec.build("cradled-test", name, spec.args(["sh", "-c", script]), *options)
        (rootfs.parent / "config.json").write_text(json.dumps(made))
        command = [*base, "run", "--bundle", str(rootfs.parent), name]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    yield run
    subprocess.run([*base, "delete", "--force", name], capture_output=True, check=False)
    for cgroup in Path("/sys/fs/cgroup").glob("*/cradled-test"):
        cgroup.rmdir()
    for cgroup in Path("/sys/fs/cgroup").glob("cradled-test"):
        cgroup.rmdir()


def status(output: str, field: str) -> str:
    return next(line.split()[1] for line in output.splitlines() if line.startswith(field + ":"))


def test_default_is_confined(run: Run) -> None:
    done = run("cat /proc/self/status; exit 7", default_seccomp())
    assert done.returncode == 7, done.stderr
    assert status(done.stdout, "Seccomp") == "2"
    assert status(done.stdout, "NoNewPrivs") == "1"
    assert status(done.stdout, "CapInh") == "0" * 16
    assert status(done.stdout, "CapEff") == status(done.stdout, "CapBnd") == "00000000a80425fb"


@pytest.mark.parametrize("script", ["unshare -U true", "unshare -m true", "mount -t tmpfs x /tmp"])
def test_namespaces_and_mounts_are_denied(run: Run, script: str) -> None:
    done = run(script, default_seccomp())
    assert done.returncode != 0
    assert "not permitted" in done.stderr or "ermission denied" in done.stderr, done.stderr


def test_only_seccomp_keeps_user_namespaces_away(run: Run) -> None:
    """The counter-check: without the profile the same call gets through."""
    assert run("unshare -U true").returncode == 0


def test_masked_and_read_only_paths(run: Run) -> None:
    script = "ls -A /sys/firmware; cat /proc/timer_list; echo x >/proc/sys/kernel/domainname"
    done = run(script, default_seccomp())
    assert done.stdout == ""
    assert "Read-only file system" in done.stderr


def test_privileged(run: Run) -> None:
    node = {"path": "/dev/mem-test", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}
    mask = int(status(Path("/proc/self/status").read_text(), "CapEff"), 16)
    available = spec.caps.from_mask(mask)
    script = (
        "cat /proc/self/status; mount -t tmpfs x /tmp && unshare -m true && ls -l /dev/mem-test"
    )
    done = run(script, spec.privileged(available, [node]))
    assert done.returncode == 0, done.stderr
    assert status(done.stdout, "Seccomp") == "0"
    assert status(done.stdout, "NoNewPrivs") == "0"
    assert int(status(done.stdout, "CapEff"), 16) == mask
    assert "1,   3" in done.stdout


def test_user_groups_and_directory(run: Run) -> None:
    options = (spec.user(User(33, 34, (29, 44))), spec.workdir("/etc"))
    done = run("id -u; id -g; id -G; pwd", *options, default_seccomp())
    assert done.returncode == 0, done.stderr
    uid, gid, groups, directory = done.stdout.splitlines()
    assert (uid, gid, directory) == ("33", "34", "/etc")
    assert set(groups.split()) == {"34", "29", "44"}


def test_read_only_root(run: Run) -> None:
    done = run("touch /tmp/x", spec.read_only(), default_seccomp())
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_volumes(run: Run, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "greeting").write_text("hello")
    options = (spec.volume(f"{shared}:/rw"), spec.volume(f"{shared}:/ro:ro"))
    done = run("cat /ro/greeting; touch /ro/no; touch /rw/yes", *options, default_seccomp())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello"
    assert (shared / "yes").exists()
    assert not (shared / "no").exists()


def test_hostname_and_environment(run: Run) -> None:
    done = run("hostname; echo $A $HOME", spec.hostname("box"), spec.env(["A=1"]))
    assert done.stdout.split() == ["box", "1", "/"] or done.stdout.split() == ["box", "1", "/root"]


def test_memory_and_cpus_reach_the_cgroup(run: Run) -> None:
    script = (
        "cat /proc/self/cgroup; cd /sys/fs/cgroup;"
        "cat memory/memory.limit_in_bytes memory.max; cat cpu/cpu.cfs_quota_us cpu.max; true"
    )
    cgroup = spec.mount("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", "nosuid", "noexec", "nodev"])
    done = run(script, spec.memory(64 * MIB), spec.cpus(0.5), cgroup)
    assert done.returncode == 0, done.stderr
    assert "/cradled-test/spec-" in done.stdout or "0::/\n" in done.stdout
    values = done.stdout.split()[-3:]
    assert values[-2:] == [str(64 * MIB), "50000"] or values == [str(64 * MIB), "50000", "100000"]


def test_network(run: Run) -> None:
    """A fresh network has nothing but loopback; the host's has what the host has."""
    script = "cat /proc/net/dev | grep -c :"
    assert run(script).stdout.strip() in {"1", str(_tunnels() + 1)}
    host = len(Path("/proc/net/dev").read_text().splitlines()) - 2
    assert run(script, spec.host_network()).stdout.strip() == str(host)


def _tunnels() -> int:
    """Fallback devices that some kernels put into every new network namespace."""
    shown = subprocess.run(
        ["unshare", "-n", "cat", "/proc/net/dev"], capture_output=True, text=True, check=True
    )
    return len(shown.stdout.splitlines()) - 3
