"""Pure. Flat ``google.protobuf.Struct`` messages: events of ours that any client can print.

The message class is protobuf's own, of its default pool; it is needed rarely, so import this late.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from cradled.convert.values import STRUCT
from cradled.core.values import AnyValue


def of_texts(texts: Mapping[str, str]) -> AnyValue:
    """A Struct that has these texts, by name."""
    message = Struct()
    message.update(texts)
    return AnyValue(STRUCT, message.SerializeToString(deterministic=True))


def texts(value: AnyValue) -> dict[str, str]:
    """The texts in a Struct, by name; what is no text is left out."""
    try:
        fields = Struct.FromString(value.value).fields
    except DecodeError:
        return {}
    return {
        name: field.string_value
        for name, field in fields.items()
        if field.WhichOneof("kind") == "string_value"
    }
