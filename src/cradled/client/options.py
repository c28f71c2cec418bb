"""Async. From what a caller asks of a container to its runtime spec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from cradled.aio import threads
from cradled.client import host, rootfs
from cradled.client.session import Session
from cradled.core.containers import Container
from cradled.core.mount import Mount
from cradled.core.values import AnyValue, Labels
from cradled.errors import FailedPrecondition
from cradled.oci import platforms, spec, users
from cradled.oci.image import RunConfig

_MAX_HOSTNAME = 64
_UID_MAPPING = "containerd.io/snapshot/uidmapping"
_GID_MAPPING = "containerd.io/snapshot/gidmapping"


class Limits(TypedDict, total=False):
    """What of a container can be changed later: ``memory`` is in bytes, ``cpus`` in processors,
    ``pids`` the number of processes, 0 for as many as they like. ``restart`` is ``no``, ``always``,
    ``unless-stopped`` or ``on-failure[:N]``: whether it is run again when it has exited.
    """

    memory: int
    cpus: float
    pids: int
    restart: str


class Options(Limits, total=False):
    """How a container differs from what its image and the default say.

    ``mounts`` are ``/source:/destination[:ro]``; ``user`` is ``name|uid[:group|gid]``; ``net`` is
    ``none`` (loopback only) or ``host``. ``uidmap``, ``inside:outside:length[,...]``, gives it
    users of its own, and groups likewise if ``gidmap`` does not say otherwise. ``runtime`` is a
    runtime type (``io.containerd.runc.v2``), the path of a ``containerd-shim-*``, or else an OCI
    runtime (``crun``), by name or path. ``spec`` are options of ``cradled.oci.spec``, applied last.
    """

    env: Mapping[str, str] | Sequence[str]
    mounts: Sequence[str]
    entrypoint: str
    workdir: str
    user: str
    hostname: str
    read_only: bool
    privileged: bool
    net: Literal["none", "host"]
    uidmap: str
    gidmap: str
    tty: bool
    labels: Labels
    runtime: str
    snapshotter: str
    spec: Sequence[spec.Option]


class ExecOptions(TypedDict, total=False):
    """How a further process differs from the container's first."""

    env: Mapping[str, str] | Sequence[str]
    workdir: str
    user: str
    tty: bool


async def make_spec(
    namespace: str,
    id: str,
    image: RunConfig,
    args: Sequence[str],
    root: Sequence[Mount],
    options: Options,
) -> spec.Spec:
    """Raises InvalidArgument and NotFound (an unknown user)."""
    who = await look_up(options.get("user") or image.user, root)
    chosen = [
        spec.image(image, args, options.get("entrypoint", "")),
        spec.user(who),
        spec.hostname(options.get("hostname") or id[:_MAX_HOSTNAME]),
        spec.env(variables(options.get("env", ()))),
        *map(spec.volume, options.get("mounts", ())),
    ]
    if workdir := options.get("workdir"):
        chosen.append(spec.workdir(workdir))
    chosen += limits(options)
    if options.get("read_only"):
        chosen.append(spec.read_only())
    if options.get("tty"):
        chosen.append(spec.tty())
    if options.get("net") == "host":
        chosen += await _host_network()
    if mapped := mapping_labels(options):
        chosen.append(spec.user_namespace(*mapped.values()))
    chosen.append(await _confinement(privileged=options.get("privileged", False)))
    return spec.build(namespace, id, *chosen, *options.get("spec", ()))


def mapping_labels(options: Options) -> dict[str, str]:
    """How its snapshot is told of users and groups of its own, users first; empty without.

    Raises InvalidArgument.
    """
    uidmap = options.get("uidmap", "")
    if not uidmap:
        return {}
    labels = {_UID_MAPPING: uidmap, _GID_MAPPING: options.get("gidmap") or uidmap}
    for text in labels.values():
        spec.mappings(text)
    return labels


async def exec_spec(
    session: Session, record: Container, args: Sequence[str], options: ExecOptions
) -> AnyValue:
    """The process spec of a further process, from the one of a container's first."""
    if record.spec is None:
        raise FailedPrecondition(f'container "{record.id}" has no spec')
    made: spec.Spec = json.loads(record.spec.value)
    made["process"].pop("terminal", None)
    chosen = [spec.args(args), spec.env(variables(options.get("env", ())))]
    if options.get("tty"):
        chosen.append(spec.tty())
    if workdir := options.get("workdir"):
        chosen.append(spec.workdir(workdir))
    if user := options.get("user"):
        root = await session.snapshots(record.snapshotter).mounts(record.snapshot_key)
        chosen.append(spec.user(await look_up(user, root)))
    for option in chosen:
        option(made)
    return AnyValue(spec.PROCESS_TYPE_URL, json.dumps(made["process"]).encode())


async def look_up(user: str, root: Sequence[Mount]) -> users.User:
    """Numeric ids of a user, by the files of the root file system where it takes them."""
    uid, _, gid = user.partition(":")
    if uid.isdigit() and gid.isdigit():
        return users.resolve(user)
    passwd, group = await threads.run("fs", _account_files, root)
    return users.resolve(user, passwd, group)


def variables(env: Mapping[str, str] | Sequence[str]) -> Sequence[str]:
    """As ``NAME=value``."""
    if isinstance(env, Mapping):
        return [f"{name}={value}" for name, value in env.items()]
    return env


def _account_files(root: Sequence[Mount]) -> tuple[str, str]:
    return rootfs.read_text(root, "/etc/passwd"), rootfs.read_text(root, "/etc/group")


def limits(wanted: Limits) -> list[spec.Option]:
    """What is wanted of resources. Raises InvalidArgument."""
    chosen = []
    if "memory" in wanted:
        chosen.append(spec.memory(wanted["memory"]))
    if "cpus" in wanted:
        chosen.append(spec.cpus(wanted["cpus"]))
    if "pids" in wanted:
        chosen.append(spec.pids(wanted["pids"]))
    return chosen


async def _host_network() -> list[spec.Option]:
    files = await threads.run("fs", host.name_service_files)
    return [spec.host_network(), *(spec.volume(f"{path}:{path}:ro") for path in files)]


async def _confinement(*, privileged: bool) -> spec.Option:
    if not privileged:
        return spec.seccomp(platforms.default().architecture, host.kernel())
    available = await threads.run("fs", host.available_capabilities)
    return spec.privileged(available, await threads.run("fs", host.devices))
