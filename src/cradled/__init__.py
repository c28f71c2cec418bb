"""Pure. The core container runtime: in your process (``Runtime``), or a daemon's (``connect``).

Both names are loaded on first use, so importing a part of the package costs no more than the part.
"""

TYPE_CHECKING = False  # as in typing, which is not worth its import here

if TYPE_CHECKING:
    from cradled.client import Client, connect
    from cradled.embed import Runtime

__all__ = ["Client", "Runtime", "connect"]


def __getattr__(name: str) -> object:
    if name == "Runtime":
        from cradled.embed import Runtime

        return Runtime
    if name in __all__:
        import cradled.client

        return getattr(cradled.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
