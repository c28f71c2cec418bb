"""Pure. The event that tells of a denied call.

It is a ``google.rpc.Status``, a type that every client of the field can print: the code and text
that the caller got, and as its one detail a ``google.protobuf.Struct`` of texts with who, what and
why. The class of that is protobuf's own; it is needed rarely, so import this late.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from cradled.api.google_rpc_pb2 import Status
from cradled.api.wellknown_pb2 import Any
from cradled.convert.values import STATUS
from cradled.core.values import AnyValue

_STRUCT = Struct.DESCRIPTOR.full_name


def event(code: int, text: str, facts: Mapping[str, str]) -> AnyValue:
    """A status, and what is behind it."""
    struct = Struct()
    struct.update(facts)
    detail = Any(type_url=_STRUCT, value=struct.SerializeToString(deterministic=True))
    message = Status(code=code, message=text, details=[detail])
    return AnyValue(STATUS, message.SerializeToString())


def texts(value: AnyValue) -> dict[str, str]:
    """The status's ``message``, and the texts among its facts, by name."""
    try:
        status = Status.FromString(value.value)
        found = {"message": status.message}
        for detail in status.details:
            if detail.type_url.rpartition("/")[2] == _STRUCT:
                found |= _texts(Struct.FromString(detail.value))
    except DecodeError:
        return {}
    return found


def _texts(struct: Struct) -> dict[str, str]:
    return {
        name: field.string_value
        for name, field in struct.fields.items()
        if field.WhichOneof("kind") == "string_value"
    }
