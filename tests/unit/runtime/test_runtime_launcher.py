"""Which shim serves which runtime, and what shims of other makes do at their start."""

import os
import stat
from pathlib import Path

import pytest

from cradled import errors
from cradled.api import runc_options_pb2
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
from cradled.runtime import bootstrap
from cradled.runtime import launcher as launchers
from cradled.runtime.bootstrap import Bootstrap, Daemon
from cradled.runtime.bundle import Bundle
from cradled.runtime.launcher import BinaryLauncher, Launchers, ZygoteLauncher
from cradled.zygote.client import Zygote


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon("/run/d.sock", "/run/d.sock.ttrpc", str(tmp_path / "s"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = Bundle(str(tmp_path / "state/ns/id"), str(tmp_path / "root/ns/id"), "ns", "id")
    bundle.create(b"{}", "/bin/shim")
    return bundle


def program(path: Path, script: str) -> str:
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
        ("kata.v2", "containerd-shim-kata-v2"),
        ("a.b.c.d", "containerd-shim-c-d"),
    ],
)
def test_program_names(runtime: str, name: str) -> None:
    assert launchers.program_name(runtime) == name


@pytest.mark.parametrize("runtime", ["", "runc", ".v2", "a/b.c", "./x.y", "a..", "a."])
def test_what_is_no_runtime(runtime: str) -> None:
    with pytest.raises(errors.Error, match=r"^invalid runtime name "):
        launchers.program_name(runtime)


def test_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daemon: Daemon) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = program(tmp_path / "containerd-shim-odd-v9", "")
    assert launchers.resolve("io.containerd.odd.v9") == path
    assert launchers.resolve(path) == path
    found = Launchers(daemon, Zygote(), runc_root="/r")
    assert found.of_runtime("io.containerd.odd.v9") is found.of_runtime(path)
    assert found.of_program(path).path == path
    os.unlink(path)
    assert found.of_runtime("io.containerd.odd.v9").path == path  # it is kept per name
    own = found.of_runtime("")
    assert isinstance(own, ZygoteLauncher)
    assert own is found.of_runtime("io.containerd.runc.v2") is found.of_program(own.path)


def test_a_configured_shim_comes_before_the_usual_one(tmp_path: Path, daemon: Daemon) -> None:
    path = program(tmp_path / "a-shim", "")
    shims = {"io.containerd.runc.v2": path, "io.containerd.gone.v1": "/no/such/shim"}
    found = Launchers(daemon, Zygote(), runc_root="/r", shims=shims)
    assert found.of_runtime("").path == found.of_runtime("io.containerd.runc.v2").path == path
    assert found.command("") == [path]
    own = found.of_runtime("io.containerd.cradled.v2")
    assert isinstance(own, ZygoteLauncher)
    assert own.path not in found.command("io.containerd.cradled.v2")  # run by this Python
    with pytest.raises(errors.Error, match=r"^invalid custom binary path: /no/such/shim: "):
        found.of_runtime("io.containerd.gone.v1")


def test_the_nearest_program_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "path"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    far = program(tmp_path / "path" / "containerd-shim-odd-v9", "")
    assert launchers.resolve("io.containerd.odd.v9") == far
    near = program(tmp_path / "here" / "containerd-shim-odd-v9", "")
    assert launchers.resolve("io.containerd.odd.v9") == near


def test_options_of_our_own_shim(daemon: Daemon) -> None:
    launcher = ZygoteLauncher(daemon, Zygote(), "/state/runc", "crun")

    def options(value: AnyValue | None) -> runc_options_pb2.Options:
        result = launcher.options(value)
        assert result is not None
        assert result.type_url == "containerd.runc.v1.Options"
        return runc_options_pb2.Options.FromString(result.value)

    assert options(None) == runc_options_pb2.Options(binary_name="crun", root="/state/runc")
    given = runc_options_pb2.Options(binary_name="runc", root="/r", systemd_cgroup=True)
    for url in ("containerd.runc.v1.Options", "type.googleapis.com/containerd.runc.v1.Options"):
        assert options(AnyValue(url, given.SerializeToString())) == given
    with pytest.raises(errors.Error, match="invalid task create option for"):
        launcher.options(AnyValue("runtimeoptions.v1.Options"))
    with pytest.raises(errors.InvalidArgument):
        launcher.options(AnyValue("containerd.runc.v1.Options", b"\xff"))


async def test_a_shim_of_today(tmp_path: Path, daemon: Daemon, bundle: Bundle) -> None:
    path = program(
        tmp_path / "shim",
        'cat > stdin; echo "$@" > args; env > env; pwd > cwd; '
        """printf '{"version":3,"address":"unix:///x","protocol":"ttrpc"}'""",
    )
    result = await BinaryLauncher(daemon, path).start(bundle, None, "")
    assert result == bundle.load_bootstrap() == Bootstrap(3, "unix:///x")
    here = Path(bundle.path)
    assert (here / "cwd").read_text().strip() == bundle.path
    assert (here / "args").read_text().split()[-3:] == ["-id", "id", "start"]
    assert "TTRPC_ADDRESS=/run/d.sock.ttrpc\n" in (here / "env").read_text()
    assert b"/run/d.sock.ttrpc" in (here / "stdin").read_bytes()


async def test_a_shim_older_than_the_parameters(
    tmp_path: Path, daemon: Daemon, bundle: Bundle
) -> None:
    path = program(
        tmp_path / "shim",
        "echo x >> starts; if [ -n \"$(cat)\" ]; then echo 'bad stdin' >&2; exit 1; fi; "
        "printf unix:///old",
    )
    launcher = BinaryLauncher(daemon, path)
    for starts in (2, 3):  # it is asked wrongly once
        assert await launcher.start(bundle, None, "") == Bootstrap(2, "unix:///old")
        assert (Path(bundle.path) / "starts").read_text() == "x\n" * starts


async def test_a_shim_that_is_old_by_its_name(
    tmp_path: Path, daemon: Daemon, bundle: Bundle
) -> None:
    path = program(tmp_path / "containerd-shim-runhcs-v1", "cat > stdin; printf unix:///old")
    options = AnyValue("some.Options", b"value")
    await BinaryLauncher(daemon, path).start(bundle, options, "")
    told = (Path(bundle.path) / "stdin").read_bytes()
    assert told == bootstrap.legacy_params(options)


async def test_a_shim_that_fails(tmp_path: Path, daemon: Daemon, bundle: Bundle) -> None:
    path = program(tmp_path / "shim", "echo one; echo two >&2; exit 3")
    launcher = BinaryLauncher(daemon, path)
    text = "^failed to start shim: start failed: one\ntwo: exit status 3$"
    with pytest.raises(errors.Error, match=text):
        await launcher.start(bundle, None, "")
    with pytest.raises(errors.Error, match="shim delete failed: two: exit status 3"):
        await launcher.delete(bundle)
    assert bundle.load_bootstrap() is None


async def test_delete(tmp_path: Path, daemon: Daemon, bundle: Bundle) -> None:
    path = program(
        tmp_path / "shim", 'echo "$@" > args; echo warning >&2; printf "\\010\\005\\020\\211\\001"'
    )
    assert await BinaryLauncher(daemon, path).delete(bundle) == Exit(5, 137, 0)
    words = (Path(bundle.path) / "args").read_text().split()
    assert words[-3:] == ["-bundle", bundle.path, "delete"]


async def test_a_program_that_is_not_there(tmp_path: Path, daemon: Daemon, bundle: Bundle) -> None:
    with pytest.raises(errors.Error, match="no such file or directory"):
        await BinaryLauncher(daemon, str(tmp_path / "none")).start(bundle, None, "")
