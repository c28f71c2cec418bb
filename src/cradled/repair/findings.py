"""Pure. What a check of a root and a state finds, and what can be done about it."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What is wrong."""

    CORRUPT = "corrupt"
    MISSING = "missing"
    ORPHANED = "orphaned"
    LEFTOVER = "leftover"
    NOTE = "note"


class Verb(Enum):
    """How it is repaired; ``Repair.targets`` are what the comments say."""

    SET_ASIDE = "set aside, and rebuilt"  # the file of a database
    REBUILD = "taken in again"
    QUARANTINE = "quarantined"  # paths
    FORGET = "forgotten"  # a table, and the key of a row
    UNLABEL = "its labels are dropped"  # a table, and the key of a row
    DROP = "quarantined with what is above it"  # a snapshotter, and the id of a snapshot


class Repair(NamedTuple):
    verb: Verb
    targets: tuple[str, ...] = ()


class Finding(NamedTuple):
    """``what`` is the part of the house, ``subject`` the path or name of the thing. What has no
    ``repair`` takes somebody to decide."""

    kind: Kind
    what: str
    subject: str
    text: str
    repair: Repair | None = None

    @property
    def is_problem(self) -> bool:
        return self.kind is not Kind.NOTE

    def told(self) -> dict[str, str]:
        """For JSON."""
        repair = self.repair.verb.value if self.repair else ""
        return {
            "kind": self.kind.value, "what": self.what, "subject": self.subject,
            "text": self.text, "repair": repair,
        }  # fmt: skip
