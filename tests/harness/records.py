"""Messages that the contracts of records are made of."""

from __future__ import annotations

import re
from typing import Any

from cradled import digest
from cradled.api import containers_pb2, images_pb2, types_pb2
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.rpc.status import Code
from harness.contract import Refused

IDENTIFIER = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
SPEC = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b"{}")
LONG_KEY = "k" * 70
TOO_LONG = {LONG_KEY: "v" * 4027}
LONGEST = {LONG_KEY: "v" * 4026}
TOO_LONG_TEXT = (
    f"label key and value length (4097 bytes) greater than maximum size (4096 bytes), "
    f"key: {LONG_KEY[:64]}"
)

KEYLESS = {"": "x"}
KEYLESS_TEXT = 'failed to set label ""="x": key required'

# (what is wrong with it, identifier, the text)
BAD_IDENTIFIERS = [
    ("none", "", "identifier must not be empty"),
    *(
        (f"{bad!r}", bad, f'identifier "{shown}" must match {IDENTIFIER}')
        for bad, shown in (
            *((bad, bad) for bad in ("a b", "-a", "a.", "a..b", "a/b", "é", "_")),
            ("a\n", r"a\n"),
            ('"', r"\""),
        )
    ),
    (
        "77 characters",
        "a" * 77,
        f'identifier "{"a" * 77}" greater than maximum length (76 characters)',
    ),
]


def invalid(text: str) -> Refused:
    return Refused(Code.INVALID_ARGUMENT, f"{text}: invalid argument")


def missing(text: str) -> Refused:
    return Refused(Code.NOT_FOUND, f"{text}: not found")


def exists(text: str) -> Refused:
    return Refused(Code.ALREADY_EXISTS, f"{text}: already exists")


NO_NAMESPACE = Refused(Code.FAILED_PRECONDITION, "namespace is required: failed precondition")
BAD_NAMESPACE = Refused(
    Code.INVALID_ARGUMENT,
    re.compile(rf'^namespace validation: identifier "a b" must match {re.escape(IDENTIFIER)}'),
)


def container(id: str, **fields: Any) -> containers_pb2.Container:
    """One that passes every check."""
    made = containers_pb2.Container(id=id, **{"spec": SPEC, **fields})
    made.runtime.name = made.runtime.name or "io.containerd.runc.v2"
    return made


def sandbox(id: str, **fields: Any) -> types_pb2.Sandbox:
    """One that passes every check."""
    made = types_pb2.Sandbox(sandbox_id=id, **fields)
    made.runtime.name = made.runtime.name or "io.containerd.runc.v2"
    return made


def image(name: str, **fields: Any) -> images_pb2.Image:
    """One that passes every check; of its target, what is not given is made up."""
    target = {"media_type": "application/x", "digest": digest.of(b"x"), "size": 1}
    for key in ("media_type", "digest", "size", "annotations"):
        if key in fields:
            target[key] = fields.pop(key)
    return images_pb2.Image(name=name, target=types_pb2.Descriptor(**target), **fields)
