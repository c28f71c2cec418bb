"""Pure. Index, manifest and config of an image as typed views for reading.

The bytes are what digests are made of: they are kept and passed on as they came. These views
decode the fields we use and ignore the rest (OCI image-spec; Docker's schema 2 reads the same).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from cradled.core.values import Descriptor
from cradled.errors import InvalidArgument, NotFound
from cradled.oci import platforms
from cradled.oci.platforms import Platform

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = frozenset({INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"


class PlatformView(msgspec.Struct, frozen=True):
    """``platform`` of a descriptor."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: list[str] = msgspec.field(default_factory=list, name="os.features")

    def platform(self) -> Platform:
        return Platform(
            self.os, self.architecture, self.variant, self.os_version, tuple(self.os_features)
        )


class DescriptorView(msgspec.Struct, frozen=True, rename="camel"):
    """A descriptor as it stands in an index or a manifest."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: PlatformView | None = None

    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, self.size, dict(self.annotations or {}))


class Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: list[DescriptorView]
    media_type: str = INDEX


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: DescriptorView
    layers: list[DescriptorView]
    media_type: str = MANIFEST


class RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str]
    type: str = "layers"


class RunConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """What the image says about the process; a null in the file reads as absent."""

    user: str = ""
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""


class Config(msgspec.Struct, frozen=True):
    """An image's config; ``platform`` tells what it was built for."""

    rootfs: RootFs
    architecture: str = ""
    os: str = ""
    variant: str = ""
    config: RunConfig | None = None

    @property
    def platform(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant)

    @property
    def run(self) -> RunConfig:
        return self.config or RunConfig()


_T = TypeVar("_T")
_index = msgspec.json.Decoder(Index)
_manifest = msgspec.json.Decoder(Manifest)
_config = msgspec.json.Decoder(Config)


def index(data: bytes) -> Index:
    """Raises InvalidArgument for what is no index."""
    return _decode(_index, data, "index")


def manifest(data: bytes) -> Manifest:
    """Raises InvalidArgument for what is no manifest."""
    return _decode(_manifest, data, "manifest")


def config(data: bytes) -> Config:
    """Raises InvalidArgument for what is no image config."""
    return _decode(_config, data, "config")


def choose(view: Index, wanted: Iterable[Platform] | None = None) -> Descriptor:
    """The manifest of an index that fits best; by default the best for this host.

    A descriptor that names no platform fits all, after those that name one.
    Raises NotFound when nothing fits.
    """
    order = platforms.preference(platforms.default()) if wanted is None else list(wanted)
    best: tuple[int, DescriptorView] | None = None
    for entry in view.manifests:
        if entry.media_type not in MANIFESTS:
            continue
        if entry.platform is None:
            rank: int | None = len(order)
        else:
            rank = platforms.rank(order, entry.platform.platform())
        if rank is not None and (best is None or rank < best[0]):
            best = (rank, entry)
    if best is None:
        raise NotFound(f"no match for platform in manifest {order[0] if order else ''}".rstrip())
    return best[1].descriptor()


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes, what: str) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"image {what}: {error}") from error
