"""Pure. The core container runtime: in your process (``Runtime``), or a daemon's (``connect``).

Both names are loaded on first use, so importing a part of the package costs no more than the part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cradled.client import Client, connect
    from cradled.embed import Runtime

__all__ = ["Client", "Runtime", "connect"]


def __getattr__(name: str) -> Any:
    if name == "Runtime":
        from cradled.embed import Runtime

        return Runtime
    if name in ("Client", "connect"):
        import cradled.client

        return getattr(cradled.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
