"""Certificates for tests, of authorities made for them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import trustme

HERE = "127.0.0.1"


class Authority:
    """A certificate authority that keeps its files in a folder.

    Args:
        folder: where; it is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._ca = trustme.CA()
        self.certificate = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.certificate)

    def issue(self, name: str, identity: str = HERE, **options: Any) -> Pair:
        """Issues a certificate for an address, as files called by a name."""
        issued = self._ca.issue_cert(identity, **options)
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        pair.key.touch(0o600)
        pair.key.write_bytes(issued.private_key_pem.bytes())
        return pair

    def issue_expired(self, name: str) -> Pair:
        """Issues a certificate that was valid in 2020."""
        first, last = (datetime.datetime(2020, month, 1) for month in (1, 12))
        return self.issue(name, not_before=first, not_after=last)

    def issue_future(self, name: str) -> Pair:
        """Issues a certificate that becomes valid in an hour."""
        now = datetime.datetime.now(datetime.UTC)
        first, last = (now + datetime.timedelta(hours=hours) for hours in (1, 2))
        return self.issue(name, not_before=first, not_after=last)


class Pair:
    """A certificate and its private key.

    Args:
        certificate: its file.
        key: its file.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def flags(self) -> tuple[str, str]:
        """The server's flags for them."""
        return f"--tls-certificate={self.certificate}", f"--tls-key={self.key}"

    def replace(self, other: Pair) -> None:
        """Takes the content of another, each file at once, as tools that renew certificates do."""
        for own, new in ((self.certificate, other.certificate), (self.key, other.key)):
            draft = own.with_suffix(".new")
            draft.touch(0o600)
            draft.write_bytes(new.read_bytes())
            draft.replace(own)
