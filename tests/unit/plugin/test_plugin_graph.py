from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from cradled.plugin.graph import PluginError, order, start
from cradled.plugin.types import InitContext, Plugin, Registration, SkipPlugin


async def run(
    *registrations: Registration, disabled: tuple[str, ...] = (), required: tuple[str, ...] = ()
) -> dict[tuple[str, str], Plugin]:
    async with AsyncExitStack() as stack:
        loaded = await start(
            registrations,
            root="/r",
            state="/s",
            stack=stack,
            config_of=lambda registration: registration.id.upper(),
            properties={"a": "b"},
            disabled=disabled,
            required=required,
        )
    return dict(loaded)


def test_requirements_come_first() -> None:
    c = Registration("c", "1", ("b", "a"))
    b = Registration("b", "1", ("a", "absent"))
    a1, a2 = Registration("a", "1"), Registration("a", "2")
    assert order([c, a1, b, a2]) == [a1, a2, b, c]


def test_cycles_are_refused() -> None:
    with pytest.raises(PluginError, match="requires itself"):
        order([Registration("a", "1", ("b",)), Registration("b", "1", ("a",))])


async def test_plugins_get_what_they_need() -> None:
    seen: list[Any] = []

    async def base(context: InitContext) -> str:
        context.export("root", context.root)
        return "base"

    async def top(context: InitContext) -> str:
        seen.append((context.get("a", "x"), context.all("a"), context.config, context.state))
        return "top"

    loaded = await run(Registration("b", "y", ("a",), top), Registration("a", "x", (), base))
    assert seen == [("base", {"x": "base"}, "Y", "/s/b.y")]
    assert loaded["a", "x"].exports == {"root": "/r/a.x"}
    assert loaded["b", "y"].instance == "top"


async def fail(context: InitContext) -> None:
    raise ValueError("broken")


async def skip(context: InitContext) -> None:
    raise SkipPlugin("not configured")


async def test_failures_are_kept_and_hidden_from_others() -> None:
    async def top(context: InitContext) -> Any:
        assert context.all("a") == {}
        return context.get("a", "x")

    loaded = await run(Registration("a", "x", (), fail), Registration("b", "y", ("a",), top))
    assert isinstance(loaded["a", "x"].error, ValueError)
    assert isinstance(loaded["b", "y"].error, LookupError)
    assert not loaded["a", "x"].skipped


async def test_skipped_plugins_say_so() -> None:
    loaded = await run(Registration("a", "x", (), skip))
    assert loaded["a", "x"].skipped
    assert str(loaded["a", "x"].error) == "not configured: skip plugin"
    assert str(SkipPlugin()) == "skip plugin"


async def test_required_plugins_stop_the_start() -> None:
    with pytest.raises(PluginError, match=r"load required plugin a\.x: broken"):
        await run(Registration("a", "x", (), fail), required=("a.x",))
    with pytest.raises(PluginError, match=r"a\.z not included"):
        await run(Registration("a", "x"), required=("a.z",))
    with pytest.raises(PluginError, match=r"a\.x not included"):
        await run(Registration("a", "x"), required=("a.x",), disabled=("a.x",))


async def test_resources_close_in_reverse() -> None:
    closed: list[str] = []

    def holder(name: str) -> Any:
        async def init(context: InitContext) -> None:
            context.stack.callback(closed.append, name)

        return init

    await run(Registration("b", "1", ("a",), holder("b")), Registration("a", "1", (), holder("a")))
    assert closed == ["b", "a"]
