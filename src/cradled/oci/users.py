"""Pure. Who a container's process runs as, from the text of its own passwd and group files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cradled.errors import InvalidArgument, NotFound

_MAX_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class User:
    """Numeric ids as the kernel wants them; ``groups`` are the supplementary ones."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def resolve(user: str, passwd: str = "", group: str = "") -> User:
    """``uid``, ``name``, ``uid:gid``, ``name:group`` and any mix; empty means root.

    A number needs no entry in the files. With a group given there are no supplementary groups,
    without one they are those that list the user. Raises NotFound for an unknown name.
    """
    who, colon, of = user.partition(":")
    if user and (not who or (colon and not of)):
        raise InvalidArgument(f'user "{user}"')
    name, uid, gid = _find_user(who or "0", passwd)
    if colon:
        return User(uid, _find_group(of, group))
    return User(uid, gid, tuple(_groups_of(name, group)) if name else ())


def _find_user(who: str, passwd: str) -> tuple[str, int, int]:
    """(name, uid, gid); a number that has no entry has no name, and group 0."""
    number = _number(who)
    for fields in _entries(passwd, 4):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is None or gid is None:
            continue
        if fields[0] == who or uid == number:
            return fields[0], uid, gid
    if number is not None:
        return "", number, 0
    raise NotFound(f'user "{who}" in /etc/passwd of the image')


def _find_group(of: str, group: str) -> int:
    number = _number(of)
    if number is not None:
        return number
    for fields in _entries(group, 3):
        gid = _number(fields[2])
        if fields[0] == of and gid is not None:
            return gid
    raise NotFound(f'group "{of}" in /etc/group of the image')


def _groups_of(name: str, group: str) -> Iterator[int]:
    for fields in _entries(group, 4):
        gid = _number(fields[2])
        if gid is not None and name in fields[3].split(","):
            yield gid


def _entries(text: str, least: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= least and fields[0] and not line.startswith("#"):
            yield fields


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and int(text) <= _MAX_ID:
        return int(text)
    return None
