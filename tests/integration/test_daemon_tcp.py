"""gRPC over TCP, with TLS and without, as a gRPC library of others sees it."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import grpc
import pytest
from harness.program import Program, call, places, started
from harness.tls import Authority

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HEALTH = "/grpc.health.v1.Health/Check"
VERSION = "/containerd.services.version.v1.Version/Version"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configure(directory: Path, **keys: str) -> int:
    port = free_port()
    lines = [f'{key} = "{value}"' for key, value in keys.items()]
    (directory / "c.toml").write_text(
        'version = 4\n[plugins."io.containerd.server.v1.grpc-tcp"]\n'
        f'address = "127.0.0.1:{port}"\n' + "\n".join(lines)
    )
    return port


def ask(channel: grpc.Channel, method: str) -> bytes:
    answer: bytes = channel.unary_unary(method)(b"", timeout=10)
    return answer


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    directory = tmp_path / "tls"
    directory.mkdir()
    return Authority(directory)


def test_plain(tmp_path: Path) -> None:
    port = configure(tmp_path)
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert ask(channel, HEALTH) == b"\x08\x01"
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel, VERSION)  # is not for everybody
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert program.stop() == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_tls(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("server")
    port = configure(tmp_path, tls_cert=str(certificate), tls_key=str(key))
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        trust = grpc.ssl_channel_credentials(authority.ca.read_bytes())
        with grpc.secure_channel(f"localhost:{port}", trust) as channel:
            assert ask(channel, HEALTH) == b"\x08\x01"
        context = ssl.create_default_context(cafile=str(authority.ca))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.selected_alpn_protocol() == "h2"
            assert secure.version() in ("TLSv1.2", "TLSv1.3")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel, HEALTH)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert program.stop() == 0


def test_renewed_certificates_are_taken_on_hup(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("server")
    port = configure(tmp_path, tls_cert=str(certificate), tls_key=str(key))
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        first = ssl.get_server_certificate(("127.0.0.1", port), timeout=20)
        authority.issue("server")
        assert ssl.get_server_certificate(("127.0.0.1", port), timeout=20) == first
        hang_up(program)
        second = ssl.get_server_certificate(("127.0.0.1", port), timeout=20)
        assert second != first
        assert second.strip() == certificate.read_text().strip()

        other, _ = authority.issue("other")
        certificate.write_bytes(other.read_bytes())  # without its key
        hang_up(program)
        assert "the certificate stays as it was: " in program.log.read_text()
        assert ssl.get_server_certificate(("127.0.0.1", port), timeout=20) == second
        assert program.stop() == 0


def hang_up(program: Program) -> None:
    program.process.send_signal(signal.SIGHUP)
    assert program.told()[0] == "RELOADING=1"
    assert program.told()[0] == "READY=1"


def test_clients_show_certificates(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("server")
    names = {"tls_ca": str(authority.ca), "tls_common_name": "kubelet"}
    port = configure(tmp_path, tls_cert=str(certificate), tls_key=str(key), **names)
    known, other = authority.issue("kubelet"), authority.issue("somebody")
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        assert health(port, authority, known) == b"\x08\x01"
        for refused in (other, None):
            with pytest.raises(grpc.RpcError) as caught:
                health(port, authority, refused)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert health(port, authority, known) == b"\x08\x01"
        assert program.stop() == 0


def health(port: int, authority: Authority, own: tuple[Path, Path] | None) -> bytes:
    certificate, key = (path.read_bytes() for path in own) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes(), key, certificate)
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        return ask(channel, HEALTH)


def test_policies_know_nobody_behind_tcp(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("server")
    port = configure(tmp_path, tls_cert=str(certificate), tls_key=str(key))
    policy = tmp_path / "policy.toml"
    policy.write_text('default = "deny"\n[[rules]]\nverdict = "allow"\nuids = [0]\n')
    with (tmp_path / "c.toml").open("a") as config:
        config.write(f'\n[plugins."io.cradled.policy.v1.file"]\npath = "{policy}"\n')
    with started(tmp_path, "-c", f"{tmp_path}/c.toml") as program:
        trust = grpc.ssl_channel_credentials(authority.ca.read_bytes())
        with grpc.secure_channel(f"localhost:{port}", trust) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel, HEALTH)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "a peer without credentials may not call" in caught.value.details()
        with grpc.insecure_channel(f"unix:{program.socket}") as channel:
            assert ask(channel, HEALTH) == b"\x08\x01"
        policy.write_text('default = "deny"\n[[rules]]\nverdict = "allow"\n')
        hang_up(program)
        with grpc.secure_channel(f"localhost:{port}", trust) as channel:
            assert ask(channel, HEALTH) == b"\x08\x01"
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"tls_ca": "/x"}, "need tls_cert and tls_key"),
        ({"tls_cert": "/x", "tls_key": "/x"}, "cannot use the TLS files"),
        ({"tls_cert": "/x", "tls_key": "/x", "tls_common_name": "n"}, "needs tls_ca"),
    ],
)
def test_what_cannot_be_used_stops_the_start(
    tmp_path: Path, keys: dict[str, str], text: str
) -> None:
    configure(tmp_path, **keys)
    refused = call(tmp_path, *places(tmp_path), "-c", "c.toml")
    assert refused.returncode == 1
    assert text in refused.stderr


def test_no_listener_where_none_is_asked_for(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        command = ["ss", "-Hltnp"]
        listening = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"pid={program.process.pid}," not in listening
