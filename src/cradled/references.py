"""Pure. Names of images: the long form that is stored, the short form that people type.

``alpine`` means ``docker.io/library/alpine:latest`` to everyone who grew up with Docker; records
hold the long form, so it is the long form that clients agree on (reference, distribution.md 1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cradled.errors import InvalidArgument

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_OFFICIAL = "library/"
_ALIAS = "index.docker.io"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_path = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII).fullmatch
_domain = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[A-Fa-f0-9:]+\])(?::[0-9]+)?", re.ASCII
).fullmatch
_tag = re.compile(r"\w[\w.-]{0,127}", re.ASCII).fullmatch
_digest = re.compile(
    r"[A-Za-z][A-Za-z0-9]*(?:[+._-][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}", re.ASCII
).fullmatch
_bare_id = re.compile(r"[a-f0-9]{64}", re.ASCII).fullmatch
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed name; ``tag`` and ``digest`` are empty when not given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """Name without tag and digest."""
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return self.repository + tag + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """Take a name apart and fill in Docker's defaults for domain and first path element.

    Raises InvalidArgument for what is no image name.
    """
    if _bare_id(text):
        raise InvalidArgument(f'image name "{text}": 64 hex digits are an id, not a name')
    rest, _, digest = text.partition("@")
    domain, rest = _split_domain(rest)
    path, colon, tag = rest.partition(":")
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = _OFFICIAL + path
    valid = (
        _domain(domain)
        and _path(path)
        and (not colon or _tag(tag))
        and ("@" not in text or _digest(digest))
    )
    if not valid:
        hint = ": the repository must be lower case" if path != path.lower() else ""
        raise InvalidArgument(f'image name "{text}"{hint}')
    reference = Reference(domain, path, tag, digest)
    if len(reference.repository) > _MAX_NAME:
        raise InvalidArgument(f'image name "{text}": longer than {_MAX_NAME} characters')
    return reference


def normalise(text: str) -> str:
    """The long form as stored: with a tag (``latest`` by default) or with a digest and no tag."""
    reference = parse(text)
    if reference.digest:
        return f"{reference.repository}@{reference.digest}"
    return f"{reference.repository}:{reference.tag or DEFAULT_TAG}"


def familiar(name: str) -> str:
    """The short form of a stored name; what is no image name comes back unchanged."""
    try:
        reference = parse(name)
    except InvalidArgument:
        return name
    short = reference.repository
    if reference.domain == DEFAULT_DOMAIN:
        short = reference.path.removeprefix(_OFFICIAL)
        if "/" in short and short != reference.path:  # library/a/b is not a's official image
            short = reference.path
    return short + str(reference).removeprefix(reference.repository)


def _split_domain(text: str) -> tuple[str, str]:
    """The first element is a domain only if it cannot be meant as a path on the default one."""
    first, slash, rest = text.partition("/")
    is_domain = slash and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )
    if not is_domain:
        return DEFAULT_DOMAIN, text
    return (DEFAULT_DOMAIN if first == _ALIAS else first), rest
