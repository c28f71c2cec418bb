"""``cradle run`` and what is done to its containers, on a real daemon with real runc."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from harness.cradle import Cradle
from harness.daemon import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

IMAGE = "busybox:test"


def script(cradle: Cradle, text: str, *flags: str) -> str:
    return cradle.ok("run", "--rm", *flags, IMAGE, "sh", "-c", text)


def test_output_and_exit_status(cradle: Cradle) -> None:
    done = cradle.run("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_much_output_is_complete(cradle: Cradle) -> None:
    done = cradle.run("run", "--rm", IMAGE, "seq", "300000")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 300001))


def test_input(cradle: Cradle) -> None:
    data = os.urandom(1 << 20).hex()
    assert cradle.ok("run", "--rm", "-i", IMAGE, "cat", input=data) == data
    assert cradle.ok("run", "--rm", "-i", IMAGE, "wc", "-c", input="") == "0\n"
    assert cradle.ok("run", "--rm", IMAGE, "cat", input="not given") == ""


def test_input_from_a_file(cradle: Cradle, tmp_path: Path) -> None:
    (tmp_path / "input").write_text("from a file")
    with open(tmp_path / "input") as file:
        process = cradle.popen("run", "--rm", "-i", IMAGE, "cat", stdin=file, stdout=-1)
        assert process.communicate(timeout=60)[0] == b"from a file"


def test_the_process(cradle: Cradle) -> None:
    assert script(cradle, "echo $GREETING $A $B", "-e", "A=1", "-e", "B=x y") == "hello 1 x y\n"
    assert script(cradle, "pwd", "-w", "/tmp") == "/tmp\n"
    assert script(cradle, "id -u; id -g", "-u", "user") == "1000\n1000\n"
    assert script(cradle, "id -u; id -g", "--user", "7:8") == "7\n8\n"
    assert script(cradle, "hostname", "--hostname", "box") == "box\n"
    assert script(cradle, "hostname", "--name", "named") == "named\n"
    assert cradle.ok("run", "--rm", "--entrypoint", "echo", IMAGE, "a", "b") == "a b\n"
    assert cradle.ok("run", "--rm", IMAGE, "echo", "--json", "-d") == "--json -d\n"


def test_confinement_is_on(cradle: Cradle) -> None:
    status = script(cradle, "cat /proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    assert fields["CapEff"] == fields["CapBnd"] == "00000000a80425fb"
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, a container must not
        assert not int(fields["SigIgn"], 16) >> (number - 1) & 1
    done = cradle.run("run", "--rm", IMAGE, "unshare", "-U", "true")
    assert done.returncode != 0
    assert "not permitted" in done.stderr
    assert "lo:" in script(cradle, "ip -o addr 2>/dev/null || ifconfig -a; cat /proc/net/dev")


def test_privileged(cradle: Cradle) -> None:
    text = (
        "mount -t tmpfs none /tmp && ls /dev/loop-control /dev/null && unshare -m true && echo ok"
    )
    if not os.path.exists("/dev/loop-control"):
        text = text.replace("/dev/loop-control ", "")
    assert script(cradle, text, "--privileged").endswith("ok\n")


def test_read_only(cradle: Cradle) -> None:
    text = "touch /x 2>/dev/null || echo no; touch /run/x && echo yes"
    assert script(cradle, text, "--read-only") == "no\nyes\n"


def test_volumes(cradle: Cradle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    text = "cat /a/file; touch /a/x 2>/dev/null || echo read only; touch /b/made"
    shown = script(cradle, text, "-v", f"{tmp_path}:/a:ro", "-v", f"{tmp_path}:/b")
    assert shown == "helloread only\n"
    assert (tmp_path / "made").exists()


def test_host_network(cradle: Cradle) -> None:
    here = os.readlink("/proc/self/ns/net")
    assert script(cradle, "readlink /proc/self/ns/net", "--net", "host").strip() == here
    assert script(cradle, "readlink /proc/self/ns/net", "--net", "none").strip() != here


def test_limits(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "box", "-m", "64m", "--cpus", "0.5", IMAGE, "sleep", "1000")
    pid = cradle.json("ps")[0]["pid"]
    found = dict(
        (line.split(":")[1], line.split(":")[2])
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    )
    assert found.get("memory", found.get("")) == f"/{cradle.daemon.namespace}/box"
    top = Path("/sys/fs/cgroup")
    if "memory" in found:
        limit = top / f"memory{found['memory']}/memory.limit_in_bytes"
        quota = top / f"cpu{found['cpu']}/cpu.cfs_quota_us"
    else:
        limit, quota = top / f"{found['']}/memory.max", top / f"{found['']}/cpu.max"
    assert limit.read_text().strip() == str(64 << 20)
    assert quota.read_text().split()[0] == "50000"


def test_without_rm_it_stays(cradle: Cradle) -> None:
    cradle.run("run", "--name", "done", IMAGE, "sh", "-c", "exit 3")
    assert cradle.ok("ps") == ""
    (listed,) = cradle.json("ps", "-a")
    assert (listed["name"], listed["state"], listed["exit_status"]) == ("done", "exited", 3)
    assert cradle.ok("wait", "done") == "done\t3\n"
    assert "already exists; choose another --name, or `cradle rm done` first" in cradle.fails(
        "run", "--name", "done", IMAGE, "true", status=125
    )
    assert cradle.ok("rm", "done") == "done\n"


def test_detached_life(cradle: Cradle) -> None:
    loop = "trap 'echo bye; exit 4' TERM; echo ready; echo err >&2; while :; do sleep 0.05; done"
    assert cradle.ok("run", "-d", "--name", "web", IMAGE, "sh", "-c", loop) == "web\n"
    wait_until(lambda: "err" in cradle.ok("logs", "web"), "output is logged")
    assert cradle.ok("ps", "-q") == "web\n"
    row = cradle.ok("ps").rstrip("\n").split("\t")
    assert row[:2] == ["web", IMAGE]
    assert row[3] == "running"
    assert "is running; `cradle stop` it first, or use --force" in cradle.fails("rm", "web")
    assert cradle.ok("stop", "web") == "web\n"
    assert cradle.ok("stop", "web") == "web\n"
    assert cradle.ok("wait", "web") == "web\t4\n"
    assert sorted(cradle.ok("logs", "web").split()) == ["bye", "err", "ready"]
    assert cradle.ok("logs", "-n", "1", "web") == "bye\n"
    log = Path(cradle.json("inspect", "web")[0]["labels"]["cradle/log"])
    assert log.exists()
    cradle.ok("rm", "web")
    assert not log.exists()


def test_stop_kills_what_does_not_listen(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "deaf", IMAGE, "sh", "-c", "trap '' TERM; sleep 1000")
    cradle.ok("stop", "-t", "0.2", "deaf")
    assert cradle.ok("wait", "deaf") == "deaf\t137\n"


def test_follow_logs_to_the_end(cradle: Cradle) -> None:
    text = "read x </tmp/go; for i in 1 2 3; do echo $i; done"
    cradle.ok("run", "-d", "--name", "f", IMAGE, "sh", "-c", f"mkfifo /tmp/go; echo 0; {text}")
    follow = cradle.popen("logs", "-f", "f", stdout=subprocess.PIPE)
    assert follow.stdout is not None
    assert follow.stdout.readline() == b"0\n"
    cradle.ok("exec", "f", "sh", "-c", "echo go >/tmp/go")
    assert follow.communicate(timeout=60)[0] == b"1\n2\n3\n"
    assert follow.returncode == 0


def test_exec(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "box", "-e", "A=1", "-w", "/tmp", IMAGE, "sleep", "1000")
    done = cradle.run("exec", "box", "sh", "-c", "echo $A$B; pwd; exit 9")
    assert (done.returncode, done.stdout) == (9, "1\n/tmp\n")
    flags = ("-e", "B=2", "-w", "/etc", "-u", "user")
    assert (
        cradle.ok("exec", *flags, "box", "sh", "-c", "echo $A$B; pwd; id -u") == "12\n/etc\n1000\n"
    )
    assert cradle.ok("exec", "-i", "box", "cat", input="typed") == "typed"
    assert cradle.ok("exec", "-d", "box", "sh", "-c", "echo x >/tmp/made") == ""
    wait_until(
        lambda: cradle.run("exec", "box", "cat", "/tmp/made").stdout == "x\n", "exec -d has run"
    )
    assert "executable file not found" in cradle.fails("exec", "box", "nosuch", status=127)
    cradle.ok("kill", "box")
    cradle.ok("wait", "box")
    assert "does not run" in cradle.fails("exec", "box", "true", status=125)
    assert "`cradle ps -a` lists" in cradle.fails("exec", "nosuch", "true", status=125)


def test_kill_with_a_signal(cradle: Cradle) -> None:
    text = "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done"
    cradle.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", text)
    wait_until(lambda: cradle.ok("logs", "box") == "ready\n", "the trap is set")
    cradle.ok("kill", "-s", "USR1", "box")
    assert cradle.ok("wait", "box") == "box\t5\n"
    assert 'signal "NOSUCH"' in cradle.fails("kill", "-s", "NOSUCH", "box")


def test_signals_are_passed_on(cradle: Cradle) -> None:
    text = "trap 'echo got it; exit 6' TERM; echo ready; while :; do sleep 0.05; done"
    process = cradle.popen("run", "--rm", IMAGE, "sh", "-c", text, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == b"got it\n"
    assert process.returncode == 6


def test_the_third_interrupt_kills(cradle: Cradle) -> None:
    process = cradle.popen(
        "run", "--rm", IMAGE, "sh", "-c", "echo ready; exec sleep 1000", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for _ in range(3):  # init ignores what it has no handler for
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        wait_until(lambda: _pending(process.pid, signal.SIGINT) == 0, "the signal is taken")
    assert process.wait(60) == 137
    process.stdout.close()


def _pending(pid: int, number: int) -> int:
    """Whether a signal still waits to be delivered to a process; not when the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    masks = [
        line.split()[1] for line in status.splitlines() if line.startswith(("ShdPnd", "SigPnd"))
    ]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restarted_daemon_is_waited_for(cradle: Cradle, how: str) -> None:
    text = "trap 'echo bye; exit 6' TERM; echo ready; while :; do sleep 0.05; done"
    process = cradle.popen("run", "--name", "box", IMAGE, "sh", "-c", text, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    getattr(cradle.daemon, how)()
    cradle.daemon.start()
    cradle.ok("kill", "-s", "TERM", "box")
    assert process.communicate(timeout=60)[0] == b"bye\n"
    assert process.returncode == 6
    assert cradle.ok("wait", "box") == "box\t6\n"


def test_stop_wakes_what_is_paused(cradle: Cradle) -> None:
    text = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    cradle.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", text)
    wait_until(lambda: cradle.ok("logs", "box") == "ready\n", "the trap is set")
    cradle.daemon.ctr("tasks", "pause", "box")
    assert cradle.json("ps")[0]["state"] == "paused"
    cradle.ok("stop", "box")
    assert cradle.ok("wait", "box") == "box\t5\n"


def test_nobody_takes_the_output(cradle: Cradle) -> None:
    process = cradle.popen("run", "--rm", IMAGE, "seq", "200000", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (("nosuch:1",), 125, "bring it in with `cradle import FILE`"),
        ((IMAGE, "nosuch"), 127, "executable file not found"),
        ((IMAGE, "/etc/passwd"), 126, "permission denied"),
        (("-d", "--rm", IMAGE), 125, "exclude each other"),
        (("-it", IMAGE), 125, "the input is no terminal; leave out -t"),
        (("-m", "lots", IMAGE), 1, 'size "lots"'),
        (("-m", "1k", IMAGE), 125, "memory limit"),
        (("-v", "/nowhere", IMAGE), 1, "SOURCE:DESTINATION"),
        (("-v", "nowhere:/x", IMAGE), 1, 'there is no "nowhere"'),
        (("--name", "bad name", IMAGE), 125, "must match"),
        (("-u", "nosuch", IMAGE), 125, 'user "nosuch" in /etc/passwd'),
        (("--nosuch", IMAGE), 2, "see `cradle run --help`"),
        (("--net", "bridge", IMAGE), 2, "see `cradle run --help`"),
        ((), 2, "see `cradle run --help`"),
    ],
)
def test_errors_say_what_to_do(
    cradle: Cradle, args: tuple[str, ...], status: int, text: str
) -> None:
    assert text in cradle.fails("run", *args, status=status)


def test_json(cradle: Cradle) -> None:
    done = json.loads(
        cradle.run("run", "--rm", "--json", IMAGE, "sh", "-c", "echo a; exit 2").stdout
    )
    assert (done["status"], done["stdout"], done["stderr"]) == (2, "a\n", "")
    started = json.loads(cradle.ok("run", "--json", "-d", "--name", "box", IMAGE, "sleep", "1000"))
    assert started["name"] == "box"
    (listed,) = cradle.json("ps")
    assert listed["pid"] == started["pid"]
    assert listed["command"] == ["sleep", "1000"]
    (inspected,) = cradle.json("inspect", "box")
    assert inspected["spec"]["process"]["args"] == ["sleep", "1000"]
    assert inspected["image"] == "docker.io/library/busybox:test"
    assert cradle.json("kill", "box") == [{"name": "box"}]
    assert cradle.json("wait", "box") == [{"name": "box", "status": 137}]
    assert cradle.json("rm", "box") == [{"name": "box"}]
    assert cradle.json("ps", "-a") == []
    assert set(cradle.json("version")) == {"client", "server"}


def test_namespaces_are_apart(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    assert cradle.ok("--namespace", "other", "ps", "-a") == ""
    assert cradle.ok("ps", "-a", "--namespace", "other") == ""
    assert cradle.ok("--namespace", cradle.daemon.namespace, "ps", "-q") == "box\n"


def test_events(cradle: Cradle) -> None:
    events = cradle.popen("events", "--json", "topic~=/tasks/", stdout=subprocess.PIPE)
    assert events.stdout is not None
    seen: list[dict[str, object]] = []
    os.set_blocking(events.stdout.fileno(), False)

    def read() -> bool:
        for line in events.stdout or ():
            seen.append(json.loads(line))
        return any(event["topic"] == "/tasks/delete" for event in seen)

    def ran_and_seen() -> bool:
        """A subscription begins some time after the command: run until one was seen whole."""
        cradle.ok("run", "--rm", "--name", "seen", IMAGE, "true")
        return read()

    wait_until(ran_and_seen, "events are shown")
    events.terminate()
    events.wait()
    events.stdout.close()
    exits = [event for event in seen if event["topic"] == "/tasks/exit"]
    assert exits[-1]["event"]["container_id"] == "seen"  # type: ignore[index]
    assert exits[-1]["namespace"] == cradle.daemon.namespace


def test_table_on_a_terminal(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    controller, terminal = os.openpty()
    process = cradle.popen("ps", stdout=terminal)
    os.close(terminal)
    assert process.wait(60) == 0
    lines = os.read(controller, 65536).decode().splitlines()
    os.close(controller)
    assert lines[0].split() == ["NAME", "IMAGE", "COMMAND", "STATE", "PID", "CREATED", "RESTARTS"]
    assert lines[1].split()[0] == "box"
    assert lines[0].index("IMAGE") == lines[1].index("busybox")
