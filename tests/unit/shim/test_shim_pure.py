"""The parts of the shim that are data in, data out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled import errors
from cradled.errors import Error, InvalidArgument, NotFound
from cradled.rpc import status as rpc_status
from cradled.shim import bootstrap, bundle, log, messages, runc, server
from cradled.shim.process import CREATED, DELETED, PAUSED, PAUSING, RUNNING, STOPPED, State
from cradled.shim.publisher import EXIT, Publisher
from cradled.ttrpc.codec import decode, encode

ACTIONS = ("start", "pause", "resume", "checkpoint", "update", "exec", "delete")


def allowed(state: int, *, init: bool) -> set[str]:
    machine = State(init=init)
    found = set()
    for action in ACTIONS if init else ("start", "delete"):
        machine.now = state
        error = refusal(machine, action)
        if error is None:
            found.add(action)
        else:
            assert type(error) is (NotFound if state == DELETED else Error)  # Error is UNKNOWN
            assert action in str(error)
    return found


def refusal(machine: State, action: str) -> Error | None:
    try:
        machine.check(action)
    except Error as error:
        return error
    return None


def test_what_an_init_allows() -> None:
    assert allowed(CREATED, init=True) == {"start", "update", "exec", "delete"}
    assert allowed(RUNNING, init=True) == {"pause", "checkpoint", "update", "exec"}
    assert allowed(PAUSING, init=True) == allowed(RUNNING, init=True)
    assert allowed(PAUSED, init=True) == {"resume", "checkpoint", "update"}
    assert allowed(STOPPED, init=True) == {"delete"}
    assert allowed(DELETED, init=True) == set()


def test_what_an_exec_allows() -> None:
    assert allowed(CREATED, init=False) == {"start", "delete"}
    assert allowed(RUNNING, init=False) == set()
    assert allowed(STOPPED, init=False) == {"delete"}
    assert allowed(DELETED, init=False) == set()


def test_a_life_of_states() -> None:
    state = State(init=True)
    seen = []
    for action in ("start", "pause", "resume", "update", "exit", "delete"):
        state.done(action)
        seen.append(state.now)
    assert seen == [RUNNING, PAUSED, RUNNING, RUNNING, STOPPED, DELETED]


def test_an_end_is_not_undone_by_what_was_under_way() -> None:
    state = State(init=True)
    state.done("start")
    state.done("exit")
    state.done("pause")
    assert state.now == STOPPED


def test_runc_command_lines() -> None:
    options = messages.Options(no_pivot_root=True, no_new_keyring=True, systemd_cgroup=True)
    assert runc.argv(options, "/r/ns", "/b/log.json", "start", "c") == [
        "runc", "--root", "/r/ns", "--log", "/b/log.json", "--log-format", "json",
        "--systemd-cgroup", "start", "c",
    ]  # fmt: skip
    assert runc.on_console(runc.create_words(options, "/b", "/b/init.pid", "c"), "/s") == [
        "create", "--console-socket", "/s", "--bundle", "/b", "--pid-file", "/b/init.pid",
        "--no-pivot", "--no-new-keyring", "c",
    ]  # fmt: skip
    plain = messages.Options(binary_name="crun")
    assert runc.argv(plain, "/r", "/l", "x")[0] == "crun"
    assert runc.create_words(plain, "/b", "/b/init.pid", "c") == [
        "create", "--bundle", "/b", "--pid-file", "/b/init.pid", "c",
    ]  # fmt: skip
    assert runc.exec_words("/f", "/b/e.pid", "c") == [
        "exec", "--process", "/f", "--detach", "--pid-file", "/b/e.pid", "c",
    ]  # fmt: skip
    assert runc.restore_words(plain, ("/i", "/w"), "/b", "/b/init.pid", "c") == [
        "restore", "--image-path", "/i", "--work-path", "/w", "--detach",
        "--pid-file", "/b/init.pid", "-no-subreaper", "--bundle", "/b", "c",
    ]  # fmt: skip


def test_checkpoint_command_lines() -> None:
    nothing = messages.CheckpointOptions()
    assert runc.checkpoint_words(nothing, "/i", "/w", "c") == [
        "checkpoint", "--image-path", "/i", "--work-path", "/w", "--leave-running", "c",
    ]  # fmt: skip
    everything = messages.CheckpointOptions(
        exit=True, open_tcp=True, external_unix_sockets=True, terminal=True, file_locks=True,
        empty_namespaces=["network", "ipc"], cgroups_mode="soft", image_path="/i2", work_path="/w2",
    )  # fmt: skip
    assert runc.checkpoint_words(everything, "/i", "/w", "c") == [
        "checkpoint", "--image-path", "/i2", "--work-path", "/w2", "--tcp-established",
        "--ext-unix-sk", "--shell-job", "--file-locks", "--manage-cgroups-mode", "soft",
        "--empty-ns", "network", "--empty-ns", "ipc", "c",
    ]  # fmt: skip


def test_last_error_of_a_runtime() -> None:
    lines = [
        '{"level":"error","msg":"first"}',
        "not json",
        '{"level":"error","msg":" second \\n"}',
        '{"level":"warning","msg":"third"}',
        "[]",
        "",
    ]
    assert runc.last_error("\n".join(lines)) == "second"
    assert runc.last_error("") == ""


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("X: os: process already finished", NotFound, "process already finished"),
        ("X: container not running", NotFound, "process already finished"),
        ("X: no such process", NotFound, "process already finished"),
        ("X: container does not exist", NotFound, "no such container"),
        ("X: permission denied", Error, "X: permission denied"),
    ],
)
def test_refused_signals(text: str, kind: type[Error], what: str) -> None:
    error = runc.kill_error(Error(text))
    assert (type(error), error.what) == (kind, what)


FLAGS = "-namespace ns -address /c.sock -publish-binary /bin/c --id=one -debug -bundle /b start"


def test_flags() -> None:
    flags = bootstrap.parse_flags(FLAGS.split())
    assert (flags["namespace"], flags["address"], flags["id"]) == ("ns", "/c.sock", "one")
    assert (flags["bundle"], flags["socket"], flags.action) == ("/b", "", "start")
    assert flags.switches == {"debug"}
    assert bootstrap.parse_flags(["-debug=false"]).switches == set()
    assert bootstrap.parse_flags([]).action == ""


@pytest.mark.parametrize("words", ["-what", "-id", "jump"])
def test_wrong_flags(words: str) -> None:
    with pytest.raises(InvalidArgument):
        bootstrap.parse_flags(words.split())


def params(**changes: Any) -> bytes:
    fields = {
        "instance_id": "one", "namespace": "ns", "containerd_ttrpc_address": "/c.sock.ttrpc",
        "containerd_grpc_address": "/c.sock", "socket_dir": "/s",
    }  # fmt: skip
    return encode(messages.BootstrapParams(**{**fields, **changes}))


def any_options(**fields: Any) -> messages.Any:
    return messages.Any(
        type_url="containerd.runc.v1.Options", value=encode(messages.Options(**fields))
    )


def test_start_of_a_daemon_of_today() -> None:
    extensions = [
        messages.Extension(value=messages.Any(type_url="other")),
        messages.Extension(),
        messages.Extension(value=any_options(shim_cgroup="/g")),
    ]
    start = bootstrap.Start(bootstrap.parse_flags(FLAGS.split()), {}, params(extensions=extensions))
    assert start.modern
    assert (start.id, start.namespace, start.socket_dir) == ("one", "ns", "/s")
    assert (start.grpc_address, start.ttrpc_address) == ("/c.sock", "/c.sock.ttrpc")
    assert start.options.shim_cgroup == "/g"
    answer = decode(messages.BootstrapResult, start.answer("unix:///s/x"))
    assert (answer.version, answer.address, answer.protocol) == (3, "unix:///s/x", "ttrpc")
    assert start.answer("x")[0] == 0x08


def test_start_without_flags() -> None:
    start = bootstrap.Start(bootstrap.parse_flags(["start"]), {}, params())
    assert (start.modern, start.id, start.namespace) == (True, "one", "ns")


@pytest.mark.parametrize(
    "stdin", [b"", b"\xff\xff", encode(any_options(shim_cgroup="/g"))], ids=["none", "junk", "any"]
)
def test_start_of_an_older_daemon(stdin: bytes) -> None:
    environment = {"TTRPC_ADDRESS": "/t.sock"}
    start = bootstrap.Start(bootstrap.parse_flags(FLAGS.split()), environment, stdin)
    assert not start.modern
    assert (start.id, start.namespace, start.grpc_address) == ("one", "ns", "/c.sock")
    assert (start.ttrpc_address, start.socket_dir) == ("/t.sock", "/run/containerd/s")
    assert start.options.shim_cgroup == ("/g" if len(stdin) > 2 else "")
    assert start.answer("unix:///x") == b"unix:///x"
    plain = bootstrap.Start(bootstrap.parse_flags(FLAGS.split()), {}, stdin)
    assert plain.ttrpc_address == "/c.sock.ttrpc"


@given(st.binary(max_size=80))
def test_any_start_input_is_taken(data: bytes) -> None:
    start = bootstrap.Start(bootstrap.parse_flags(FLAGS.split()), {}, data)
    assert start.id


def test_groups() -> None:
    start = bootstrap.Start(bootstrap.parse_flags(FLAGS.split()), {}, b"")
    group, pod = bootstrap.GROUP_ANNOTATIONS
    assert start.group({}) == "one"
    assert start.group({pod: "p"}) == "p"
    assert start.group({group: "g", pod: "p"}) == "g"
    assert bootstrap.socket_key("/c.sock/", "ns", "g") == "/c.sock/ns/g"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_options_are_json(tmp_path_factory: pytest.TempPathFactory, root: str) -> None:
    directory = str(tmp_path_factory.getbasetemp())
    options = messages.Options(root=root, io_uid=7, systemd_cgroup=True, binary_name="crun")
    bundle.save_options(directory, options, "crun")
    with open(f"{directory}/options.json", encoding="utf-8") as file:
        found = json.load(file)
    wanted = {"root": root, "io_uid": 7, "systemd_cgroup": True, "binary_name": "crun"}
    assert found == {key: value for key, value in wanted.items() if value}
    assert bundle.load_options(directory, messages.Options()) == options


def test_a_bundle_that_says_nothing(tmp_path: Any) -> None:
    assert bundle.load_options(str(tmp_path), messages.Options()) == messages.Options()
    assert bundle.load_exit(str(tmp_path)) is None
    assert bundle.group_annotations(str(tmp_path)) == {}
    (tmp_path / "config.json").write_text('{"x":"io.kubernetes.cri.sandbox-id"')
    assert bundle.group_annotations(str(tmp_path)) == {}
    (tmp_path / "config.json").write_text(
        '{"annotations":{"io.kubernetes.cri.sandbox-id":"p","x":"y"}}'
    )
    assert bundle.group_annotations(str(tmp_path)) == {"io.kubernetes.cri.sandbox-id": "p"}
    (tmp_path / "exit.json").write_text('{"pid":1')
    assert bundle.load_exit(str(tmp_path)) is None
    bundle.save_exit(str(tmp_path / "gone"), 1, 2, 3)
    bundle.save_exit(str(tmp_path), 1, 2, 3)
    assert bundle.load_exit(str(tmp_path)) == (1, 2, 3)


def test_codes_are_those_of_the_one_table() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Error)
    ]
    assert len(kinds) > 15
    for kind in kinds:
        error = kind("what")
        code, text = rpc_status.to_status(error)
        assert server.status(error) == (int(code), text)


def test_an_error_outside_the_tree(capfd: pytest.CaptureFixture[str]) -> None:
    assert server.status(ZeroDivisionError("oops")) == (server.UNKNOWN, "oops")
    full = OSError(28, "No space left on device", "/b/e.process")
    assert server.status(full) == (server.UNKNOWN, "/b/e.process: no space left on device")
    assert "ZeroDivisionError: oops" in capfd.readouterr().err


def test_a_full_queue_keeps_exits() -> None:
    from cradled.linux.coroutines import Loop

    publisher = Publisher(Loop(log.trace), "/nowhere", "ns")
    for number in range(4):
        publisher._queue.append((EXIT if number % 2 else "/tasks/start", b"%d" % number, ""))
    kept = []
    for _ in range(3):
        publisher._drop()
        kept.append([int(request) for _, request, _ in publisher._queue])
    # The first may be on its way and is left alone.
    assert kept == [[0, 1, 3]] * 3


def test_nobody_wants_events() -> None:
    from cradled.linux.coroutines import Loop

    loop = Loop(log.trace)
    Publisher(loop, "", "ns").send("/tasks/oom", messages.TaskOOM())
    assert not loop.ready
