"""Async. From an image to the record of a container and a file system for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

from cradled import identifiers
from cradled.client import names
from cradled.client.containers import STOP_SIGNAL
from cradled.client.images import Contents, Images
from cradled.client.options import Options, make_spec, mapping_labels
from cradled.client.session import Session
from cradled.core import restart
from cradled.core.containers import Container, Runtime
from cradled.core.images import Image
from cradled.core.mount import Mount
from cradled.core.values import AnyValue, Labels
from cradled.errors import AlreadyExists, InvalidArgument, NotFound
from cradled.oci import spec


async def create(
    session: Session,
    images: Images,
    image: str | Image,
    args: Sequence[str],
    name: str,
    options: Options,
) -> tuple[Container, Sequence[Mount]]:
    """Make both, the file system leased until the record holds it; see ``Containers.create``."""
    id = name or names.generate()
    identifiers.validate(id)
    found = await images.get(image) if isinstance(image, str) else image
    contents = await images.contents(found)
    async with session.leased() as leased:
        snapshotter = options.get("snapshotter") or leased.snapshotter
        using = leased.using(snapshotter)
        labels = mapping_labels(options)
        root = await _prepare(using, id, images, found, contents, labels)
        try:
            record = await _record(using, id, found, contents, args, root, options)
            return await using.containers.create(record), root
        except BaseException:
            with suppress(NotFound):
                await using.snapshots().remove(id)
            raise


async def _prepare(
    session: Session, id: str, images: Images, image: Image, contents: Contents, labels: Labels
) -> Sequence[Mount]:
    snapshots = session.snapshots()
    try:
        return await snapshots.prepare(id, contents.chain_id, labels)
    except AlreadyExists as error:
        with suppress(NotFound):
            await session.containers.get(id)
            raise AlreadyExists(f'container "{id}"') from error
        raise  # what a removed container has left is collected soon
    except NotFound:  # imported without being unpacked, or into another snapshotter
        await images.unpack(image, session.snapshotter)
        return await snapshots.prepare(id, contents.chain_id, labels)


async def _record(
    session: Session,
    id: str,
    image: Image,
    contents: Contents,
    args: Sequence[str],
    root: Sequence[Mount],
    options: Options,
) -> Container:
    run = contents.config.run
    made = await make_spec(session.scope.namespace, id, run, args, root, options)
    labels = {k: v for k, v in (run.labels or {}).items() if _is_label(k, v)}
    if run.stop_signal:
        labels[STOP_SIGNAL] = run.stop_signal
    policy = restart.Policy.parse(options.get("restart") or "no")
    if policy.name != "no":
        labels[restart.POLICY] = str(policy)
    return Container(
        id=id,
        labels={**labels, **options.get("labels", {})},
        image=image.name,
        runtime=_runtime(options.get("runtime", ""), session.runtime),
        spec=AnyValue(spec.TYPE_URL, json.dumps(made).encode()),
        snapshotter=session.snapshotter,
        snapshot_key=id,
    )


def _runtime(chosen: str, usual: str) -> Runtime:
    """A type or a shim says who serves; anything else is an OCI runtime below the usual shim."""
    is_type = "/" not in chosen and "." in chosen
    if is_type or chosen.rpartition("/")[2].startswith("containerd-shim-"):
        return Runtime(chosen)
    if not chosen:
        return Runtime(usual)
    from cradled.convert.tasks import runc_options

    return Runtime(usual, runc_options(chosen))


def _is_label(key: str, value: str) -> bool:
    """Images may carry labels that are no labels here: those stay with the image."""
    try:
        identifiers.validate_label(key, value)
    except InvalidArgument:
        return False
    return True
