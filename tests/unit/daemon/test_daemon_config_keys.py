"""Every key that the original's files may have has a place in ours."""

from __future__ import annotations

import tomllib
from pathlib import Path

from cradled.daemon import builtins, config_check, config_file, config_text
from cradled.daemon.migrate import lift

EVERY_KEY = """
version = 4
root = "/r"
state = "/s"
temp = "/t"
oom_score = 1
disabled_plugins = ["a.b"]
required_plugins = ["a.b"]
imports = []

[cgroup]
path = "/c"

[debug]
level = "trace"
format = "json"
log_trace_id = true

[proxy_plugins.p]
type = "snapshot"
address = "/p.sock"
platform = "linux/amd64"
exports = {root = "/x"}
capabilities = ["rebase"]

[stream_processors."x.y"]
accepts = ["a"]
returns = "b"
path = "p"
args = ["a"]
env = ["A=b"]

[timeouts]
"io.containerd.timeout.shim.load" = "5s"
"io.containerd.timeout.shim.cleanup" = "5s"
"io.containerd.timeout.shim.shutdown" = "3s"
"io.containerd.timeout.task.state" = "2s"
"io.cradled.timeout.runtime.command" = "2m0s"
"io.cradled.timeout.shim.start" = "1m0s"
"io.containerd.timeout.metrics.shimstats" = "2s"
"io.containerd.timeout.proxy.call" = "5m0s"
"io.containerd.timeout.bolt.open" = "0s"
"io.containerd.timeout.cri.defercleanup" = "1m0s"

[plugins."io.containerd.server.v1.grpc"]
address = "/a"
uid = 1
gid = 1
max_recv_message_size = 1
max_send_message_size = 1

[plugins."io.containerd.server.v1.grpc-tcp"]
address = "127.0.0.1:1"
tls_ca = "ca"
tls_cert = "cert"
tls_key = "key"
tls_common_name = "name"
max_recv_message_size = 1
max_send_message_size = 1

[plugins."io.containerd.server.v1.ttrpc"]
address = "/t"
uid = 1
gid = 1

[plugins."io.containerd.server.v1.debug"]
address = "/d"
uid = 1
gid = 1

[plugins."io.containerd.server.v1.metrics"]
address = "127.0.0.1:2"

[plugins."io.containerd.metrics.v1.grpc-prometheus"]
grpc_histogram = true

[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"
no_sync = true

[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.5
deletion_threshold = 1
mutation_threshold = 2
schedule_delay = "1s"
startup_delay = "2s"

[plugins."io.containerd.runtime.v2.task"]
platforms = ["linux/s390x"]

[plugins."io.containerd.shim.v1.manager"]
env = ["A=b"]
socket_dir = "/run/s"

[plugins."io.containerd.service.v1.diff-service"]
default = ["walking"]
sync_fs = true

[plugins."io.containerd.service.v1.tasks-service"]
blockio_config_file = "b"
rdt_config_file = "r"

[plugins."io.containerd.snapshotter.v1.overlayfs"]
root_path = "/o"
upperdir_label = true
sync_remove = true
slow_chown = true
mount_options = ["a"]

[plugins."io.containerd.snapshotter.v1.native"]
root_path = "/n"

[plugins."io.containerd.snapshotter.v1.blockfile"]
root_path = "/b"
scratch_file = "f"
fs_type = "ext4"
mount_options = []
recreate_scratch = true

[plugins."io.containerd.snapshotter.v1.devmapper"]
pool_name = "p"
base_image_size = "1GB"
async_remove = true
discard_blocks = true
fs_options = ""

[plugins."io.containerd.snapshotter.v1.erofs"]
ovl_mount_options = []
enable_fsverity = true
set_immutable = true
default_size = ""
dmverity_mode = ""

[plugins."io.containerd.differ.v1.erofs"]
mkfs_options = []
enable_tar_index = false
enable_dmverity = false

[plugins."io.containerd.transfer.v1.local"]
max_concurrent_downloads = 1
concurrent_layer_fetch_buffer = 1
max_concurrent_uploaded_layers = 1
max_concurrent_unpacks = 1
check_platform_supported = true
config_path = "/c"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "overlayfs"
differ = "walking"
config_type = ""
layer_types = []
optional = false

[plugins."io.containerd.image-verifier.v1.bindir"]
bin_dir = "/b"
max_verifiers = 1
per_verifier_timeout = "1s"

[plugins."io.containerd.monitor.container.v1.restart"]
interval = "10s"

[plugins."io.containerd.internal.v1.opt"]
path = "/opt"

[plugins."io.containerd.monitor.task.v1.cgroups"]
no_prometheus = true

[plugins."io.containerd.nri.v1.nri"]
disable = false
socket_path = "/var/run/nri/nri.sock"

[plugins."io.containerd.nri.v1.nri".default_validator]
enable = true

[plugins."io.containerd.tracing.processor.v1.otlp"]
endpoint = "e"
protocol = "grpc"
insecure = true

[plugins."io.containerd.internal.v1.tracing"]
sampling_ratio = 1.0
service_name = "n"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = true

[plugins."io.containerd.grpc.v1.cri"]
stream_server_port = "0"
"""


def test_nothing_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(EVERY_KEY)
    config, problems = config_file.examine(str(path), must_exist=True, known=builtins.known)
    assert {problem.level for problem in problems} == {config_check.NOTE}
    assert all(problem.text.startswith("no effect: ") for problem in problems)
    assert all(problem.line for problem in problems)
    written = tomllib.loads(config_text.full(config, builtins.known().sections))
    given = tomllib.loads(EVERY_KEY)
    for uri, table in given["plugins"].items():
        assert table.items() <= written["plugins"][uri].items()
    for key in given.keys() - {"plugins"}:
        expected = given[key]
        assert (
            (expected.items() <= written[key].items())
            if key == "stream_processors"
            else (written[key] == expected)
        )


def test_migrating_it_reproduces_it() -> None:
    tables = tomllib.loads(EVERY_KEY)
    assert lift(tables) == tables
    assert lift(tomllib.loads(config_text.text(tables))) == tables
