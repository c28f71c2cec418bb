"""A service with a method of every kind of call, for the tests of what carries calls."""

import asyncio

from cradled import errors
from cradled.api.pool import Method, Service
from cradled.api.version_pb2 import VersionResponse
from cradled.rpc.service import Encoded


def _method(name: str, client: bool, server: bool) -> Method:
    return Method(name, f"/test.Echo/{name}", VersionResponse, VersionResponse, client, server)


ECHO = Service(
    "test.Echo",
    {
        "Say": _method("Say", False, False),
        "Count": _method("Count", False, True),
        "Join": _method("Join", True, False),
        "Chat": _method("Chat", True, True),
        "Absent": _method("Absent", False, False),
    },
)


def message(text: str, revision: str = "") -> VersionResponse:
    return VersionResponse(version=text, revision=revision)


class EchoService:
    def __init__(self):
        self.calls = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.sent = 0

    async def say(self, call, request):
        self.calls.append(call)
        match request.version:
            case "encoded":
                return Encoded(b"\n\x04en", b"co")
            case "fail":
                raise errors.NotFound(request.revision or "it")
            case "details":
                details = (("type.googleapis.com/x.Y", b"\x00\xff"), ("z", b""))
                raise errors.NotFound("it", details=details)
            case "bug":
                raise ZeroDivisionError("oops")
            case "big":
                return message("x" * int(request.revision))
            case "slow":
                await asyncio.sleep(0)
            case "timeout":
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            case "hang":
                self.started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
        return message(request.version)

    async def count(self, call, request):
        self.calls.append(call)
        call.initial_metadata.append(("from", "zero"))
        call.trailing_metadata.append(("to-bin", b"\x00\xff"))
        size = int(request.revision or 1)
        try:
            for i in range(int(request.version)):
                yield message(str(i).rjust(size))
                self.sent += 1
        finally:
            self.cancelled.set()
        if request.revision == "0":
            raise errors.Conflict("busy")

    async def join(self, call, requests):
        return message(",".join([r.version async for r in requests]))

    async def chat(self, call, requests):
        self.started.set()
        try:
            async for request in requests:
                yield request
                if request.version == "end":
                    return
        finally:
            self.cancelled.set()
