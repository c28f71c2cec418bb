"""What talks to a transport is tried on both loops: they differ in when they write and pause."""

import asyncio

import uvloop

BOTH = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(config, item):
    return BOTH if "grpc" in item.path.name else {"asyncio": asyncio.new_event_loop}
