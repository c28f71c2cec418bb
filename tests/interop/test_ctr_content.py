"""Debian's unmodified ``ctr`` on content, in a daemon where nothing else makes garbage."""

from __future__ import annotations

import hashlib
import subprocess

from harness.daemon import Daemon, wait_until

ROOT = "containerd.io/gc.root=test"


def ingested(daemon: Daemon, digest: str, data: bytes) -> bool:
    """Ingest, and label as a root; False when the collector was faster than the label."""
    size = str(len(data))
    expected = ("--expected-digest", digest, "--expected-size", size)
    daemon.ctr("content", "ingest", *expected, "some-ref", input=data)
    return daemon.try_ctr("content", "label", digest, ROOT).returncode == 0


def test_content(empty_daemon: Daemon) -> None:
    data = b"some content" * 100_000
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    wait_until(lambda: ingested(empty_daemon, digest, data), "content kept by its root label")
    assert digest in empty_daemon.ctr("content", "ls", "-q").split()
    done = subprocess.run(empty_daemon.ctr_command("content", "get", digest), capture_output=True,
                          env=empty_daemon.env, check=True)  # fmt: skip
    assert done.stdout == data
    empty_daemon.ctr("content", "label", digest, "a=b")
    assert "a=b" in empty_daemon.ctr("content", "ls", "labels.a==b")
    empty_daemon.ctr("content", "rm", digest)
    missing = empty_daemon.try_ctr("content", "get", digest)
    assert f"content digest {digest}: not found" in missing.stderr


def test_content_of_the_wrong_digest_is_refused(empty_daemon: Daemon) -> None:
    wrong = "sha256:" + "0" * 64
    done = empty_daemon.try_ctr(
        "content", "ingest", "--expected-digest", wrong, "bad-ref", input=b"data"
    )
    assert "unexpected commit digest" in done.stderr
    assert wrong not in empty_daemon.ctr("content", "ls", "-q").split()
