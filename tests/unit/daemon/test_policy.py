"""Where policies come from, how they are read again, how a denial is told."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from cradled.api.google_rpc_pb2 import Status
from cradled.core.access import Access, Verdict
from cradled.core.events import Envelope
from cradled.daemon import builtins, config_check, policy, policy_rules
from cradled.daemon.config import ConfigError
from cradled.errors import PermissionDenied
from cradled.events.exchange import Exchange
from cradled.rpc.guard import UnixCaller

ALLOW, DENY = 'default = "allow"\n', 'default = "deny"\n'
ACCESS = Access("a.B/C", "ns", "grpc", None)


def us() -> UnixCaller:
    """This process as its own peer."""
    one, other = socket.socketpair()
    with one, other:
        caller = UnixCaller.of(one)
        assert caller is not None
        assert caller.executable
        return caller


def write(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def test_a_file_decides(tmp_path: Path) -> None:
    access = ACCESS._replace(caller=us())
    assert policy.PolicyFile(write(tmp_path / "p", ALLOW)).decide(access).allowed
    assert not policy.PolicyFile(write(tmp_path / "q", DENY)).decide(access).allowed


def test_a_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    access = ACCESS._replace(caller=us())
    path = tmp_path / "p"
    found = policy.PolicyFile(write(path, ALLOW))
    write(path, DENY)
    assert found.decide(access).allowed
    with caplog.at_level(logging.INFO):
        policy.reload([found])
    assert not found.decide(access).allowed
    assert "the policy was read again" in caplog.text


@pytest.mark.parametrize("breaks", [lambda p: write(p, "default = 1"), Path.unlink])
def test_one_that_cannot_be_read_again_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, breaks: Callable[[Path], Any]
) -> None:
    access = ACCESS._replace(caller=us())
    path = tmp_path / "p"
    found = policy.PolicyFile(write(path, ALLOW))
    breaks(path)
    policy.reload([found])
    assert found.decide(access).allowed
    assert f"the policy stays as it was: {'cannot read ' if not path.exists() else ''}{path}" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default = ", "{path}: Invalid value"),
        ("nonsense = 1", '{path}: unknown key "nonsense" in the policy'),
    ],
)
def test_what_is_no_policy_names_its_file(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path / "p", text)
    with pytest.raises(ConfigError) as caught:
        policy.PolicyFile(path)
    assert str(caught.value).startswith(says.format(path=path))


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "p"
    write(path, ALLOW)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others than root may write it"):
        policy.PolicyFile(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p", ALLOW)
    os.chown(path, 1000, 0)
    with pytest.raises(ConfigError, match="others than root may write it"):
        policy.PolicyFile(path)


INSTALLED = """
from cradled.core.access import Verdict

class Ours:
    def decide(self, access):
        return Verdict(access.namespace == "ns", "ours")

    def reload(self):
        raise ValueError("no news")
"""


def test_an_entry_point_of_an_installed_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    about = tmp_path / "somebodys_policies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: somebodys-policies\nVersion: 1.0\n"
    )
    (about / "entry_points.txt").write_text("[cradled.policies]\nours = somebodys_policies:Ours\n")
    (tmp_path / "somebodys_policies.py").write_text(INSTALLED)
    monkeypatch.syspath_prepend(tmp_path)
    found = policy.from_entry_point("ours")
    monkeypatch.delitem(sys.modules, "somebodys_policies")
    assert found.decide(ACCESS) == (True, "ours")
    assert found.decide(ACCESS._replace(namespace="other")) == (False, "ours")
    policy.reload([found])
    assert "the policy stays as it was: no news" in caplog.text
    with pytest.raises(ConfigError, match='no installed package has "theirs" in the entry points'):
        policy.from_entry_point("theirs")


class Never:
    def decide(self, access: Access) -> Verdict:
        return Verdict(False, "ours")

    def reload(self) -> None:
        return


@pytest.mark.parametrize(
    ("namespace", "told_in"), [("elsewhere", "elsewhere"), ("", "cradled"), ("a b", "cradled")]
)
async def test_a_denial_is_an_event_and_a_line(
    caplog: pytest.LogCaptureFixture, namespace: str, told_in: str
) -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    caller = us()
    with pytest.raises(PermissionDenied):
        policy.guard([Never()], exchange).check(Access("a.B/C", namespace, "grpc", caller))
    envelope: Envelope = await anext(subscription)
    assert (envelope.namespace, envelope.topic) == (told_in, "/policy/denied")
    assert envelope.event.type_url == "google.rpc.Status"
    status = Status.FromString(envelope.event.value)
    (line,) = caplog.messages
    assert (status.code, status.message) == (7, f"{line}: permission denied")
    (detail,) = status.details
    assert detail.type_url == "google.protobuf.Struct"
    assert MessageToDict(Struct.FromString(detail.value)) == {
        "method": "a.B/C",
        "namespace": namespace,
        "transport": "grpc",
        "rule": "ours",
        "pid": str(caller.pid),
        "uid": str(caller.uid),
        "gid": str(caller.gid),
        "executable": caller.executable,
    }
    assert line.startswith(f"policy: uid {caller.uid} (pid {caller.pid}, {caller.executable}) may")


HOWTO = (Path(__file__).parents[3] / "docs/howto/authorise.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", HOWTO, re.DOTALL)


def test_the_rules_of_the_howto_do_what_it_says() -> None:
    (text,) = [block for block in blocks("toml") if "[[rules]]" in block]
    rules = policy_rules.parse(tomllib.loads(text))
    get, delete = (f"containerd.services.containers.v1.Containers/{m}" for m in ("Get", "Delete"))
    cases = [
        (get, "k8s.io", Somebody(0), "root"),
        (get, "k8s.io", Somebody(1000, {990}), "pods are the kubelet's"),
        (get, "default", Somebody(1000, {990}), "the monitoring group looks"),
        (delete, "default", Somebody(1000, {990}), "default"),
        (delete, "buildkit1", Somebody(1000, set(), "/usr/bin/buildkitd"), "builders"),
    ]
    for method, namespace, caller, rule in cases:
        assert rules.decide(Access(method, namespace, "grpc", caller)).rule == rule


class Somebody:
    pid, gid = 1, 100

    def __init__(self, uid: int, groups: Iterable[int] = (), executable: str = "") -> None:
        self.uid, self.groups, self.executable = uid, frozenset(groups), executable


def test_the_configuration_of_the_howto_is_without_fault() -> None:
    sections: dict[str, Any] = {}
    for block in blocks("toml"):
        sections |= tomllib.loads(block).get("plugins", {})
    problems = config_check.problems({"version": 4, "plugins": sections}, *builtins.known())
    assert sections
    assert [str(problem) for problem in problems] == []


def test_the_policy_of_the_howto_is_one() -> None:
    (program,) = blocks("python")
    names: dict[str, Any] = {}
    exec(program, names)
    made = names["OfficeHours"]()
    assert made.decide(ACCESS) == (True, "office hours")
    made.reload()
