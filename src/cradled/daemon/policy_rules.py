"""Pure. The rules of a policy file: what they say, and what is wrong with them.

    default = "deny"                            # for calls that no rule speaks of

    [[rules]]                                   # the first rule that fits decides
    name = "monitoring may look"                # told to who is denied by it
    verdict = "allow"                           # or "deny"
    methods = ["read"]                          # globs of package.Service/Method, or "read"
    namespaces = ["k8s.io", "moby*"]            # globs; "" is a call upon none or all of them
    uids = [0, 1000]                            # the caller's
    gids = [990]                                # one of its groups
    executables = ["/usr/bin/kubelet"]          # globs of its program's path

A key that is not there fits everything; one that is fits when one entry does, and all keys must.
A peer without credentials fits no rule that asks who it is, and is denied by default.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from cradled.core.access import Access, Verdict
from cradled.daemon.config import ConfigError
from cradled.daemon.policy_reads import READS
from cradled.daemon.spelling import nearest

_TOP = ("default", "rules")
_WORDS = ("allow", "deny")

Glob = Callable[[str], object]


class Rule(NamedTuple):
    """What is None was not asked for."""

    name: str
    allowed: bool
    methods: Callable[[str], bool]
    namespaces: Glob | None
    uids: frozenset[int] | None
    gids: frozenset[int] | None
    executables: Glob | None

    def fits(self, access: Access) -> bool:
        """Whether it speaks of a call, ``methods`` aside. What costs most is looked at last."""
        if self.namespaces is not None and not self.namespaces(access.namespace):
            return False
        if self.uids is None and self.gids is None and self.executables is None:
            return True
        caller = access.caller
        if caller is None:
            return False
        if self.uids is not None and caller.uid not in self.uids:
            return False
        if self.gids is not None and self.gids.isdisjoint(caller.groups):
            return False
        return self.executables is None or bool(self.executables(caller.executable))


class Rules:
    """The rules of one file, in its order."""

    def __init__(self, rules: Iterable[Rule], allowed_by_default: bool) -> None:
        self._rules = tuple(rules)
        self._default = Verdict(allowed_by_default, "default")
        self._of_method = lru_cache(1024)(self._select)

    def decide(self, access: Access, /) -> Verdict:
        """The verdict of the first rule that fits, else the default."""
        for rule in self._of_method(access.method):
            if rule.fits(access):
                return Verdict(rule.allowed, rule.name)
        return self._default if access.caller is not None else Verdict(False, "default")

    def _select(self, method: str) -> tuple[Rule, ...]:
        return tuple(rule for rule in self._rules if rule.methods(method))


def parse(table: Mapping[str, Any]) -> Rules:
    """The rules of a parsed file. Raises ConfigError; here an unknown key is an error too."""
    _check_keys(table, _TOP, "the policy")
    default = _word(table.get("default", "deny"), 'key "default"')
    rules = table.get("rules", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise ConfigError('"rules" wants tables: [[rules]]')
    return Rules((_rule(rule, number) for number, rule in enumerate(rules, 1)), default)


def _rule(table: Mapping[str, Any], number: int) -> Rule:
    name = table.get("name", f"rule {number}")
    where = f"rule {number}"
    _check_keys(table, Rule.__annotations__.keys() - {"allowed"} | {"verdict"}, where)
    if not isinstance(name, str) or not name:
        raise ConfigError(f'{where}: key "name" wants a text')
    if "verdict" not in table:
        raise ConfigError(f'{where}: key "verdict" is missing')
    methods = _list(table, "methods", str, where)
    return Rule(
        name,
        _word(table["verdict"], f'{where}: key "verdict"'),
        _methods(["*"] if methods is None else methods, where),
        _globs(_list(table, "namespaces", str, where)),
        _numbers(_list(table, "uids", int, where)),
        _numbers(_list(table, "gids", int, where)),
        _globs(_executables(table, where)),
    )


def _executables(table: Mapping[str, Any], where: str) -> list[str] | None:
    paths = _list(table, "executables", str, where)
    for path in paths or ():
        if not path.startswith("/"):  # "*" would fit a program that is not known for certain
            raise ConfigError(f'{where}: executable "{path}" is no absolute path')
    return paths


def _check_keys(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in sorted(table.keys() - set(known)):
        near = nearest(key, known)
        hint = f' (did you mean "{near}"?)' if near else ""
        raise ConfigError(f'unknown key "{key}" in {where}{hint}')


def _word(value: object, where: str) -> bool:
    if value not in _WORDS:
        raise ConfigError(f'{where} wants "allow" or "deny", not {value!r}')
    return value == "allow"


def _list(table: Mapping[str, Any], key: str, kind: type, where: str) -> list[Any] | None:
    values = table.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or not values or any(type(v) is not kind for v in values):
        what = "numbers" if kind is int else "texts"
        raise ConfigError(f'{where}: key "{key}" wants a list of {what}, not {values!r}')
    return values


def _numbers(values: list[int] | None) -> frozenset[int] | None:
    return None if values is None else frozenset(values)


def _globs(patterns: list[str] | None) -> Glob | None:
    if patterns is None:
        return None
    return re.compile("|".join(map(fnmatch.translate, patterns))).match


def _methods(patterns: list[str], where: str) -> Callable[[str], bool]:
    globs = [pattern for pattern in patterns if pattern != "read"]
    for glob in globs:
        if "/" not in glob and not glob.endswith("*"):
            raise ConfigError(f'{where}: method "{glob}" is not package.Service/Method')
    reads = READS if "read" in patterns else frozenset[str]()
    fits = _globs(globs) if globs else None
    return lambda method: method in reads or (fits is not None and fits(method) is not None)
