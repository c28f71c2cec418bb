"""A snapshotter of others that fetches no layers: Debian's ``soci-snapshotter``, on the daemon.

It has an image's layers without anybody fetching them, and says so by answering that a snapshot
exists when one is to be prepared (reference, storage.md section 3). The files are then read from
the registry, through FUSE, as they are needed.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from harness import leaks, newer
from harness.daemon import Daemon, rows, wait_until
from harness.images import LayerTar, busybox_image

DATA = random.Random(1).randbytes(3 << 20)


@contextmanager
def running(command: list[str], log: Path, listening: Path | int) -> Iterator[None]:
    """A program of others, until the end of the block."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        wait_until(lambda: _listens(listening), lambda: f"it listens: {log.read_text()}")
        yield
    finally:
        process.terminate()
        process.wait(20)


def _listens(place: Path | int) -> bool:
    family = socket.AF_INET if isinstance(place, int) else socket.AF_UNIX
    address = ("127.0.0.1", place) if isinstance(place, int) else str(place)
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def host(tmp_path: Path, port: int) -> Iterator[Daemon]:
    """A daemon, the snapshotter and a registry, all in one directory."""
    try:
        program = newer.program("soci-snapshotter-grpc")
    except newer.Unavailable as error:
        pytest.skip(str(error))
    directory = tmp_path / "d"
    directory.mkdir()
    registry = directory / "registry.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {directory}/registry}}}}"
    registry.write_text(f"version: 0.1\n{storage}\nhttp: {{addr: '127.0.0.1:{port}'}}\n")
    name = f"localhost:{port}"
    config = directory / "soci.toml"
    resolver = f'resolver.host."{name}"'
    mirror = f'[[{resolver}.mirrors]]\nhost = "{name}"\ninsecure = true\n'
    config.write_text(f"[blob]\ncheck_always = true\n[{resolver}]\n{mirror}")
    address = directory / "soci.sock"
    words = ["--address", str(address), "--root", f"{directory}/soci", "--config", str(config)]
    serve_layers = [*apart(directory), str(program), *words]
    table = f'[proxy_plugins.soci]\ntype = "snapshot"\naddress = "{address}"\n'
    daemon = Daemon(directory, settings=table)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        stack.callback(daemon.destroy)
        (directory / "soci").mkdir()
        stack.enter_context(shared(directory / "soci"))
        serve = ["docker-registry", "serve", str(registry)]
        stack.enter_context(running(serve, directory / "registry.log", port))
        stack.enter_context(running(serve_layers, directory / "soci.log", address))
        daemon.start()
        yield daemon
        daemon.remove_containers()
        for image in daemon.ctr("images", "ls", "-q").split():
            daemon.ctr("images", "rm", "--sync", image)
        where = f"{directory}/soci/snapshotter"
        wait_until(lambda: not leaks.mounts_below(where), "nothing is mounted any more")
        daemon.stop()


def soci(host: Daemon, *words: str) -> str:
    """Run its client."""
    flags = ["-a", str(host.socket), "-n", host.namespace, *words]
    command = [*apart(host.directory), str(newer.program("soci")), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def apart(directory: Path) -> list[str]:
    """What runs a command with a /var/lib of its own: the program has a fixed place there. What it
    mounts in the directory is seen by all."""
    own = directory / "lib"
    own.mkdir(exist_ok=True)
    script = f'mount --make-private / && mount --bind "{own}" /var/lib && exec "$@"'
    return ["unshare", "-m", "--propagation", "unchanged", "sh", "-c", script, "sh"]


@contextmanager
def shared(directory: Path) -> Iterator[None]:
    """What is mounted below a directory in one mount namespace is mounted in all."""
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "--make-shared", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def _bytes(text: str) -> float:
    """A size as ctr prints it."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", text.replace(" ", "")).groups()  # type: ignore[union-attr]
    return float(number) * {"B": 1, "kB": 1e3, "KiB": 1 << 10, "MB": 1e6, "MiB": 1 << 20}[unit]


def test_layers_that_nobody_fetches(host: Daemon, port: int, tmp_path: Path) -> None:
    name = f"localhost:{port}/big:test"
    image = busybox_image(name)
    top = LayerTar()
    top.directory("data")
    top.add("data/big", data=DATA)
    image.layers.append(top.bytes())
    archive = image.write_oci_layout(tmp_path / "big.tar")
    copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci-archive:{archive}"]
    subprocess.run([*copy, f"docker://{name}"], check=True, timeout=60, capture_output=True)
    host.ctr("images", "import", "--no-unpack", str(archive))
    layer = max(rows(host.ctr("content", "ls")), key=lambda row: _bytes(row[1]))[0]
    soci(host, "create", "--min-layer-size", "0", name)
    soci(host, "push", "--plain-http", name)
    index = rows(soci(host, "index", "list"))[0][0]
    host.ctr("images", "rm", "--sync", name)
    assert host.ctr("content", "ls", "-q") == ""

    pull = ["--plain-http", "--snapshotter", "soci", "--soci-index-digest", index, name]
    soci(host, "image", "rpull", *pull)
    snapshots = rows(host.ctr("snapshots", "--snapshotter", "soci", "ls"))
    assert [row[-1] for row in snapshots] == ["Committed"] * 3
    assert leaks.mounts_below(f"{host.directory}/soci/snapshotter")  # one that FUSE serves
    stored = host.ctr("content", "ls", "-q").split()
    assert stored
    assert layer not in stored
    run = ("run", "--rm", "--snapshotter", "soci", name, "c")
    told = host.ctr(*run, "sha256sum", "/data/big")
    assert told.split()[0] == hashlib.sha256(DATA).hexdigest()
