"""What a client shows and trusts: TLS and its token."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import grpc

from boxloss.connection.channel import Address, channel_options, name_of, target_of

Metadata: TypeAlias = tuple[tuple[str, str], ...]
File: TypeAlias = str | os.PathLike[str]

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750's."""

_INTERVAL = 1.0
"""Seconds between two looks at a client's files."""


@dataclass(frozen=True)
class Tls:
    """TLS to a server. A client reads the files when it is made, and again when they have changed: what is asked from
    then on goes over a new connection, with the new certificates. Changed files that are broken are not used.

    Attributes:
        ca: PEM file of the authorities to trust; unless given, the public ones that gRPC comes with.
        certificate: PEM file with the client's own certificate and those above it, for a server that asks for one.
        key: PEM file of its private key.

    Raises:
        ValueError: there is a certificate without a key, or the other way round.
    """

    ca: File | None = None
    certificate: File | None = None
    key: File | None = None

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            if not isinstance(file := getattr(self, name), str | os.PathLike | None):
                raise ValueError(f"{name} of Tls is {file!r}; give the path of a PEM file")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key of Tls belong together; give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC takes.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is not what it should be; gRPC would only say that nobody answers.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca, certificate, key = (each and Path(each).read_bytes() for each in (self.ca, self.certificate, self.key))
        if self.ca:
            try:
                context.load_verify_locations(self.ca)
            except ssl.SSLError as error:
                raise ValueError(f"{self.ca}: no certificates in PEM form ({error})") from None
        if self.certificate and self.key:
            try:
                context.load_cert_chain(self.certificate, self.key, self._refuse_encrypted)
            except ssl.SSLError as error:
                raise ValueError(
                    f"{self.certificate}, {self.key}: not a certificate and its private key in PEM form ({error})"
                ) from None
        return grpc.ssl_channel_credentials(ca or None, key or None, certificate or None)

    def _refuse_encrypted(self) -> NoReturn:
        raise ValueError(f"{self.key}: is encrypted; give one without a password that only you can read")


class Certificates:
    """The certificates of a client, which change when their files do.

    Args:
        tls: names the files.

    Attributes:
        credentials: what gRPC takes, as the files said when they were last in order.
        fault: why changed files are not used; empty unless they are broken.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._paths = [Path(file) for file in (tls.ca, tls.certificate, tls.key) if file]
        self._looking = threading.Lock()
        self._looked = time.monotonic()
        self._known = self._stamps()
        self.credentials = tls.credentials()
        self.fault = ""

    def renewed(self) -> bool:
        """Whether the files have changed, and `credentials` with them. Looks at them once a second at most."""
        if time.monotonic() - self._looked < _INTERVAL or not self._looking.acquire(blocking=False):
            return False
        try:
            self._looked = time.monotonic()
            stamps = self._stamps()
            if stamps == self._known:
                return False
            try:
                self.credentials = self._tls.credentials()
            except (OSError, ValueError) as error:  # Half of them may be new; the next look tells more.
                self.fault = str(error)
                return False
            self._known, self.fault = stamps, ""
            return True
        finally:
            self._looking.release()

    def _stamps(self) -> list[tuple[int, ...] | None]:
        return list(map(_stamp, self._paths))


def target_and_options(address: Address, encrypted: bool, token: str | None) -> tuple[str, list[tuple[str, Any]]]:
    """What channels to a server, or to several, are opened with.

    Args:
        address: of the server, or of several.
        encrypted: whether the connection uses TLS.
        token: what the calls will send.

    Raises:
        ValueError: others in the network could read the token, or TLS is to be used with a list.
    """
    if encrypted and not isinstance(address, str) and len(address) > 1:
        raise ValueError(
            "a list of addresses is looked up, and certificates name hosts; with TLS, give dns:///name:port"
        )
    if encrypted or token is None:
        return target_of(address), channel_options(address)
    if not all(map(_stays_here, [address] if isinstance(address, str) else address)):
        raise ValueError(
            f"without TLS, others in the network could read the token sent to {name_of(address)}; turn TLS on"
        )
    return target_of(address), [*channel_options(address), ("grpc.enable_http_proxy", 0)]


def metadata(token: str | None) -> Metadata | None:
    """What to send with every call.

    Raises:
        ValueError: the token has characters that none has; the message does not show it.
    """
    if token is None:
        return None
    if not isinstance(token, str):
        raise ValueError("token is no text; give the token as a str")
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            "token is empty or has other characters than A-Z a-z 0-9 . _ ~ + / - =; it may end in a newline"
        )
    return (("authorization", f"Bearer {token}"),)


def _stays_here(address: str) -> bool:
    """Whether what is sent to an address stays on this computer."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0]
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
