"""Pure. Event envelopes."""

from __future__ import annotations

from cradled.api.types_pb2 import Envelope as EnvelopeMessage
from cradled.convert.values import any_from_proto, any_to_proto, nanoseconds, timestamp
from cradled.core.events import Envelope


def to_proto(envelope: Envelope) -> EnvelopeMessage:
    return EnvelopeMessage(
        timestamp=timestamp(envelope.timestamp),
        namespace=envelope.namespace,
        topic=envelope.topic,
        event=any_to_proto(envelope.event),
    )


def from_proto(message: EnvelopeMessage) -> Envelope:
    return Envelope(
        timestamp=nanoseconds(message.timestamp),
        namespace=message.namespace,
        topic=message.topic,
        event=any_from_proto(message.event),
    )
