from __future__ import annotations

import tomllib

import pytest

from cradled.daemon import builtins, config_text
from cradled.daemon.config import Config
from cradled.daemon.migrate import lift

RESTART = "io.containerd.monitor.container.v1.restart"


def lifted(text: str) -> dict[str, object]:
    tables = tomllib.loads(text)
    before = repr(tables)
    found = lift(tables)
    assert repr(tables) == before
    assert found.pop("version") == 4
    return found


def test_listeners_become_plugins() -> None:
    assert lifted(
        'version = 3\n[debug]\nlevel = "debug"\naddress = "/d"\nuid = 1\n[metrics]\naddress = "m"\n'
        'grpc_histogram = true\n[grpc]\naddress = "/g"\ntcp_address = "t"\ntcp_tls_key = "k"\n'
        'tcp_tls_common_name = "n"\nmax_recv_message_size = 5\n[ttrpc]\ngid = 2\n'
        '[plugins."io.containerd.server.v1.grpc"]\naddress = "/own"'
    ) == {
        "debug": {"level": "debug"},
        "plugins": {
            "io.containerd.server.v1.debug": {"address": "/d", "uid": 1},
            "io.containerd.server.v1.metrics": {"address": "m"},
            "io.containerd.server.v1.grpc": {"address": "/own", "max_recv_message_size": 5},
            "io.containerd.server.v1.ttrpc": {"gid": 2},
            "io.containerd.server.v1.grpc-tcp": {
                "address": "t",
                "tls_key": "k",
                "tls_common_name": "n",
            },
            "io.containerd.metrics.v1.grpc-prometheus": {"grpc_histogram": True},
        },
    }


def test_short_names_of_the_first_version() -> None:
    assert lifted(
        'disabled_plugins = ["restart", "zfs", "other"]\nrequired_plugins = ["cri"]\n'
        "[plugins.cgroups]\nno_prometheus = true\n[plugins.restart]\ninterval = '3s'\n"
        "[plugins.scheduler]\n[plugins.bolt]\n[plugins.overlayfs]\nroot_path = '/o'\n"
        "[plugins.diff-service]\ndefault = ['walking']\n[plugins.unheard]\nx = 1\n"
        "[plugins.cri]\nenable_selinux = true\n[plugins.'io.containerd.runtime.v2.task']\n"
    ) == {
        "disabled_plugins": [RESTART, "io.containerd.snapshotter.v1.zfs", "other"],
        "required_plugins": [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
        ],
        "plugins": {
            "io.containerd.monitor.task.v1.cgroups": {"no_prometheus": True},
            RESTART: {"interval": "3s"},
            "io.containerd.gc.v1.scheduler": {},
            "io.containerd.metadata.v1.bolt": {},
            "io.containerd.snapshotter.v1.overlayfs": {"root_path": "/o"},
            "io.containerd.service.v1.diff-service": {"default": ["walking"]},
            "unheard": {"x": 1},
            "io.containerd.cri.v1.runtime": {"enable_selinux": True},
            "io.containerd.runtime.v2.task": {},
        },
    }


CRI_2 = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
disable_tcp_service = true
stream_server_port = "1"
sandbox_image = "pause:1"
max_concurrent_downloads = 7
enable_cdi = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/certs"
[plugins."io.containerd.grpc.v1.cri".x509_key_pair_streaming]
tls_key_file = "k"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/b"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
discard_unpacked_layers = true
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
sandbox_mode = "podsandbox"
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
"""

CRI_3 = {
    "io.containerd.grpc.v1.cri": {
        "disable_tcp_service": True,
        "stream_server_port": "1",
        "x509_key_pair_streaming": {"tls_key_file": "k"},
    },
    "io.containerd.cri.v1.images": {
        "registry": {"config_path": "/certs"},
        "max_concurrent_downloads": 7,
        "snapshotter": "native",
        "discard_unpacked_layers": True,
        "runtime_platforms": {"runc": {"snapshotter": "overlayfs"}},
        "pinned_images": {"sandbox": "pause:1"},
    },
    "io.containerd.cri.v1.runtime": {
        "enable_cdi": True,
        "cni": {"bin_dir": "/b"},
        "containerd": {
            "default_runtime_name": "runc",
            "runtimes": {
                "runc": {
                    "runtime_type": "io.containerd.runc.v2",
                    "sandboxer": "podsandbox",
                    "snapshotter": "overlayfs",
                    "options": {"SystemdCgroup": True},
                }
            },
        },
    },
}


def test_cri_is_split() -> None:
    assert lifted(CRI_2)["plugins"] == CRI_3


def test_cri_of_version_three_stays() -> None:
    text = config_text.text({"version": 3, "plugins": CRI_3})
    assert lifted(text)["plugins"] == CRI_3


def test_core_scheduling_becomes_environment() -> None:
    assert lifted(
        "version = 2\n[plugins.'io.containerd.runtime.v2.task']\nsched_core = true\n"
        "platforms = ['linux/amd64']\n[plugins.'io.containerd.shim.v1.manager']\nenv = ['A=b']"
    )["plugins"] == {
        "io.containerd.runtime.v2.task": {"platforms": ["linux/amd64"]},
        "io.containerd.shim.v1.manager": {"env": ["A=b", "SCHED_CORE=1"]},
    }


@pytest.mark.parametrize("version", [2, 3, 4])
def test_migrating_twice_changes_nothing(version: int) -> None:
    text = f"version = {version}\nunheard = 1\n[plugins.'io.containerd.internal.v1.restart']\na = 1"
    once = config_text.text(lift(tomllib.loads(text)))
    assert config_text.text(lift(tomllib.loads(once))) == once
    assert f'[plugins."{RESTART}"]\na = 1\n' in once
    assert "unheard = 1\n" in once


def test_the_default_is_its_own_migration() -> None:
    text = config_text.full(Config(), builtins.known().sections)
    assert config_text.text(lift(tomllib.loads(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        "disabled_plugins = [1, {a = 1}]",
        '[plugins.task]\nsched_core = true\n[plugins."io.containerd.shim.v1.manager"]\nenv = 1',
        "[plugins.cri]\ncontainerd = 1",
        "[plugins.cri.containerd]\nruntimes = {a = 1}",
    ],
)
def test_values_of_wrong_types_are_left_to_be_told_later(text: str) -> None:
    lifted(text)
