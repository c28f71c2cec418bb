"""The rules of a policy file: which one decides, and what is refused as a rule."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cradled import api
from cradled.api import pool
from cradled.core.access import Access, Verdict
from cradled.daemon.config import ConfigError
from cradled.daemon.policy_reads import READS
from cradled.daemon.policy_rules import Rule, parse

CONTAINERS = "containerd.services.containers.v1.Containers"


class Somebody(NamedTuple):
    pid: int = 1
    uid: int = 1000
    gid: int = 100
    groups: frozenset[int] = frozenset({100, 27})
    executable: str = "/usr/bin/ctr"


def decided(
    text: str, method: str = f"{CONTAINERS}/List", namespace: str = "default", **who: Any
) -> Verdict:
    access = Access(method, namespace, "grpc", Somebody(**who))
    return parse(tomllib.loads(text)).decide(access)


def rule(keys: str, verdict: str = "allow") -> str:
    return f'[[rules]]\nverdict = "{verdict}"\n{keys}\n'


@pytest.mark.parametrize(
    ("keys", "fits"),
    [
        ("", True),
        ('methods = ["*"]', True),
        ('methods = ["read"]', True),
        (f'methods = ["{CONTAINERS}/List"]', True),
        (f'methods = ["{CONTAINERS}/*"]', True),
        ('methods = ["containerd.services.*/List"]', True),
        ('methods = ["containerd.services.[ab]*/*", "read"]', True),
        (f'methods = ["{CONTAINERS}/Get"]', False),
        (f'methods = ["{CONTAINERS}/list"]', False),
        ('methods = ["*.Tasks/*"]', False),
        ('methods = ["*/Lis"]', False),
        ('namespaces = ["default"]', True),
        ('namespaces = ["k8s.io", "def*"]', True),
        ('namespaces = ["default2"]', False),
        ('namespaces = ["efault"]', False),
        ('namespaces = [""]', False),
        ("uids = [0, 1000]", True),
        ("uids = [0]", False),
        ("gids = [100]", True),
        ("gids = [27]", True),
        ("gids = [1000]", False),
        ('executables = ["/usr/bin/ctr"]', True),
        ('executables = ["/usr/*"]', True),
        ('executables = ["/usr/bin/ct"]', False),
        ("uids = [1000]\ngids = [27]", True),
        ("uids = [1000]\ngids = [28]", False),
        ('uids = [1000]\nnamespaces = ["other"]', False),
    ],
)
def test_what_a_rule_speaks_of(keys: str, fits: bool) -> None:
    assert decided(rule(keys)) == (Verdict(True, "rule 1") if fits else Verdict(False, "default"))


def test_the_first_rule_that_fits_decides() -> None:
    rules = [
        rule('name = "not theirs"\nnamespaces = ["k8s.io"]', "deny"),
        rule('name = "look"\nmethods = ["read"]'),
        rule('name = "root"\nuids = [0]'),
    ]
    text = "".join(rules)
    assert decided(text, namespace="k8s.io", uid=0) == (False, "not theirs")
    assert decided(text) == (True, "look")
    assert decided(text, f"{CONTAINERS}/Delete") == (False, "default")
    assert decided(text, f"{CONTAINERS}/Delete", uid=0) == (True, "root")
    assert decided("".join(reversed(rules)), namespace="k8s.io", uid=0) == (True, "root")


def test_the_default() -> None:
    assert decided("") == (False, "default")
    assert decided('default = "deny"') == (False, "default")
    assert decided('default = "allow"') == (True, "default")


def test_an_empty_namespace_is_one_that_globs_can_name() -> None:
    assert decided(rule('namespaces = [""]'), namespace="").allowed
    assert decided(rule('namespaces = ["*"]'), namespace="").allowed
    assert not decided(rule('namespaces = ["d*"]'), namespace="").allowed


def test_a_program_that_is_not_known_fits_no_rule_about_programs() -> None:
    assert not decided(rule('executables = ["/*"]'), executable="").allowed


@pytest.mark.parametrize("default", ["allow", "deny"])
def test_a_peer_without_credentials_is_denied_by_default(default: str) -> None:
    text = f'default = "{default}"\n' + rule('methods = ["*Version/Version"]') + rule("uids = [0]")
    rules = parse(tomllib.loads(text))

    def ask(method: str) -> Verdict:
        return rules.decide(Access(method, "", "grpc", None))

    assert ask("containerd.services.version.v1.Version/Version") == (True, "rule 1")
    assert ask(f"{CONTAINERS}/List") == (False, "default")


@pytest.mark.parametrize("key", ["uids = [0]", "gids = [0]", 'executables = ["/*"]'])
def test_a_peer_without_credentials_fits_no_rule_about_who(key: str) -> None:
    rules = parse(tomllib.loads(rule(key)))
    assert rules.decide(Access(f"{CONTAINERS}/List", "", "grpc", None)) == (False, "default")


def test_the_program_is_looked_for_only_when_it_matters() -> None:
    class Elsewhere:
        pid, uid, gid, groups = 1, 1000, 100, frozenset({100})

        @property
        def executable(self) -> str:
            raise AssertionError("asked for")

    rules = parse(tomllib.loads(rule('uids = [0]\nexecutables = ["/bin/x"]') + rule("")))
    assert rules.decide(Access(f"{CONTAINERS}/List", "n", "grpc", Elsewhere())) == (True, "rule 2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('defualt = "allow"', 'unknown key "defualt" in the policy (did you mean "default"?)'),
        ('default = "maybe"', 'key "default" wants "allow" or "deny", not \'maybe\''),
        ("default = true", 'key "default" wants "allow" or "deny", not True'),
        ("default = []", 'key "default" wants "allow" or "deny", not []'),
        ("rules = 1", '"rules" wants tables: [[rules]]'),
        ("rules = [1]", '"rules" wants tables: [[rules]]'),
        ("[[rules]]", 'rule 1: key "verdict" is missing'),
        ('[[rules]]\nverdict = "no"', 'rule 1: key "verdict" wants "allow" or "deny"'),
        (rule("") + rule("uid = [1]"), 'unknown key "uid" in rule 2 (did you mean "uids"?)'),
        (rule("allowed = true"), 'unknown key "allowed" in rule 1'),
        (rule("name = 1"), 'rule 1: key "name" wants a text'),
        (rule('name = ""'), 'rule 1: key "name" wants a text'),
        (rule("uids = 1"), 'rule 1: key "uids" wants a list of numbers, not 1'),
        (rule('uids = ["root"]'), 'rule 1: key "uids" wants a list of numbers'),
        (rule("uids = [true]"), 'rule 1: key "uids" wants a list of numbers'),
        (rule("gids = []"), 'rule 1: key "gids" wants a list of numbers'),
        (rule('namespaces = "x"'), 'rule 1: key "namespaces" wants a list of texts'),
        (rule("methods = [1]"), 'rule 1: key "methods" wants a list of texts'),
        (rule('methods = ["List"]'), 'rule 1: method "List" is not package.Service/Method'),
        (rule('executables = ["ctr"]'), 'rule 1: executable "ctr" is no absolute path'),
        (rule('executables = ["*"]'), 'rule 1: executable "*" is no absolute path'),
    ],
)
def test_what_is_no_policy(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tomllib.loads(text))
    assert says in str(caught.value)


KEYS = st.sampled_from([*Rule._fields, "verdict", "default", "rules", "other"])
WORDS = st.text(alphabet="ab*?[]!-^\\/.\n\0é", max_size=6)
VALUES = st.recursive(
    st.one_of(WORDS, st.integers(), st.booleans(), st.floats(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
LIKELY = st.fixed_dictionaries(
    {"verdict": st.sampled_from(["allow", "deny"])},
    optional={
        "methods": st.lists(WORDS.map("{}*".format), max_size=3),
        "namespaces": st.lists(WORDS, max_size=3),
        "executables": st.lists(WORDS.map("/{}".format), max_size=3),
        "uids": st.lists(st.integers(), max_size=3),
    },
)
POLICIES = st.one_of(
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.lists(LIKELY, max_size=3).map(lambda rules: {"rules": rules}),
)


@given(POLICIES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_read_gives_rules_or_an_error(table: Any) -> None:
    try:
        rules = parse(table)
    except ConfigError:
        return
    for caller in (Somebody(), None):
        verdict = rules.decide(Access(f"{CONTAINERS}/List", "ns", "grpc", caller))
        assert isinstance(verdict.allowed, bool)


def _methods() -> set[str]:
    """All methods of all our services."""
    names = [f"cradled.api.{module.name}" for module in pkgutil.iter_modules(api.__path__)]
    modules = [importlib.import_module(name) for name in names]
    values = [value for module in modules for value in vars(module).values()]
    services = [value for value in values if isinstance(value, pool.Service)]
    return {method.path[1:] for service in services for method in service.methods.values()}


def test_reads_are_methods_there_are() -> None:
    known = _methods()
    services = {method.partition("/")[0] for method in known}
    assert {read for read in READS if read.partition("/")[0] in services} <= known


CHANGING = """
Abort Activate AddResource Apply Attach Cleanup Checkpoint CheckpointContainer CloseIO Commit Create
CreateContainer Deactivate Delete DeleteProcess DeleteResource Diff Exec ExecSync Forward Kill Pause
PluginInfo PortForward Prepare Publish PullImage Remove RemoveContainer RemoveImage
RemovePodSandbox ReopenContainerLog ResizePty Resume RunPodSandbox Shutdown Start StartContainer
Stop StopContainer StopPodSandbox Stream Transfer Update UpdateContainerResources
UpdatePodSandboxResources UpdateRuntimeConfig Upgrade View Write
""".split()  # noqa: SIM905 - a list to read

NOT_PUBLIC = ("containerd.task.", "containerd.runtime.", "nri.", "containerd.services.events.ttrpc")


def test_each_public_method_reads_or_changes() -> None:
    """So that whoever adds a method decides which."""
    public = {method for method in _methods() if not method.startswith(NOT_PUBLIC)}
    changing = {method for method in public if method.partition("/")[2] in CHANGING}
    assert public - changing == READS & public
    assert not changing & READS
