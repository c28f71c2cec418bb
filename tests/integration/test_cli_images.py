"""Images through the command line: brought in, packed, named, dropped."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.cradle import Cradle
from harness.images import busybox_image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images: needs root")

BUSYBOX = "docker.io/library/busybox:test"


@pytest.fixture
def cradle(module_cradle: Cradle) -> Iterator[Cradle]:
    yield module_cradle
    module_cradle.remove_containers()
    extra = set(module_cradle.ok("images", "-q").split()) - {BUSYBOX}
    if extra:
        module_cradle.ok("rmi", *extra)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A tree with a static shell in it."""
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for applet in ("sh", "echo", "cat", "id"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "data").write_text("packed\n")
    return root


def test_archives_of_both_kinds(cradle: Cradle, tmp_path: Path) -> None:
    oci = busybox_image("registry.example/some/oci:1").write_oci_layout(tmp_path / "oci.tar")
    docker = busybox_image("docker.io/library/docker:1").write_docker_archive(tmp_path / "d.tar")
    assert cradle.ok("import", str(oci)) == "registry.example/some/oci:1\n"
    assert cradle.ok("import", str(docker)) == "docker.io/library/docker:1\n"
    for name in ("registry.example/some/oci:1", "docker:1"):
        assert cradle.ok("run", "--rm", name, "cat", "/etc/motd") == "hello from the second layer\n"


def test_compressed_from_the_input(cradle: Cradle, tmp_path: Path) -> None:
    archive = busybox_image("docker.io/a/b:1").write_oci_layout(tmp_path / "oci.tar")
    packed = gzip.compress(archive.read_bytes(), 1)
    assert cradle.ok("import", "-", input=packed) == "docker.io/a/b:1\n"
    (again,) = json.loads(cradle.ok("import", "--json", "-", input=packed))
    assert again["name"] == "docker.io/a/b:1"


def test_unpacked_when_first_run(cradle: Cradle, rootfs: Path) -> None:
    (rootfs / "only-here").write_text("x")  # layers that nothing unpacked before
    cradle.ok("pack", str(rootfs), "source:1", "cat", "/data")
    archive = rootfs.parent / "late.tar"
    cradle.daemon.ctr("images", "export", str(archive), "docker.io/library/source:1")
    cradle.ok("rmi", "source:1")
    assert cradle.ok("import", "--no-unpack", str(archive)) == "docker.io/library/source:1\n"
    assert cradle.ok("run", "--rm", "source:1") == "packed\n"
    assert cradle.ok("run", "--rm", "source:1") == "packed\n"


def test_pack(cradle: Cradle, rootfs: Path) -> None:
    flags = ("-e", "A=1", "-w", "/bin", "-l", "org.example=x", "--entrypoint", "sh")
    name = cradle.ok("pack", *flags, str(rootfs), "mine:1", "-c", "echo $A; pwd; cat /data")
    assert name == "docker.io/library/mine:1\n"
    assert cradle.ok("run", "--rm", "mine:1") == "1\n/bin\npacked\n"
    (image,) = cradle.json("inspect", "mine:1")
    assert image["config"]["config"]["Labels"] == {"org.example": "x"}
    cradle.ok("run", "--name", "box", "mine:1", "-c", "true")
    assert cradle.json("inspect", "box")[0]["labels"]["org.example"] == "x"
    first = json.loads(cradle.ok("pack", "--json", str(rootfs), "mine:2"))[0]
    again = json.loads(cradle.ok("pack", "--json", str(rootfs), "mine:3"))[0]
    assert first["digest"] == again["digest"]


def test_listing(cradle: Cradle) -> None:
    (line,) = cradle.ok("images").splitlines()
    name, digest, size, platform, created = line.split("\t")
    assert (name, platform.split("/")[0]) == ("busybox:test", "linux")
    assert digest.startswith("sha256:")
    assert size.endswith("MiB")
    assert created.endswith("ago") or created == "now"
    (image,) = cradle.json("images")
    assert image["name"] == BUSYBOX
    assert image["size"] > 100_000
    assert cradle.ok("images", "-q") == f"{BUSYBOX}\n"


def test_tag_and_rmi(cradle: Cradle) -> None:
    assert cradle.ok("tag", "busybox:test", "other") == "docker.io/library/other:latest\n"
    assert cradle.ok("run", "--rm", "other", "echo", "hi") == "hi\n"
    assert cradle.ok("tag", "other", "registry.example/x:1") == "registry.example/x:1\n"
    assert cradle.ok("rmi", "other", "registry.example/x:1").split() == [
        "docker.io/library/other:latest",
        "registry.example/x:1",
    ]
    assert cradle.ok("run", "--rm", "busybox:test", "echo", "still here") == "still here\n"


def test_errors_say_what_to_do(cradle: Cradle, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no archive\n" * 100)
    assert "image archive" in cradle.fails("import", str(tmp_path / "text"))
    assert "see `cradle import --help`" in cradle.fails("import", "/no/such", status=2)
    assert "see `cradle pack --help`" in cradle.fails("pack", "/no/such", "x", status=2)
    assert "must be lower case" in cradle.fails("pack", str(tmp_path), "Upper")
    assert "`cradle import FILE`" in cradle.fails("tag", "nosuch", "x")
    assert "`cradle import FILE`" in cradle.fails("rmi", "nosuch")
    assert "`cradle images` list" in cradle.fails("inspect", "nosuch")
    (tmp_path / ".wh.x").write_text("")
    assert 'deletes "x" in a layer' in cradle.fails("pack", str(tmp_path), "x")
