"""Debian's unmodified ``ctr`` runs containers on the daemon, whatever shim and runtime it has."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows, wait_until
from harness.pairings import PAIRINGS, RUNC

IMAGE = "docker.io/library/busybox:test"

pytestmark = pytest.mark.parametrize("pairing", PAIRINGS, indirect=True, scope="module")


def statuses(daemon: Daemon) -> dict[str, str]:
    return {row[0]: row[2] for row in rows(daemon.ctr("tasks", "ls"))}


def run_detached(daemon: Daemon, name: str, *command: str, flags: tuple[str, ...] = ()) -> None:
    daemon.ctr("run", "-d", "--null-io", *flags, IMAGE, name, *(command or ("sleep", "1000")))


def test_output_and_exit_status(daemon: Daemon) -> None:
    done = daemon.try_ctr("run", "--rm", IMAGE, "c1", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    assert daemon.ctr("containers", "ls", "-q") == ""
    assert daemon.ctr("snapshots", "ls").count("c1") == 0


def test_exit_status_of_a_signal(daemon: Daemon) -> None:
    runner = subprocess.Popen(daemon.ctr_command("run", "--rm", IMAGE, "c1", "sleep", "1000"),
        env=daemon.env, stdin=subprocess.DEVNULL)  # fmt: skip
    wait_until(lambda: statuses(daemon) == {"c1": "RUNNING"}, "c1 running")
    daemon.ctr("tasks", "kill", "-s", "SIGKILL", "c1")
    assert runner.wait(30) == 137


def test_image_configuration_is_applied(daemon: Daemon) -> None:
    assert daemon.ctr("run", "--rm", IMAGE, "c1", "sh", "-c", "echo $GREETING") == "hello\n"
    assert (
        daemon.ctr("run", "--rm", IMAGE, "c2", "cat", "/etc/motd")
        == "hello from the second layer\n"
    )
    assert daemon.try_ctr("run", "--rm", IMAGE, "c3", "ls", "/bin/unlzma").returncode == 1


def test_standard_input(daemon: Daemon) -> None:
    done = daemon.try_ctr("run", "--rm", IMAGE, "c1", "head", "-n", "2", input=b"one\ntwo\n")
    assert (done.stdout, done.returncode) == ("one\ntwo\n", 0)


def test_a_megabyte_of_output_arrives_whole(daemon: Daemon) -> None:
    out = daemon.ctr("run", "--rm", IMAGE, "c1", "sh", "-c", "yes 0123456789abcde | head -n 65536")
    assert out == "0123456789abcde\n" * 65536


def test_environment_and_working_directory(daemon: Daemon) -> None:
    out = daemon.ctr(
        "run", "--rm", "--env", "X=1", "--cwd", "/tmp", IMAGE, "c1", "sh", "-c", "echo $X; pwd"
    )
    assert out == "1\n/tmp\n"


def test_bind_mount(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("from outside")
    mount = f"type=bind,src={tmp_path},dst=/mnt,options=rbind:rw"
    assert daemon.ctr("run", "--rm", "--mount", mount, IMAGE, "c1",
                      "sh", "-c", "cat /mnt/f; echo back > /mnt/g") == "from outside"  # fmt: skip
    assert (tmp_path / "g").read_text() == "back\n"


def test_host_network(daemon: Daemon) -> None:
    ours = os.readlink("/proc/self/ns/net")
    with_host = daemon.ctr(
        "run", "--rm", "--net-host", IMAGE, "c1", "readlink", "/proc/self/ns/net"
    )
    without = daemon.ctr("run", "--rm", IMAGE, "c2", "readlink", "/proc/self/ns/net")
    assert with_host.strip() == ours
    assert without.strip() != ours


def test_cpu_and_memory_limits_reach_the_cgroup(daemon: Daemon) -> None:
    run_detached(daemon, "c1", flags=("--cpus", "0.5", "--memory-limit", str(64 << 20)))
    path = f"/{daemon.namespace}/c1"
    memory = Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
    unified = Path(f"/sys/fs/cgroup{path}/memory.max")
    assert int((memory if memory.exists() else unified).read_text()) == 64 << 20
    quota = Path(f"/sys/fs/cgroup/cpu{path}/cpu.cfs_quota_us")
    if quota.exists():
        assert int(quota.read_text()) == 50_000


def test_read_only(daemon: Daemon) -> None:
    done = daemon.try_ctr("run", "--rm", "--read-only", IMAGE, "c1", "touch", "/x")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


def test_privileged(daemon: Daemon) -> None:
    script = "grep CapEff /proc/self/status"
    plain = daemon.ctr("run", "--rm", IMAGE, "c1", "sh", "-c", script)
    privileged = daemon.ctr("run", "--rm", "--privileged", IMAGE, "c2", "sh", "-c", script)
    assert int(privileged.split()[1], 16) > int(plain.split()[1], 16)


def test_a_plain_directory_as_root(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tmp_path / "bin/busybox").chmod(0o755)
    out = daemon.ctr("run", "--rm", "--rootfs", str(tmp_path), "c1", "/bin/busybox", "echo", "ok")
    assert out == "ok\n"


def test_no_signal_is_ignored_inside(daemon: Daemon) -> None:
    out = daemon.ctr("run", "--rm", IMAGE, "c1", "grep", "SigIgn", "/proc/self/status")
    # Signals 32 and 33 are the C library's own: its posix_spawn leaves them ignored in the child,
    # and programs that use them (thread cancellation) install handlers.
    assert int(out.split()[1], 16) & ~(3 << 31) == 0


def test_a_missing_program_is_told(daemon: Daemon) -> None:
    done = daemon.try_ctr("run", "--rm", IMAGE, "c1", "no-such-program")
    assert done.returncode != 0
    assert re.search("executable file .*not found", done.stderr)
    assert daemon.ctr("tasks", "ls", "-q") == ""


def test_a_missing_runtime_is_told(daemon: Daemon) -> None:
    if daemon.runtime != RUNC:
        pytest.skip("ctr has no options for it")
    done = daemon.try_ctr("run", "--rm", "--runc-binary", "no-runc", IMAGE, "c1", "true")
    assert done.returncode != 0
    assert '"no-runc"' in done.stderr
    assert daemon.ctr("tasks", "ls", "-q") == ""


def test_detached_life(daemon: Daemon) -> None:
    run_detached(daemon, "c1")
    assert statuses(daemon) == {"c1": "RUNNING"}
    daemon.ctr("tasks", "pause", "c1")
    assert statuses(daemon) == {"c1": "PAUSED"}
    daemon.ctr("tasks", "resume", "c1")
    assert statuses(daemon) == {"c1": "RUNNING"}
    daemon.ctr("tasks", "kill", "-s", "SIGKILL", "c1")
    wait_until(lambda: statuses(daemon) == {"c1": "STOPPED"}, "c1 stopped")
    daemon.ctr("tasks", "rm", "c1")
    assert statuses(daemon) == {}


def test_exec(daemon: Daemon) -> None:
    run_detached(daemon, "c1")
    done = daemon.try_ctr("tasks", "exec", "--exec-id", "e1", "c1", "sh", "-c", "echo $$; exit 3")
    assert done.returncode == 3
    assert int(done.stdout) > 1
    done = daemon.try_ctr("tasks", "exec", "--exec-id", "e2", "c1", "cat", input=b"through")
    assert (done.stdout, done.returncode) == ("through", 0)


def test_exec_in_a_terminal(daemon: Daemon) -> None:
    run_detached(daemon, "c1")
    out = in_terminal(daemon, "tasks", "exec", "-t", "--exec-id", "e1", "c1", "tty")
    assert "/dev/pts/" in out


def test_run_in_a_terminal(daemon: Daemon) -> None:
    script = "tty; until stty size | grep '31 97'; do sleep 0.1; done"
    out = in_terminal(daemon, "run", "--rm", "-t", IMAGE, "c1", "sh", "-c", script)
    assert "/dev/pts/" in out
    assert "31 97" in out


def in_terminal(daemon: Daemon, *args: str) -> str:
    """Run ctr on a pseudo terminal of 31 rows and 97 columns; what it wrote there."""
    import fcntl
    import struct
    import termios

    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
    process = subprocess.Popen(daemon.ctr_command(*args), stdin=secondary, stdout=secondary,
        stderr=secondary, env=daemon.env, start_new_session=True)  # fmt: skip
    os.close(secondary)
    chunks = []
    try:
        while select.select([primary], [], [], 30)[0]:
            try:
                chunk = os.read(primary, 65536)
            except OSError:
                break
            if not chunk:
                break
            chunks.append(chunk)
        assert process.wait(30) == 0, b"".join(chunks)
    finally:
        process.kill()
        process.wait()
        os.close(primary)
    return b"".join(chunks).decode()


def test_attach(daemon: Daemon) -> None:
    daemon.ctr("containers", "create", IMAGE, "c1", "head", "-n", "1")
    starter = subprocess.Popen(daemon.ctr_command("tasks", "start", "c1"), env=daemon.env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: statuses(daemon) == {"c1": "RUNNING"}, "c1 running")
    starter.kill()
    starter.communicate()
    done = daemon.try_ctr("tasks", "attach", "c1", input=b"word\n")
    assert done.stdout == "word\n"


def test_processes_and_metrics(daemon: Daemon) -> None:
    run_detached(daemon, "c1")
    listed = rows(daemon.ctr("tasks", "ps", "c1"))
    assert len(listed) == 1
    assert rows(daemon.ctr("tasks", "ls"))[0][1] == listed[0][0]
    metrics = json.loads(daemon.ctr("tasks", "metrics", "--format", "json", "c1"))
    assert metrics["pids"]["current"] == 1 or int(metrics["pids"]["current"]) == 1


def test_kill_all(daemon: Daemon) -> None:
    run_detached(daemon, "c1", "sh", "-c", "sleep 1000 & sleep 1000 & wait")
    wait_until(lambda: len(rows(daemon.ctr("tasks", "ps", "c1"))) == 3, "three processes")
    daemon.ctr("tasks", "kill", "-a", "-s", "KILL", "c1")
    wait_until(lambda: statuses(daemon) == {"c1": "STOPPED"}, "c1 stopped")


def test_removing_a_running_task_needs_force(daemon: Daemon) -> None:
    run_detached(daemon, "c1")
    assert daemon.try_ctr("tasks", "rm", "c1").returncode != 0
    assert statuses(daemon) == {"c1": "RUNNING"}
    daemon.try_ctr("tasks", "rm", "-f", "c1")
    assert statuses(daemon) == {}


def test_a_task_that_exists(daemon: Daemon) -> None:
    run_detached(daemon, "c1")
    done = daemon.try_ctr("tasks", "start", "-d", "c1")
    assert "already exists" in done.stderr


def test_containers(daemon: Daemon) -> None:
    daemon.ctr("containers", "create", IMAGE, "c1", "sh")
    assert [row[:2] for row in rows(daemon.ctr("containers", "ls"))] == [["c1", IMAGE]]
    daemon.ctr("containers", "label", "c1", "a=b")
    info = json.loads(daemon.ctr("containers", "info", "c1"))
    assert info["Labels"]["a"] == "b"
    assert info["Spec"]["process"]["args"] == ["sh"]
    assert info["Runtime"]["Name"] == daemon.runtime
    assert daemon.ctr("containers", "ls", "-q", "labels.a==b") == "c1\n"
    assert daemon.ctr("containers", "ls", "-q", "labels.a==c") == ""
    daemon.ctr("containers", "rm", "c1")
    done = daemon.try_ctr("containers", "info", "c1")
    assert re.search(r'container "c1" in namespace "\w+": not found', done.stderr)


def test_events(daemon: Daemon) -> None:
    with subprocess.Popen(daemon.ctr_command("events"), stdout=subprocess.PIPE, text=True,
                          env=daemon.env) as listener:  # fmt: skip
        assert listener.stdout is not None
        # The subscription is there once an event published by us comes back.
        daemon.ctr("namespaces", "label", daemon.namespace, "ready=yes")
        topics: list[str] = []
        while "/namespaces/update" not in topics:
            if not select.select([listener.stdout], [], [], 0.05)[0]:
                daemon.ctr("namespaces", "label", daemon.namespace, "ready=yes")
                continue
            topics.append(listener.stdout.readline().split()[5])
        daemon.ctr("run", "--rm", IMAGE, "c1", "true")
        while "/containers/delete" not in topics:
            topics.append(listener.stdout.readline().split()[5])
        listener.send_signal(signal.SIGTERM)
    order = [topic for topic in topics if topic.startswith(("/tasks", "/containers"))]
    assert order == ["/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit",
                     "/tasks/delete", "/containers/delete"]  # fmt: skip


@pytest.mark.parametrize("count", [10])
def test_many_at_once(daemon: Daemon, count: int) -> None:
    runs = [
        subprocess.Popen(
            daemon.ctr_command("run", "--rm", IMAGE, f"m{n}", "sh", "-c", f"echo {n}; exit {n}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=daemon.env,
        )
        for n in range(count)
    ]
    for n, process in enumerate(runs):
        out, err = process.communicate(timeout=60)
        assert (out.decode(), process.returncode) == (f"{n}\n", n), err
