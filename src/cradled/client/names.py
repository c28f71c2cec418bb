"""Pure. Names for containers that nobody named: two words one can say, and four digits."""

from __future__ import annotations

import secrets

_QUALITIES = (
    "amber bold brisk calm clear crisp deft eager early fair fleet fond frank fresh glad grand "
    "keen kind late light lively lucid merry mild neat nimble plain proud quick quiet rapid ready "
    "silent sleek smart solid spry stark steady still stout sunny swift tidy warm wise"
)
_BIRDS = (
    "auk avocet bittern bunting crane crow curlew dipper dove dunlin egret eider finch gannet "
    "godwit goose grebe gull hawk heron hoopoe ibis jackdaw jay kestrel kite knot lark linnet "
    "magpie martin merlin oriole osprey ouzel owl petrel pipit plover puffin raven robin rook "
    "ruff shrike siskin skua snipe starling stint stork swan swift teal tern thrush wagtail wren"
)


def generate() -> str:
    """For example ``brisk-heron-04f1``; an identifier, and unlikely to be taken."""
    words = secrets.choice(_QUALITIES.split()), secrets.choice(_BIRDS.split())
    return "-".join((*words, secrets.token_hex(2)))
