from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled.daemon.listeners import (
    Sockets,
    StartError,
    activated,
    hold,
    listen,
    listen_tcp,
    make_directory,
    remove,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def test_socket_has_its_mode_and_listens(path: str) -> None:
    sock = listen(path, uid=os.geteuid(), gid=os.getegid())
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    remove(sock, path)
    remove(sock, path)
    assert not os.path.exists(path)


def test_stale_socket_is_replaced(path: str) -> None:
    listen(path, uid=os.geteuid(), gid=os.getegid()).close()
    assert os.path.exists(path)
    with listen(path, uid=os.geteuid(), gid=os.getegid()), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_living_socket_is_left_alone_and_its_owner_named(path: str) -> None:
    ours = os.geteuid(), os.getegid()
    with listen(path, uid=ours[0], gid=ours[1]):
        with pytest.raises(StartError, match=f"in use by process {os.getpid()}"):
            listen(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_full_queue_is_a_living_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(path)
        full.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        try:
            for client in clients:
                client.setblocking(False)
                client.connect_ex(path)
            with pytest.raises(StartError, match="is in use"):
                listen(path)
        finally:
            for client in clients:
                client.close()


def test_other_files_are_not_removed(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(StartError, match="no socket"):
        listen(path)
    assert Path(path).read_text() == "precious"


def test_long_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="longer than 107"):
        listen(str(tmp_path / ("x" * 120)))


def test_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot listen at .*No such file"):
        listen(str(tmp_path / "absent" / "s"))


def test_lock_names_its_holder(tmp_path: Path) -> None:
    fd = hold(str(tmp_path), "root")
    with pytest.raises(StartError, match=rf"root {tmp_path} is in use .*\(pid {os.getpid()}\)"):
        hold(str(tmp_path), "root")
    os.close(fd)
    os.close(hold(str(tmp_path), "root"))


def test_lock_is_not_inherited(tmp_path: Path) -> None:
    fd = hold(str(tmp_path), "root")
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "print('up', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        os.close(fd)
        os.close(hold(str(tmp_path), "root"))
    finally:
        child.communicate(b"\n")


def test_directories_are_made_with_their_mode(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    make_directory(str(path), 0o711, "state")
    assert stat.S_IMODE(path.stat().st_mode) == 0o711
    make_directory(str(path), 0o700, "state")
    assert stat.S_IMODE(path.stat().st_mode) == 0o711


def test_directory_in_a_files_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(StartError, match=f"root {tmp_path}/f"):
        make_directory(str(tmp_path / "f"), 0o700, "root")
    with pytest.raises(StartError, match=f"root {tmp_path}/f/x"):
        make_directory(str(tmp_path / "f" / "x"), 0o700, "root")


@pytest.mark.parametrize(
    ("address", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("localhost:0", "")]
)
def test_tcp_addresses(address: str, host: str) -> None:
    with listen_tcp(address) as sock:
        assert sock.getsockname()[0] == host or not host
        assert not sock.getblocking()
        with socket.create_connection(sock.getsockname()[:2], 10):
            pass
        taken = f"{sock.getsockname()[0]}:{sock.getsockname()[1]}"
        with pytest.raises(StartError, match=r"cannot listen at .*in use"):
            listen_tcp(taken)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:x", "127.0.0.1:99999", "no host:1"])
def test_what_is_no_tcp_address(address: str) -> None:
    with pytest.raises(StartError, match=r"is not host:port|cannot listen at"):
        listen_tcp(address)


# Sockets that outlive their servers


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    sockets = Sockets()
    yield sockets
    sockets.close()


def test_who_connects_between_two_servers_waits(sockets: Sockets, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    sockets.open(path, uid=os.geteuid(), gid=os.getegid())
    sockets.duplicate(path).close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.send(b"hello")
        with sockets.duplicate(path) as server:
            connection = server.accept()[0]
            with connection:
                assert connection.recv(10) == b"hello"


def test_sockets_are_opened_once(sockets: Sockets, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    for _ in range(2):
        sockets.open(path, uid=os.geteuid(), gid=os.getegid())
        sockets.open_tcp("127.0.0.1:0")
    assert list(sockets.all()) == [path, "127.0.0.1:0"]


def test_sockets_are_inherited(tmp_path: Path) -> None:
    path, other = str(tmp_path / "s"), str(tmp_path / "other")
    before = Sockets()
    for one in (path, other):
        before.open(one, uid=os.geteuid(), gid=os.getegid())
    before.open_tcp("127.0.0.1:0")
    inode = os.stat(path).st_ino
    after = Sockets({address: sock.dup() for address, sock in before.all().items()})
    after.open(path, mode=0o600, uid=os.geteuid(), gid=os.getegid())
    after.open_tcp("127.0.0.1:0")
    assert (os.stat(path).st_ino, stat.S_IMODE(os.stat(path).st_mode)) == (inode, 0o600)
    names = [sockets.all()["127.0.0.1:0"].getsockname() for sockets in (before, after)]
    assert names[0] == names[1]
    after.close_unclaimed()
    assert not os.path.exists(other)
    assert before.all()
    before.forget()
    assert os.path.exists(path)
    assert not before.all()
    after.close()
    assert not os.path.exists(path)
    before.close()


def test_who_listens_is_told(sockets: Sockets, tmp_path: Path) -> None:
    """Whoever inherits a socket and serves on it is the one that clients see."""
    path = str(tmp_path / "s")
    sockets.open(path, uid=os.geteuid(), gid=os.getegid())
    heir = subprocess.Popen(
        [sys.executable, "-c", INHERIT, path, str(sockets.all()[path].fileno())],
        pass_fds=[sockets.all()[path].fileno()],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    with heir:
        assert heir.stdout is not None
        heir.stdout.readline()
        with pytest.raises(StartError, match=rf"in use by process {heir.pid}$"):
            listen(path)
        heir.communicate()


INHERIT = """
import os, socket, sys
from cradled.daemon.listeners import Sockets
sockets = Sockets({sys.argv[1]: socket.socket(fileno=int(sys.argv[2]))})
sockets.open(sys.argv[1], uid=os.geteuid(), gid=os.getegid())
sockets.duplicate(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""


# Activation

LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@pytest.mark.parametrize(
    "values", [("", "", ""), ("1", "1", "x"), ("{pid}", "", ""), ("{pid}", "many", "")]
)
def test_nobody_has_activated_us(values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(LISTEN, values, strict=True):
        monkeypatch.setenv(name, value.format(pid=os.getpid()))
    assert activated() == {}
    assert not set(LISTEN) & set(os.environ)


def test_lent_sockets(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ACTIVATED, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "s").exists()


ACTIVATED = """
import os, socket, sys
path = sys.argv[1]
made = [socket.socket(socket.AF_UNIX), socket.socket()]
made[0].bind(path)
made[1].bind(("127.0.0.1", 0))
for number, sock in enumerate(made, 3):
    sock.listen()
    os.dup2(sock.fileno(), number + 10)
tcp = "127.0.0.1:%d" % made[1].getsockname()[1]
for sock in made:
    sock.close()
for number in (3, 4):
    os.dup2(number + 10, number)
    os.close(number + 10)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
from cradled.daemon.listeners import Sockets, activated
found = activated()
assert list(found) == [path, tcp], found
assert not any(os.get_inheritable(number) for number in (3, 4))
sockets = Sockets(found, lent=found)
mode = os.stat(path).st_mode
sockets.open(path, mode=0o600)
sockets.open_tcp(tcp)
assert os.stat(path).st_mode == mode
sockets.close()
assert [sock.fileno() for sock in found.values()] == [-1, -1]
"""
