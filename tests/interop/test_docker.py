"""The Docker Engine, unchanged, on our socket: what its users do every day.

The engine of this machine, and that of the next Debian release.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import newer
from harness.daemon import Daemon, target, wait_until
from harness.dockerd import Dockerd

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        None in map(shutil.which, ("dockerd", "docker")), reason="needs dockerd and its client"
    ),
    pytest.mark.parametrize("pairing", ["ours", "newer-runc"], indirect=True, scope="module"),
]

LOOP = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"
LINE = "read x; echo got $x; exit 4"


@pytest.fixture(scope="module")
def runsc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gVisor's runtime, by a script that may be missing what it calls."""
    path = tmp_path_factory.mktemp("runtime") / "runsc"
    try:
        program = str(newer.program("runsc"))
    except newer.Unavailable:
        program = "/nonexistent"
    path.write_text(f'#!/bin/sh\nexec {program} -network=none "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def docker(
    empty_daemon: Daemon, runsc: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dockerd]:
    docker = Dockerd(empty_daemon)
    try:
        docker.start(f"--add-runtime=runsc={runsc}")
        docker.load_busybox(tmp_path_factory.mktemp("image"))
        yield docker
    finally:
        docker.destroy()


@pytest.fixture
def box(docker: Dockerd) -> Iterator[str]:
    """A running container."""
    yield docker.ok("run", "-d", "--name", "box", "bb", "sleep", "1000") and "box"
    docker.ok("rm", "-f", "box")


def test_which_engine_it_is(docker: Dockerd, pairing: str) -> None:
    major = int(docker.ok("version", "-f", "{{.Server.Version}}").partition(".")[0])
    assert major >= (26 if pairing.startswith("newer") else 20)
    assert docker.ok("info", "-f", "{{.DefaultRuntime}}") == "runc"


@pytest.mark.parametrize(
    ("words", "status", "output"),
    [
        (["bb", "echo", "hi"], 0, "hi\n"),
        (["bb", "sh", "-c", "exit 7"], 7, ""),
        (["-m", "64m", "--cpus", "0.5", "--pids-limit", "50", "-u", "1000", "bb", "id", "-u"],
         0, "1000\n"),
        (["--read-only", "bb", "touch", "/x"], 1, ""),
        (["--ulimit", "nofile=123", "bb", "sh", "-c", "ulimit -n"], 0, "123\n"),
        (["-e", "A=b", "-w", "/etc", "bb", "sh", "-c", "echo $A; ls"], 0,
         "b\ngroup\nhostname\nhosts\nmotd\nmtab\npasswd\nresolv.conf\n"),
        (["--network", "none", "bb", "ip", "-o", "-4", "addr", "show", "eth0"], 1, ""),
    ],
)  # fmt: skip
def test_run(docker: Dockerd, words: list[str], status: int, output: str) -> None:
    done = docker.run("run", "--rm", *words)
    assert (done.returncode, done.stdout) == (status, output), done.stderr
    assert docker.ok("ps", "-aq") == ""


def test_statuses_of_what_cannot_run(docker: Dockerd) -> None:
    assert docker.run("run", "--rm", "bb", "nosuch").returncode == 127
    assert docker.run("run", "--rm", "bb", "/etc").returncode == 126
    assert docker.run("run", "--rm", "-v", "/nosuch/../:/proc/x", "bb", "true").returncode == 125


def test_a_runtime_of_others(docker: Dockerd, runsc: Path, pairing: str) -> None:
    if "/nonexistent" in runsc.read_text():
        pytest.skip("there is no runsc")
    words = ("run", "-d", "--name", "sandbox", "--runtime", "runsc", "--network", "none", "bb")
    docker.ok(*words, "sh", "-c", LOOP)
    wait_until(lambda: docker.ok("logs", "sandbox") == "ready", "it heeds signals")
    assert docker.ok("exec", "sandbox", "uname", "-r") == "4.4.0"
    assert docker.ok("stop", "sandbox") == "sandbox"
    assert docker.inspect("sandbox", ".State.ExitCode") == "9"
    docker.ok("rm", "sandbox")
    # Older engines leave the task of what does not start, and the original cannot end it.
    if pairing != "ours" and target() == "cradled":
        assert docker.run("run", "--rm", *words[4:], "nosuch").returncode == 127


def test_a_shim_by_its_type(docker: Dockerd, pairing: str) -> None:
    if pairing == "ours":
        pytest.skip("engines before 23 know runtimes that they are told of")
    words = ("run", "--rm", "--runtime", "io.containerd.cradled.v2", "bb", "sh", "-c", "exit 7")
    assert docker.run(*words).returncode == 7


def test_init_and_input(docker: Dockerd) -> None:
    assert "docker-init" in docker.ok("run", "--rm", "--init", "bb", "ps")
    assert docker.run("run", "-i", "--rm", "bb", "cat", input="typed").stdout == "typed"
    words = docker.command("run", "-it", "--rm", "bb", "sh", "-c", "'[ -t 0 ] && echo a terminal'")
    told = subprocess.run(["script", "-qec", " ".join(words), "/dev/null"], env=docker.env,
        capture_output=True, text=True, check=True, timeout=60)  # fmt: skip
    assert "a terminal" in told.stdout


def test_what_is_done_to_a_container(docker: Dockerd, box: str, tmp_path: Path) -> None:
    done = docker.run("exec", box, "sh", "-c", "echo in; exit 5")
    assert (done.returncode, done.stdout) == (5, "in\n")
    assert docker.run("exec", "-i", box, "cat", input="x").stdout == "x"
    assert docker.run("exec", box, "nosuch").returncode in (126, 127)
    assert "sleep 1000" in docker.ok("top", box)
    assert box in docker.ok("stats", "--no-stream", box)
    docker.ok("pause", box)
    assert docker.inspect(box, ".State.Status") == "paused"
    docker.ok("unpause", box)
    docker.ok("update", "-m", "128m", "--memory-swap", "128m", box)
    assert docker.inspect(box, ".HostConfig.Memory") == "134217728"
    (tmp_path / "f").write_text("data")
    docker.ok("cp", str(tmp_path / "f"), f"{box}:/tmp/f")
    assert docker.ok("exec", box, "cat", "/tmp/f") == "data"
    docker.ok("cp", f"{box}:/tmp/f", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "data"
    docker.ok("commit", box, "committed")
    assert docker.ok("run", "--rm", "committed", "cat", "/tmp/f") == "data"
    docker.ok("kill", box)
    assert docker.ok("wait", box) == "137"
    assert docker.inspect(box, ".State.Status") == "exited"
    docker.ok("start", box)
    assert docker.ok("stop", "-t", "1", box) == box
    assert docker.inspect(box, ".State.ExitCode") == "137"


def test_logs_follow_to_the_end(docker: Dockerd) -> None:
    docker.ok("run", "-d", "--name", "logs", "bb", "sh", "-c", "for i in 1 2 3; do echo $i; done")
    assert docker.ok("logs", "-f", "logs") == "1\n2\n3"
    docker.ok("rm", "-f", "logs")


def test_attach(docker: Dockerd) -> None:
    docker.ok("run", "-d", "-i", "--name", "att", "bb", "sh", "-c", LINE)
    done = docker.run("attach", "att", input="it\n")
    assert done.returncode == 4, done.stderr
    assert docker.ok("logs", "att") == "got it"  # its own client may hang up before it reads that
    docker.ok("rm", "att")


def test_killed_for_memory(docker: Dockerd) -> None:
    command = "x=a; while true; do x=$x$x; done"
    assert docker.run("run", "--name", "oom", "-m", "16m", "bb", "sh", "-c", command).returncode
    assert docker.inspect("oom", ".State.OOMKilled") == "true"
    assert docker.inspect("oom", ".State.ExitCode") == "137"
    docker.ok("rm", "oom")


def test_restart_policies(docker: Dockerd) -> None:
    docker.ok(
        "run", "-d", "--name", "twice", "--restart", "on-failure:2", "bb", "sh", "-c", "exit 3"
    )
    wait_until(lambda: docker.inspect("twice", ".RestartCount") == "2", "restarted twice")
    wait_until(lambda: docker.inspect("twice", ".State.Status") == "exited", "given up")
    assert docker.inspect("twice", ".State.ExitCode") == "3"
    docker.ok("rm", "twice")


def test_health(docker: Dockerd) -> None:
    docker.ok("run", "-d", "--name", "health", "--health-cmd", "true", "--health-interval", "0.2s",
              "bb", "sleep", "100")  # fmt: skip
    wait_until(lambda: docker.inspect("health", ".State.Health.Status") == "healthy", "healthy")
    docker.ok("rm", "-f", "health")


def test_networks(docker: Dockerd) -> None:
    serve = ("bb", "httpd", "-f", "-p", "80", "-h", "/etc")
    docker.ok("network", "create", "lan")
    docker.ok("run", "-d", "--name", "srv", "--network", "lan", *serve)
    assert "user" in docker.ok("run", "--rm", "--network", "lan", "bb", "wget", "-qO-",
                               "http://srv/group")  # fmt: skip
    docker.ok("run", "-d", "--name", "pub", "-p", "8099:80", *serve)
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8099/group').read())"
    wait_until(lambda: b"user" in docker.inside("python3", "-c", fetch, check=False).stdout, "up")
    docker.ok("network", "connect", "lan", "pub")
    assert "user" in docker.ok("exec", "srv", "wget", "-qO-", "http://pub/group")
    docker.ok("rm", "-f", "srv", "pub")
    docker.ok("network", "rm", "lan")


def test_volumes_and_build(docker: Dockerd, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM bb\nRUN echo built > /b\nCMD cat /b\n")
    docker.ok("build", "-q", "-t", "built", str(tmp_path))
    assert docker.ok("run", "--rm", "built") == "built"
    docker.ok("run", "--rm", "-v", "vol:/v", "bb", "sh", "-c", "echo kept > /v/f")
    assert docker.ok("run", "--rm", "-v", "vol:/v:ro", "bb", "cat", "/v/f") == "kept"
    docker.ok("volume", "rm", "vol")


def test_many_at_once(docker: Dockerd, pairing: str) -> None:
    count = 50 if pairing == "ours" else 10
    with ThreadPoolExecutor(count) as pool:
        runs = [pool.submit(docker.run, "run", "--rm", "bb", "echo", str(i)) for i in range(count)]
    assert [run.result().stdout for run in runs] == [f"{i}\n" for i in range(count)]
    assert docker.ok("ps", "-aq") == ""


@pytest.mark.skipif(target() == "containerd", reason="the original loses such an exit")
def test_our_daemon_comes_back_under_it(docker: Dockerd) -> None:
    """One container runs on, one ends while nobody looks; dockerd learns both."""
    for name in ("stays", "ends"):
        docker.ok("run", "-d", "--name", name, "bb", "sh", "-c", LOOP)
    wait_until(lambda: docker.ok("logs", "ends") == "ready", "it heeds signals")
    pid = int(docker.inspect("ends", ".State.Pid"))
    docker.daemon.kill()
    os.kill(pid, 15)
    docker.daemon.start()
    wait_until(lambda: docker.inspect("ends", ".State.Status") == "exited", "the exit is told", 60)
    assert docker.inspect("ends", ".State.ExitCode") == "9"
    assert docker.inspect("stays", ".State.Status") == "running"
    assert docker.ok("exec", "stays", "echo", "here") == "here"
    docker.ok("rm", "-f", "stays", "ends")


def test_dockerd_comes_back(docker: Dockerd) -> None:
    """With live-restore containers run on, and dockerd adopts them when it is back."""
    docker.stop()
    docker.start("--live-restore")
    docker.ok("run", "-d", "--name", "live", "bb", "sleep", "1000")
    pid = docker.inspect("live", ".State.Pid")
    for end in (docker.stop, docker.kill):
        end()
        docker.start("--live-restore")
        assert docker.inspect("live", ".State.Pid") == pid
        assert docker.ok("exec", "live", "echo", "here") == "here"
    docker.ok("rm", "-f", "live")
