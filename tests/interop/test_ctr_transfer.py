"""Images through the Transfer service, by a Go client of 1.7 or later.

The expected names were taken from the containerd that comes with it.
"""

import os
import subprocess
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from harness import newer
from harness.daemon import Daemon
from harness.transfers import Layout, docker_archive, layers
from harness.transfers import oci as media

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BUSYBOX = "docker.io/library/busybox:test"
FULL = {media.IMAGE_NAME: "docker.io/library/x:1", media.REF_NAME: "1"}


program = lru_cache(newer.ctr)


@pytest.fixture(scope="module", autouse=True)
def has_program() -> None:
    try:
        program()
    except newer.Unavailable as error:
        pytest.skip(f"no ctr of 1.7 or later: {error}")


def ctr(daemon: Daemon, *words: str, fails: bool = False) -> str:
    command = [str(program()), "-a", str(daemon.socket), "-n", daemon.namespace, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture(autouse=True)
def nothing_left(empty_daemon: Daemon) -> Iterator[None]:
    yield
    if left := images(empty_daemon):
        ctr(empty_daemon, "images", "rm", "--sync", *left)


def images(daemon: Daemon) -> list[str]:
    return ctr(daemon, "images", "ls", "-q").split()


@pytest.mark.parametrize(
    ("annotations", "options", "names"),
    [
        (FULL, "", ["docker.io/library/x:1"]),
        (FULL, "--base-name foo/bar", []),
        (FULL, "--base-name foo/bar --digests", ["foo/bar@{digest}"]),
        ({media.IMAGE_NAME: "foo/bar:1"}, "--base-name foo/bar", ["foo/bar:1"]),
        ({media.IMAGE_NAME: "foo/barz:1"}, "--base-name foo/bar", []),
        ({media.IMAGE_NAME: "bare"}, "", []),
        ({media.REF_NAME: "1"}, "--base-name foo/bar", ["foo/bar:1"]),
        # This client sends the opposite of the last option.
        ({media.REF_NAME: "1"}, "--base-name foo/bar --digests", ["foo/bar:1"]),
        (
            {media.REF_NAME: "1"},
            "--base-name foo/bar --digests --skip-digest-for-named",
            ["foo/bar:1", "foo/bar@{digest}"],
        ),
        ({media.REF_NAME: "reg.io/o:2"}, "", ["reg.io/o:2"]),
        ({media.REF_NAME: "reg.io/o:2"}, "--base-name foo/bar", []),
        ({}, "--base-name foo/bar --digests", ["foo/bar@{digest}"]),
    ],
)
def test_names(
    empty_daemon: Daemon,
    tmp_path: Path,
    annotations: dict[str, str],
    options: str,
    names: list[str],
) -> None:
    layout = Layout()
    layout.manifests.append(layout.image(layers(1), annotations=annotations))
    archive = tmp_path / "image.tar"
    archive.write_bytes(layout.archive())
    words = ["images", "import", "--local=false", *options.split(), str(archive)]
    told = ctr(empty_daemon, *words, fails=not names)
    if not names:
        assert "no image name found" in told
    digest = layout.manifests[0]["digest"]
    found = images(empty_daemon)
    assert sorted(found) == sorted(name.format(digest=digest) for name in names)


def test_docker_archive_and_index(empty_daemon: Daemon, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(docker_archive(layers(2), "busybox:1", "reg.io/a/b:2"))
    words = ("images", "import", "--local=false", "--index-name", "idx:1", str(archive))
    ctr(empty_daemon, *words)
    found = images(empty_daemon)
    assert found == ["docker.io/library/busybox:1", "idx:1", "reg.io/a/b:2"]


def test_there_and_back(empty_daemon: Daemon, image_tar: Path, tmp_path: Path) -> None:
    told = ctr(empty_daemon, "images", "import", "--local=false", str(image_tar))
    assert "saved" in told
    assert "extracted" in told
    snapshots = ctr(empty_daemon, "snapshots", "ls")
    assert snapshots.count("Committed") == 2
    out = tmp_path / "out.tar"
    ctr(empty_daemon, "images", "export", "--local=false", str(out), BUSYBOX)
    with tarfile.open(out) as archive:
        assert {"oci-layout", "index.json", "manifest.json"} <= set(archive.getnames())
    ctr(empty_daemon, "images", "tag", "--local=false", BUSYBOX, "docker.io/library/other:1")
    ctr(empty_daemon, "images", "rm", "--sync", BUSYBOX, "docker.io/library/other:1")
    assert "sha256" not in ctr(empty_daemon, "content", "ls")
    assert "Committed" not in ctr(empty_daemon, "snapshots", "ls")
    ctr(empty_daemon, "images", "import", "--local=false", str(out))
    greeting = ctr(empty_daemon, "run", "--rm", BUSYBOX, "c", "sh", "-c", "echo $GREETING")
    assert greeting == "hello\n"


def test_errors(empty_daemon: Daemon, tmp_path: Path) -> None:
    told = ctr(empty_daemon, "images", "import", "--local=false", "/etc/passwd", fails=True)
    assert "InvalidArgument" in told
    words = ("images", "export", "--local=false", str(tmp_path / "out.tar"), "nope:1")
    assert 'image "nope:1": not found' in ctr(empty_daemon, *words, fails=True)
