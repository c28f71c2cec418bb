"""Pure. Platforms: what an image is made for, and how well that fits a host.

Rules are those every client of a registry relies on (reference, distribution.md section 5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cradled.errors import InvalidArgument

_ARCHITECTURES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_KNOWN_ARCHITECTURES = frozenset(
    {"386", "amd64", "arm", "arm64", "loong64", "mips64", "mips64le", "ppc64", "ppc64le"}
    | {"riscv64", "s390x", "wasm"}
)
_KNOWN_SYSTEMS = frozenset({"linux", "windows", "darwin", "freebsd", "wasip1"})
_PART = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII).fullmatch
_SYSTEM = re.compile(r"([A-Za-z0-9_.-]+)(?:\(([^)]*)\))?((?:\+[A-Za-z0-9_.-]+)*)", re.ASCII)
_ARM_VARIANTS = ("v8", "v7", "v6", "v5")


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system on an architecture; empty fields are unknown."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        version = f"({self.os_version})" if self.os_version else ""
        system = self.os + version + "".join(f"+{f}" for f in self.os_features)
        return "/".join(part for part in (system, self.architecture, self.variant) if part)


def normalise(platform: Platform) -> Platform:
    """One spelling for each platform: ``linux/aarch64/v8`` and ``linux/arm64`` are the same."""
    system = platform.os.lower()
    architecture, variant = platform.architecture.lower(), platform.variant.lower()
    alias = _ARCHITECTURES.get(architecture)
    if alias is not None:
        architecture, variant = alias[0], variant or alias[1]
    if variant.isdigit():
        variant = "v" + variant
    default = {"amd64": "v1", "arm64": "v8"}.get(architecture)
    if architecture == "386" or variant == default:
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    system = "darwin" if system == "macos" else system
    return replace(platform, os=system, architecture=architecture, variant=variant)


def parse(text: str) -> Platform:
    """``os[(version)][+feature]/arch[/variant]``, or just one of os and arch.

    What is not said is taken from the host. Raises InvalidArgument.
    """
    parts = text.split("/")
    match = _SYSTEM.fullmatch(parts[0])
    if match is None or len(parts) > 3 or not all(_PART(part) for part in parts[1:]):
        raise InvalidArgument(f'platform "{text}"')
    system, version, features = match[1], match[2] or "", tuple(match[3].split("+")[1:])
    if len(parts) > 1:
        variant = parts[2] if len(parts) == 3 else ""
        return normalise(Platform(system, parts[1], variant, version, features))
    host = default()
    guess = normalise(Platform(system, system))
    if guess.os in _KNOWN_SYSTEMS:
        variant = host.variant
        return Platform(guess.os, host.architecture, variant, version, features)
    if guess.architecture in _KNOWN_ARCHITECTURES:
        return Platform(host.os, guess.architecture, guess.variant)
    raise InvalidArgument(f'platform "{text}": unknown operating system or architecture')


def default() -> Platform:
    """The platform of this host."""
    machine = os.uname().machine
    variant = ""
    if machine.startswith("armv"):  # armv7l
        machine, variant = "arm", machine[3:5]
    elif machine == "i686":
        machine = "386"
    return normalise(Platform("linux", machine, variant))


def preference(platform: Platform) -> list[Platform]:
    """The platforms a host of this kind can run, best first."""
    platform = normalise(platform)
    variants = _variants(platform)
    candidates = [replace(platform, variant=variant) for variant in variants]
    if platform.architecture == "amd64":
        candidates.append(replace(platform, architecture="386", variant=""))
    if platform.architecture == "arm64":
        arms = _ARM_VARIANTS if platform.os == "linux" else ()
        candidates += [replace(platform, architecture="arm", variant=v) for v in arms]
    return candidates


def rank(wanted: Iterable[Platform], candidate: Platform) -> int | None:
    """Position of ``candidate`` in the list of what is wanted; None where it does not match."""
    candidate = normalise(candidate)
    for position, platform in enumerate(wanted):
        same = (platform.os, platform.architecture, platform.variant) == (
            candidate.os,
            candidate.architecture,
            candidate.variant,
        )
        version = platform.os_version
        if (
            same
            and set(candidate.os_features) <= set(platform.os_features)
            and (not version or not candidate.os_version or candidate.os_version == version)
        ):
            return position
    return None


def _variants(platform: Platform) -> list[str]:
    """The variant itself and those below it that the same processor runs."""
    architecture, variant = platform.architecture, platform.variant
    if architecture == "amd64" and variant:
        return [f"v{n}" for n in range(int(variant[1:]), 1, -1)] + [""]
    if architecture == "arm" and variant in _ARM_VARIANTS:
        return list(_ARM_VARIANTS[_ARM_VARIANTS.index(variant) :])
    if architecture == "arm64" and variant:
        return _arm64_variants(variant)
    return [variant]


def _arm64_variants(variant: str) -> list[str]:
    """v9.m runs what v8.(m+5) runs; minor versions count down, v8.0 is written as nothing."""
    major, _, minor_text = variant.removeprefix("v").partition(".")
    minor = int(minor_text or 0)
    nine = [f"v9.{m}" if m else "v9" for m in range(minor, -1, -1)] if major == "9" else []
    eight = minor + 5 if major == "9" else minor
    return nine + [f"v8.{m}" for m in range(eight, 0, -1)] + [""]
