"""A policy on a real daemon: what ctr may do as whom, what is told, how rules change."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows, wait_until

import cradled
from cradled.rpc.status import Code

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

GROUP = 54321
USER = 12345

RULES = """
[[rules]]
name = "root"
verdict = "allow"
uids = [0]
namespaces = ["*"]

[[rules]]
name = "not theirs"
verdict = "deny"
namespaces = ["secret"]

[[rules]]
verdict = "allow"
methods = ["read"]
gids = [54321]

[[rules]]
name = "programs"
verdict = "allow"
executables = ["/usr/bin/ctr"]
methods = ["containerd.services.leases.v1.Leases/*"]
"""


class World:
    def __init__(self, directory: Path) -> None:
        self.daemon = Daemon(directory, "cradled")
        self.rules = directory / "policy.toml"
        self.config = directory / "config.toml"
        self.write(RULES)
        self.config.write_text(
            f'version = 4\n[plugins."io.cradled.policy.v1.file"]\npath = "{self.rules}"\n'
            f'[plugins."io.containerd.server.v1.grpc"]\ngid = {GROUP}\n'
        )

    def start(self) -> None:
        self.daemon.start("--config", str(self.config))

    def write(self, text: str) -> None:
        new = self.rules.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o600)
        new.rename(self.rules)

    def as_user(self, *args: str, namespace: str = "open") -> subprocess.CompletedProcess[str]:
        """ctr as somebody whose only way to the socket is a supplementary group."""
        command = ["ctr", "-a", str(self.daemon.socket), "-n", namespace, *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=30, cwd="/",
            stdin=subprocess.DEVNULL, user=USER, group=USER, extra_groups=[GROUP],
        )  # fmt: skip

    def log(self) -> str:
        return self.daemon.log.read_text()

    def logged(self, text: str) -> bool:
        return text in self.log()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not below pytest's own, into which only root may look."""
    with tempfile.TemporaryDirectory(prefix="cradled-policy-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def world(directory: Path) -> Iterator[World]:
    world = World(directory)
    try:
        yield world
    finally:
        world.daemon.destroy()


def denied(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "policy: " in done.stderr
    assert ": permission denied" in done.stderr
    return done.stderr


def test_who_may_do_what(world: World) -> None:
    world.start()
    world.daemon.ctr("namespaces", "create", "open")
    looked = world.as_user("containers", "ls", "-q")
    assert (looked.returncode, looked.stderr) == (0, "")
    text = denied(world.as_user("snapshots", "prepare", "x"))
    assert 'in namespace "open" (rule "default"): permission denied' in text
    assert f"policy: uid {USER} (pid " in text
    assert ", /usr/bin/ctr) may not call containerd.services.snapshots.v1.Snapshots/Prepare" in text
    text = denied(world.as_user("containers", "ls", namespace="secret"))
    assert 'Containers/ListStream in namespace "secret" (rule "not theirs")' in text
    assert world.as_user("leases", "create").returncode == 0
    text = denied(world.as_user("namespaces", "rm", "secret"))
    assert 'Namespaces/Delete in namespace "secret" (rule "not theirs")' in text
    assert world.daemon.ctr("namespaces", "ls", "-q").split() == ["open"]
    assert world.log().count('level=warning msg="policy: uid') >= 3


def test_a_denial_is_an_event(world: World) -> None:
    world.start()
    told = world.daemon.directory / "told"
    with open(told, "wb") as file:
        command = world.daemon.ctr_command("events", 'topic=="/policy/denied"')
        events = subprocess.Popen(command, stdout=file, env=world.daemon.env)

    def seen() -> bool:
        denied(world.as_user("containers", "ls", namespace="secret"))
        return b"\n" in told.read_bytes()

    try:
        wait_until(seen, "a denial among the events")
    finally:
        events.terminate()
        events.wait(20)
    line = told.read_text().splitlines()[0]
    assert " secret /policy/denied " in line
    status = json.loads(line[line.index("{") :])
    assert status["code"] == Code.PERMISSION_DENIED
    assert status["message"].startswith(f"policy: uid {USER} (pid ")
    assert status["message"].endswith(
        'in namespace "secret" (rule "not theirs"): permission denied'
    )


def test_rules_are_read_again(world: World) -> None:
    world.start()
    assert world.as_user("leases", "create").returncode == 0
    assert world.daemon.process is not None
    for text, says, status in (
        ("nonsense = 1", "the policy stays as it was: ", 0),
        (RULES.replace("Leases/*", "Leases/List"), "the policy was read again", 1),
    ):
        world.write(text)
        world.daemon.process.send_signal(signal.SIGHUP)
        wait_until(partial(world.logged, says), says)
        assert world.as_user("leases", "create").returncode == status


def test_a_bad_file_stops_the_boot(world: World) -> None:
    world.write('[[rules]]\nverdict = "allow"\nuid = [0]\n')
    command = [*world.daemon.command(), "--config", str(world.config)]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, check=False, timeout=30, env=world.daemon.env
    )
    text = f'{world.rules}: unknown key \\"uid\\" in rule 1 (did you mean \\"uids\\"?)'
    assert f'level=fatal msg="io.cradled.policy.v1.file: {text}' in done.stderr
    assert done.returncode == 1


def test_no_policy_without_one(world: World) -> None:
    world.daemon.start()
    plugins = rows(world.daemon.ctr("plugins", "ls"))
    assert [row[1:] for row in plugins if row[0].startswith("io.cradled.policy")] == [
        ["file", "-", "skip"],
        ["python", "-", "skip"],
    ]


async def test_our_client_reads_and_filters_denials(world: World) -> None:
    world.start()
    denied(world.as_user("containers", "ls", namespace="secret"))
    async with cradled.connect(str(world.daemon.socket)) as client:
        events = client.events('topic=="/policy/denied",event.rule=="not theirs"')
        first = asyncio.ensure_future(anext(events))
        while not first.done():
            await asyncio.to_thread(world.as_user, "snapshots", "ls", namespace="none")
            await asyncio.to_thread(world.as_user, "containers", "ls", namespace="secret")
        event = await first
        await events.aclose()
    assert event.namespace == "secret"
    facts = {**event.fields}
    assert facts.pop("pid").isdecimal()
    assert facts.pop("message").startswith(f"policy: uid {USER} ")
    assert facts == {
        "method": "containerd.services.containers.v1.Containers/ListStream",
        "namespace": "secret",
        "transport": "grpc",
        "rule": "not theirs",
        "uid": str(USER),
        "gid": str(USER),
        "executable": "/usr/bin/ctr",
    }
