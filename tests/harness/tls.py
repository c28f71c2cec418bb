"""Keys and certificates for a test, made by the program ``openssl``."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority of a directory's own: ``ca.pem``, and ``<name>.pem`` with
    ``<name>.key`` for each name that is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.pem"
        self._run(
            "req", "-x509", *self._new("ca"), "-out", str(self.ca), "-subj", "/CN=test authority",
            "-days", "2", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of somebody with a common name, good for 127.0.0.1 too."""
        request, certificate = self.directory / f"{name}.csr", self.directory / f"{name}.pem"
        extensions = self.directory / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self._run("req", *self._new(name), "-out", str(request), "-subj", f"/CN={name}")
        self._run(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAcreateserial",
            "-CAkey", str(self.directory / "ca.key"), "-out", str(certificate), "-days", "2",
            "-extfile", str(extensions),
        )  # fmt: skip
        return certificate, self.directory / f"{name}.key"

    def _new(self, name: str) -> list[str]:
        key = str(self.directory / f"{name}.key")
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-keyout", key]  # fmt: skip

    @staticmethod
    def _run(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)
