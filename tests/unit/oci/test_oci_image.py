import json
from typing import Any

import pytest

from cradled.errors import InvalidArgument, NotFound
from cradled.oci import image
from cradled.oci.platforms import Platform

DIGEST = "sha256:" + "a" * 64


def entry(number: int, platform: dict[str, Any] | None, media_type: str = image.MANIFEST) -> Any:
    described = {"mediaType": media_type, "digest": f"sha256:{number:064x}", "size": number}
    return {**described, "platform": platform} if platform else described


def index(*entries: Any) -> image.Index:
    return image.index(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())


def test_manifest_reads_what_it_knows() -> None:
    config = {"mediaType": image.CONFIG, "digest": DIGEST, "size": 2}
    layer = {"mediaType": image.LAYER_GZIP, "digest": DIGEST, "size": 3, "annotations": {"k": "v"}}
    document = {"schemaVersion": 2, "config": config, "layers": [layer], "x": [1], "subject": None}
    manifest = image.manifest(json.dumps(document).encode())
    assert manifest.config.descriptor().digest == DIGEST
    assert manifest.layers[0].descriptor().annotations == {"k": "v"}


def test_config_with_nulls_as_docker_writes_them() -> None:
    run = {"User": "web", "Env": None, "Cmd": None, "Entrypoint": ["/x"], "WorkingDir": "/w"}
    document = {
        "architecture": "arm64",
        "variant": "v8",
        "os": "linux",
        "config": {**run, "StopSignal": "SIGINT", "Labels": None, "Volumes": {"/v": {}}},
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        "history": [{"created_by": "x"}],
    }
    config = image.config(json.dumps(document).encode())
    assert config.run.entrypoint == ["/x"]
    assert config.run.env is None
    assert config.run.stop_signal == "SIGINT"
    assert config.platform == Platform("linux", "arm64", "v8")
    assert config.rootfs.diff_ids == [DIGEST]
    bare = image.config(b'{"rootfs":{"type":"layers","diff_ids":[]}}')
    assert bare.run == image.RunConfig()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"manifests": 3}', b"\xff", b"{}"])
def test_garbage(data: bytes) -> None:
    for read in (image.index, image.manifest, image.config):
        with pytest.raises(InvalidArgument, match="image "):
            read(data)


def test_choose_prefers_the_better_variant() -> None:
    view = index(
        entry(1, {"os": "linux", "architecture": "386"}),
        entry(2, {"os": "linux", "architecture": "amd64"}),
        entry(3, {"os": "linux", "architecture": "arm64", "variant": "v8"}),
    )
    wanted = [Platform("linux", "amd64"), Platform("linux", "386")]
    assert image.choose(view, wanted).size == 2
    assert image.choose(view, [Platform("linux", "arm64")]).size == 3
    assert image.choose(view, reversed(wanted)).size == 1
    with pytest.raises(NotFound, match="no match for platform in manifest linux/s390x"):
        image.choose(view, [Platform("linux", "s390x")])


def test_choose_takes_an_entry_without_platform_last() -> None:
    anywhere = entry(1, None)
    assert image.choose(index(anywhere)).size == 1
    named = entry(2, {"os": "linux", "architecture": "amd64"})
    assert image.choose(index(anywhere, named), [Platform("linux", "amd64")]).size == 2


def test_choose_skips_what_is_no_manifest() -> None:
    attestation = entry(1, {"os": "linux", "architecture": "amd64"}, "application/x")
    with pytest.raises(NotFound):
        image.choose(index(attestation), [Platform("linux", "amd64")])
