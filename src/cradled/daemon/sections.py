"""Pure. The configuration of each of our plugins, as in ``[plugins."<type>.<id>"]``.

Keys and defaults are the original's; times are texts such as ``100ms``. Named tuples, because they
cost a tenth of a dataclass at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cradled.daemon.config import DEFAULT_ADDRESS
from cradled.daemon.durations import Duration

MESSAGE_BYTES = 16 << 20


class GrpcServer(NamedTuple):
    """Sizes in bytes, below 1 the usual ones."""

    address: str = DEFAULT_ADDRESS
    uid: int = 0
    gid: int = 0
    max_recv_message_size: int = MESSAGE_BYTES
    max_send_message_size: int = MESSAGE_BYTES

    @property
    def limits(self) -> tuple[int, ...]:
        """The largest message received and sent."""
        return _sizes(self.max_recv_message_size, self.max_send_message_size)


def _sizes(*configured: int) -> tuple[int, ...]:
    return tuple(size if size > 0 else MESSAGE_BYTES for size in configured)


class TtrpcServer(NamedTuple):
    """An empty address means that of gRPC with ``.ttrpc`` behind it."""

    address: str = ""
    uid: int = 0
    gid: int = 0


class TcpServer(NamedTuple):
    """``address`` is ``host:port``, empty: none. With a certificate it is TLS, with ``tls_ca``
    clients need one too, which has ``tls_common_name`` if that is given."""

    address: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_common_name: str = ""
    max_recv_message_size: int = MESSAGE_BYTES
    max_send_message_size: int = MESSAGE_BYTES

    @property
    def limits(self) -> tuple[int, ...]:
        """As of ``GrpcServer``."""
        return _sizes(self.max_recv_message_size, self.max_send_message_size)


class DebugServer(NamedTuple):
    """``address`` is a unix socket, empty: none."""

    address: str = ""
    uid: int = 0
    gid: int = 0


class MetricsServer(NamedTuple):
    """``address`` is ``host:port``, empty: none."""

    address: str = ""


class GrpcPrometheus(NamedTuple):
    """``grpc_histogram``: metrics also tell how long calls took."""

    grpc_histogram: bool = False


class Metadata(NamedTuple):
    content_sharing_policy: str = "shared"
    no_sync: bool = False

    def check(self) -> None:
        """Raises ValueError for a policy that nobody knows."""
        policy = self.content_sharing_policy
        if policy not in ("shared", "isolated"):
            raise ValueError(f'content_sharing_policy is "shared" or "isolated", not "{policy}"')


class Journal(NamedTuple):
    """``max_size``: what the latest events may take under the state directory, in bytes."""

    max_size: int = 16 << 20

    def check(self) -> None:
        """Raises ValueError for a size that nothing fits in."""
        if self.max_size < 1 << 20:
            raise ValueError(f"max_size is at least 1048576 bytes, not {self.max_size}")


class Scheduler(NamedTuple):
    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay: Duration = "0s"
    startup_delay: Duration = "100ms"


class Overlay(NamedTuple):
    root_path: str = ""
    upperdir_label: bool = False
    sync_remove: bool = False
    slow_chown: bool = False
    mount_options: tuple[str, ...] = ()


class Native(NamedTuple):
    root_path: str = ""


class Blockfile(NamedTuple):
    """``scratch_file`` is an empty file system of type ``fs_type``."""

    root_path: str = ""
    scratch_file: str = ""
    fs_type: str = "ext4"
    mount_options: tuple[str, ...] = ()
    recreate_scratch: bool = False


class ShimManager(NamedTuple):
    """``env`` has ``KEY=value`` texts, ``socket_dir`` defaults to ``<state>/s``.

    Ours are ``binary_name``, the OCI runtime of containers that name none (empty: runc), ``shims``,
    absolute paths of shims for runtime types that are not to have their usual one, and
    ``grouping``: ``namespace`` puts all containers of each namespace into one shim of ours, which
    saves most of their memory and has them share its fate; empty: each pod, or container, has one.
    """

    env: tuple[str, ...] = ()
    socket_dir: str = ""
    binary_name: str = ""
    shims: Mapping[str, str] = {}
    grouping: str = ""

    def check(self) -> None:
        """Raises ValueError for a grouping there is not, and for a shim that depends on where the
        daemon is started."""
        if self.grouping not in ("", "namespace"):
            raise ValueError(f'grouping is "namespace" or empty, not "{self.grouping}"')
        for runtime, path in self.shims.items():
            if not path.startswith("/"):
                raise ValueError(f'shim "{path}" of {runtime} is no absolute path')


class RestartMonitor(NamedTuple):
    """``interval``: between looks at all containers; 0 is the usual one."""

    interval: Duration = "10s"


class Diff(NamedTuple):
    default: tuple[str, ...] = ("walking",)
    sync_fs: bool = False


class Transfer(NamedTuple):
    """``max_concurrent_unpacks``: layers of one image at once; 0: as many as there are cores."""

    max_concurrent_downloads: int = 3
    concurrent_layer_fetch_buffer: int = 0
    max_concurrent_uploaded_layers: int = 3
    max_concurrent_unpacks: int = 0
    check_platform_supported: bool = False
    config_path: str = ""
    unpack_config: tuple[Mapping[str, Any], ...] = ()


class PolicyFile(NamedTuple):
    """``path``: the file with the rules; empty: none."""

    path: str = ""

    def check(self) -> None:
        """Raises ValueError for a path that depends on where the daemon is started."""
        if self.path and not self.path.startswith("/"):
            raise ValueError(f'policy file "{self.path}" is no absolute path')


class PolicyPython(NamedTuple):
    """``entry_point``: a name in the group ``cradled.policies``; empty: none."""

    entry_point: str = ""
