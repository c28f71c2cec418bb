"""Bundles on a real file system."""

import itertools
import json
import os
from pathlib import Path

import pytest

from cradled import errors
from cradled.runtime import bundle as runtime_bundle
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle, bundles, group_of, remove_orphans


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(str(tmp_path / "state/ns/id"), str(tmp_path / "root/ns/id"), "ns", "id")


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_layout(bundle: Bundle, tmp_path: Path) -> None:
    spec = b'{"spec" : "byte for byte"}\n'
    bundle.create(spec, "/bin/shim", "sandbox1")
    path = Path(bundle.path)
    assert sorted(os.listdir(path)) == [
        "config.json", "log", "rootfs", "sandbox", "shim-binary-path", "work",
    ]  # fmt: skip
    assert (path / "config.json").read_bytes() == spec
    assert path.stat().st_mode & 0o7777 == 0o700
    assert (path / "rootfs").stat().st_mode & 0o7777 == 0o711
    assert (path / "log").is_fifo()
    assert os.readlink(path / "work") == bundle.work
    assert Path(bundle.work).is_dir()
    assert (bundle.shim_path(), bundle.sandbox()) == ("/bin/shim", "sandbox1")
    bundle.remove()
    assert tree(tmp_path) == ["root", "root/ns", "state", "state/ns"]
    bundle.remove()  # once more is fine


def test_one_that_is_there_is_left_alone(bundle: Bundle) -> None:
    bundle.create(b"{}", "/bin/shim")
    with pytest.raises(errors.AlreadyExists):
        bundle.create(b"other", "/bin/other")
    assert (Path(bundle.path) / "config.json").read_bytes() == b"{}"


def test_a_failed_creation_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(errors.Error, match="spec is no JSON"):
        bundle.create(b'{"gidMappings"', "/bin/shim")
    assert tree(tmp_path) == ["state", "state/ns"]


def test_an_old_work_directory_is_emptied(bundle: Bundle) -> None:
    old = Path(bundle.work) / "old" / "file"
    old.parent.mkdir(parents=True)
    old.touch()
    bundle.create(b"{}", "/bin/shim")
    assert os.listdir(bundle.work) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("mappings", "mode", "group"),
    [
        ([{"containerID": 0, "hostID": 100000, "size": 65536}], 0o710, 100000),
        ([{"hostID": 7, "size": 1}], 0o710, 7),
        ([{"containerID": 1, "hostID": 7, "size": 1}], 0o700, 0),
        ([{"containerID": 0, "hostID": 0, "size": 1}], 0o700, 0),
    ],
)
def test_the_group_of_a_user_namespace_may_enter(
    bundle: Bundle, mappings: object, mode: int, group: int
) -> None:
    bundle.create(json.dumps({"linux": {"gidMappings": mappings}}).encode(), "/bin/shim")
    status = os.stat(bundle.path)
    assert (status.st_mode & 0o7777, status.st_gid) == (mode, group)


def test_bootstrap(bundle: Bundle) -> None:
    bundle.create(b"{}", "/bin/shim")
    assert bundle.load_bootstrap() is None
    bundle.save_bootstrap(Bootstrap(3, "unix:///s"))
    assert bundle.load_bootstrap() == Bootstrap(3, "unix:///s")
    assert (Path(bundle.path) / "bootstrap.json").stat().st_mode & 0o777 == 0o644
    (Path(bundle.path) / "bootstrap.json").write_bytes(b'{"version":3,"addr')
    with pytest.raises(errors.Error):
        bundle.load_bootstrap()


def test_the_address_file_of_older_daemons(bundle: Bundle) -> None:
    bundle.create(b"{}", "/bin/shim")
    (Path(bundle.path) / "address").write_text("unix:///old")
    assert bundle.load_bootstrap() == Bootstrap(2, "unix:///old")
    saved = json.loads((Path(bundle.path) / "bootstrap.json").read_text())
    assert saved == {"version": 2, "address": "unix:///old", "protocol": "ttrpc"}


def test_the_log_never_ends_and_never_blocks(bundle: Bundle) -> None:
    bundle.create(b"{}", "/bin/shim")
    os.unlink(bundle.log)  # a bundle of another daemon may have none
    reader = bundle.open_log()
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    writer = os.open(bundle.log, os.O_WRONLY)
    os.write(writer, b"line\n")
    os.close(writer)
    assert os.read(reader, 10) == b"line\n"
    os.close(reader)


def test_removal_leaves_alone_what_an_earlier_one_left(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_bundle, "_removals", itertools.count())
    for place in ("state/ns/.id.0/rest", "root/ns/.id.2/rest"):
        (tmp_path / place).mkdir(parents=True)
    left = tree(tmp_path)
    bundle.create(b"{}", "/bin/shim")
    (Path(bundle.work) / "dump").touch()
    assert bundle.hide() == [f"{tmp_path}/state/ns/.id.1", f"{tmp_path}/root/ns/.id.3"]
    assert not Path(bundle.path).exists()
    assert not Path(bundle.work).exists()
    bundle.create(b"{}", "/bin/shim")
    bundle.remove()
    bundles(f"{tmp_path}/state", f"{tmp_path}/root")
    remove_orphans(f"{tmp_path}/state", f"{tmp_path}/root")
    assert tree(tmp_path) == ["root", "root/ns", "state", "state/ns"] != left


def test_finding_bundles_removes_what_was_being_removed(tmp_path: Path) -> None:
    state, root = tmp_path / "state", tmp_path / "root"
    for place in ("ns1/a", "ns1/b", "ns1/.gone/rest", "ns2/a", ".odd/x"):
        (state / place).mkdir(parents=True)
    for place in ("ns1/a", "ns1/orphan/dump", "ns3/orphan"):
        (root / place).mkdir(parents=True)
    (state / "file").touch()
    found = bundles(str(state), str(root))
    assert [(b.namespace, b.id) for b in found] == [("ns1", "a"), ("ns1", "b"), ("ns2", "a")]
    assert found[0] == Bundle(f"{state}/ns1/a", f"{root}/ns1/a", "ns1", "a")
    assert not (state / "ns1/.gone").exists()
    remove_orphans(str(state), str(root))
    assert tree(root) == ["ns1", "ns1/a", "ns3"]
    assert bundles(str(tmp_path / "none"), str(root)) == []


@pytest.mark.parametrize(
    ("annotations", "group"),
    [
        ({}, ""),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, "pod"),
        ({"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "g"}, "g"),
        ({"io.containerd.runc.v2.group": ""}, ""),
    ],
)
def test_groups(annotations: dict[str, str], group: str) -> None:
    assert group_of(json.dumps({"annotations": annotations}).encode()) == group
    assert group_of(b'{"process":{"args":["io.kubernetes.cri.sandbox-id"]}}') == ""
