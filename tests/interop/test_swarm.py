"""A swarm of one node on our socket: replicas, an update, a crash, secrets and configs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from harness.daemon import Daemon, wait_until
from harness.dockerd import Dockerd

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        None in map(shutil.which, ("dockerd", "docker")), reason="needs dockerd and its client"
    ),
]

LINKS = "ip link add sw0 type veth peer name sw1 && ip addr add 10.99.0.1/24 dev sw0"
UP = "ip link set sw0 up && ip link set sw1 up"
QUICK = ("-q", "-d", "--no-resolve-image")


@pytest.fixture(scope="module")
def swarm(empty_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    docker = Dockerd(empty_daemon)
    try:
        docker.inside("sh", "-c", f"{LINKS} && {UP}")
        docker.start()
        docker.load_busybox(tmp_path_factory.mktemp("image"))
        docker.ok("swarm", "init", "--advertise-addr", "10.99.0.1")
        yield docker
        docker.ok("swarm", "leave", "--force")
    finally:
        docker.destroy()


def running(docker: Dockerd) -> list[str]:
    return docker.ok("ps", "-q", "--filter", "status=running").split()


def test_a_service(swarm: Dockerd) -> None:
    for kind in ("secret", "config"):
        swarm.ok(kind, "create", kind, "-", input=f"a {kind}")
    swarm.ok("service", "create", *QUICK, "--name", "web", "--replicas", "2",
             "--endpoint-mode", "dnsrr", "--secret", "secret",
             "--config", "source=config,target=/c",
             "--restart-delay", "100ms", "--stop-grace-period", "1s",
             "bb", "sleep", "1000")  # fmt: skip
    wait_until(lambda: len(running(swarm)) == 2, "two replicas", 60)
    first = running(swarm)
    told = swarm.ok("exec", first[0], "cat", "/run/secrets/secret", "/c")
    assert told == "a secreta config"
    swarm.ok("service", "scale", "-d", "web=3")
    wait_until(lambda: len(running(swarm)) == 3, "three replicas", 60)
    swarm.ok("service", "scale", "-d", "web=1")
    wait_until(lambda: len(running(swarm)) == 1, "one replica", 60)
    (old,) = running(swarm)
    swarm.ok("service", "update", *QUICK, "--env-add", "A=1", "web")
    wait_until(lambda: running(swarm) not in ([], [old]) and old not in running(swarm), "new", 60)
    (updated,) = running(swarm)
    assert "A=1" in swarm.inspect(updated, ".Config.Env")
    swarm.ok("kill", updated)
    wait_until(lambda: running(swarm) and updated not in running(swarm), "another one", 60)
    swarm.ok("service", "rm", "web")
    wait_until(lambda: running(swarm) == [], "none", 60)


def test_ports_of_the_host(swarm: Dockerd) -> None:
    swarm.ok("service", "create", *QUICK, "--name", "pub", "--endpoint-mode", "dnsrr",
             "--publish", "mode=host,published=8077,target=80", "--stop-grace-period", "1s",
             "bb", "httpd", "-f", "-p", "80", "-h", "/etc")  # fmt: skip
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8077/group').read())"
    wait_until(
        lambda: b"user" in swarm.inside("python3", "-c", fetch, check=False).stdout, "served", 60
    )
    swarm.ok("service", "rm", "pub")
    wait_until(lambda: running(swarm) == [], "none", 60)
