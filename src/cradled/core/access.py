"""Pure. Who asks for what, and what a policy says to it; what third-party policies implement."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Caller(Protocol):
    """The process at the other end of a unix socket, as the kernel saw it at connect."""

    @property
    def pid(self) -> int: ...

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...

    @property
    def groups(self) -> frozenset[int]:
        """All its groups, ``gid`` among them."""

    @property
    def executable(self) -> str:
        """The path of its program; empty when that cannot be told for certain.

        Found out when it is first asked for, then kept for the connection.
        """


class Access(NamedTuple):
    """One call: ``method`` is ``package.Service/Method``.

    ``namespace`` is the one acted upon; empty where it is none or all of them. ``caller`` is None
    for a peer without credentials (TCP).
    """

    method: str
    namespace: str
    transport: str
    caller: Caller | None


class Verdict(NamedTuple):
    """``rule`` names what decided; it is told to who is denied."""

    allowed: bool
    rule: str


class Policy(Protocol):
    """Asked before each call is handled; a stream is one call, asked about when it is opened."""

    def decide(self, access: Access, /) -> Verdict:
        """Must not block. What it raises denies the call, and goes to the log."""

    def reload(self) -> None:
        """Read again what it was made of.

        Whoever cannot raises what tells why, and goes on as before.
        """
