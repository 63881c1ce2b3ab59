"""Certificates for tests, made by the command `openssl`: good ones, and one folder for each way to be bad."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
HERE = "DNS:localhost,IP:127.0.0.1"
CONFIG = """
[ca]
default_ca = tests
[tests]
database = index
unique_subject = no
serial = serial
new_certs_dir = .
default_md = sha256
default_crl_days = 30
crlnumber = number
crl_extensions = list
policy = any
[any]
organizationName = optional
commonName = supplied
[list]
authorityKeyIdentifier = keyid
"""


class Authority:
    """One that signs certificates, in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self._folder = folder
        (folder / "index").touch()
        (folder / "number").write_text("01\n")
        (folder / "config").write_text(CONFIG)
        self._openssl("req", "-x509", *CURVE, "-keyout", "key", "-out", "cert", "-days", "30", "-subj", f"/CN={name}")

    def folder(self, path: Path) -> Path:
        """A folder that trusts this authority, and has nothing else yet."""
        path.mkdir()
        shutil.copy(self._folder / "cert", path / "ca-cert.pem")
        return path

    def issue(self, path: Path, role: str, *, name: str = "here", hosts: str = HERE, expired: bool = False) -> None:
        """`server-cert.pem` and `server-key.pem` (or `client-`) in `path`, for O=qmig,CN=`name`."""
        self._openssl(
            "req", *CURVE, "-keyout", str(path / f"{role}-key.pem"), "-out", "request", "-subj", f"/O=qmig/CN={name}"
        )
        (self._folder / "extensions").write_text(f"subjectAltName={hosts}\nextendedKeyUsage={role}Auth\n")
        dates = ("20200101000000Z", "20200102000000Z") if expired else ("20200101000000Z", "20491231000000Z")
        options = ("-batch", "-notext", "-preserveDN", "-rand_serial", "-extfile", "extensions", "-in", "request")
        signer = ("-config", "config", "-cert", "cert", "-keyfile", "key")
        to = ("-out", str(path / f"{role}-cert.pem"), "-startdate", dates[0], "-enddate", dates[1])
        self._openssl("ca", *signer, *options, *to)

    def revoke(self, certificate: Path, path: Path) -> None:
        """Put a list into the folder `path` by which `certificate` is not trusted any more."""
        signer = ("-config", "config", "-cert", "cert", "-keyfile", "key")
        self._openssl("ca", *signer, "-revoke", str(certificate))
        self.list(path)

    def list(self, path: Path, *, stale: bool = False) -> None:
        """Put the present list of revoked certificates into `path`; a `stale` one should have been renewed long ago."""
        signer = ("-config", "config", "-cert", "cert", "-keyfile", "key")
        dates = ("-crl_lastupdate", "20200101000000Z", "-crl_nextupdate", "20200102000000Z") if stale else ()
        self._openssl("ca", *signer, "-gencrl", *dates, "-out", str(path / "ca-crl.pem"))

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments], cwd=self._folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


def make(base: Path) -> Path:
    """The folders of all tests, below `base`.

    `good`, and `second` of another name; `bare` has no certificate of its own; `expired`, `elsewhere` (for another
    host), `stranger` (of another authority) and `revoking` (which trusts the one in `second` no more) are bad;
    `stale` has the list of `revoking`, past its date.
    """
    authority = Authority(base / "authority", "the authority")
    for name in ("good", "second", "bare", "expired", "elsewhere", "revoking", "stale"):
        folder = authority.folder(base / name)
        if name == "bare":
            continue
        for role in ("server", "client"):
            hosts = "DNS:elsewhere.example" if name == "elsewhere" else HERE
            authority.issue(folder, role, name=name, hosts=hosts, expired=name == "expired")
    authority.revoke(base / "second/client-cert.pem", base / "revoking")
    authority.list(base / "stale", stale=True)
    other = Authority(base / "other", "the other authority")
    stranger = other.folder(base / "stranger")
    for role in ("server", "client"):
        other.issue(stranger, role)
    return base
