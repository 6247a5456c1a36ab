"""What a client shows and trusts: TLS and its token."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import grpc

from boxloss.channel import Address, channel_options, name_of, target_of

Metadata: TypeAlias = tuple[tuple[str, str], ...]
File: TypeAlias = str | os.PathLike[str]

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750's."""


@dataclass(frozen=True)
class Tls:
    """TLS to a server. The files are read when a client is made.

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


def open_channel(stack: Any, address: Address, tls: Tls | None, token: str | None) -> Any:
    """A channel to a server, or to several.

    Args:
        stack: the module `grpc` or `grpc.aio`.
        address: of the server, or of several.
        tls: None for none.
        token: what the calls will send.

    Raises:
        OSError: a file of `tls` cannot be read.
        ValueError: one is wrong, or others in the network could read the token, or TLS is to be used with a list.
    """
    if tls:
        if not isinstance(address, str) and len(address) > 1:
            raise ValueError(
                "a list of addresses is looked up, and certificates name hosts; with TLS, give dns:///name:port"
            )
        return stack.secure_channel(target_of(address), tls.credentials(), channel_options(address))
    if token is None:
        return stack.insecure_channel(target_of(address), channel_options(address))
    if not all(map(_stays_here, [address] if isinstance(address, str) else address)):
        raise ValueError(
            f"without TLS, others in the network could read the token sent to {name_of(address)}; turn TLS on"
        )
    return stack.insecure_channel(target_of(address), [*channel_options(address), ("grpc.enable_http_proxy", 0)])


def metadata(token: str | None) -> Metadata | None:
    """What to send with every call.

    Raises:
        ValueError: the token has characters that none has; the message does not show it.
    """
    if token is None:
        return None
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
