"""What keeps a TLS connection from coming about."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from boxloss.connection.channel import Address, hosts_and_ports

if TYPE_CHECKING:
    from boxloss.connection.credentials import Tls

_CAUSES = {
    "certificate has expired": "the server's TLS certificate has expired; have it renewed",
    "certificate is not yet valid": "the server's TLS certificate is not valid yet; check its dates, and the clocks",
    "Hostname Verification Check failed": "the server's TLS certificate is for another name; correct the address",
    "is not in peer certificate": "the server's TLS certificate is for another name; correct the address",
    "certificate is not valid for": "the server's TLS certificate is for another name; correct the address",
    "CERTIFICATE_VERIFY_FAILED": "the server's TLS certificate is of an authority that the client does not trust; "
    "give that authority's file as Tls(ca=...)",
    "WRONG_VERSION_NUMBER": "the server speaks no TLS; leave tls= out, or give the server --tls-certificate and "
    "--tls-key",
    "_ALERT_": "the server refuses the client's TLS certificate, or the lack of one",
    "CERTIFICATE_REQUIRED": "the server asks for a TLS certificate of the client; give Tls(certificate=..., key=...)",
    "handshake failed": "the TLS handshake fails",
}
"""By what gRPC says, or OpenSSL; the first that fits counts."""

_UNREACHED = "all addresses", "all backends", "empty address list"
"""What gRPC says where no connection came about. It tells the error of the last address only."""

_TIMEOUT = 2.0
"""Seconds for a try."""
_LASTS = 2.0
"""Seconds for which the outcome of a try is believed."""


class Handshake:
    """Tells why no connection comes about, where TLS is the cause.

    Args:
        address: of the servers.
        tls: of the client, if any.
    """

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self._servers = hosts_and_ports(address)
        self._tls = tls
        self._tried = -_LASTS
        self._found: str | None = None

    def cause(self, details: str) -> str | None:
        """Why TLS is what keeps a server out of reach; None where something else does, or it is not yet known.

        Where gRPC does not say why, a thread tries the handshake once more. It has found out by the next retry.

        Args:
            details: of gRPC's error UNAVAILABLE.
        """
        if cause := _cause(details):
            return cause
        if not any(sign in details for sign in _UNREACHED):
            return None
        if time.monotonic() - self._tried >= _LASTS:
            self._tried = time.monotonic()
            threading.Thread(target=self._try, name="boxloss-handshake", daemon=True).start()
        return self._found

    def _try(self) -> None:
        causes = (refusal(host, port, self._tls) for host, port in self._servers)
        self._found = next(filter(None, causes), None)


def refusal(host: str, port: int, tls: Tls | None) -> str | None:
    """Why a server and a client come to no connection, as far as TLS is the cause. Sends nothing but a handshake.

    Args:
        host: of the server.
        port: of the server.
        tls: of the client, if any.
    """
    answer = b""
    try:
        context = _context(tls)
    except (OSError, ValueError):  # The files have changed, and are broken.
        return None
    try:
        with (
            socket.create_connection((host, port), _TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            if not tls:
                return "the server asks for TLS; give the client tls=boxloss.Tls(...)"
            with suppress(ConnectionError, ssl.SSLError):
                answer = connection.recv(1)  # By TLS 1.3, the server looks at the client's certificate only now.
    except ssl.SSLError as error:
        return (_cause(str(error)) or "the TLS handshake fails") if tls else None
    except (OSError, ValueError):
        return None
    if answer or not tls:
        return None
    if tls.certificate:
        return (
            f"the server refuses the client's TLS certificate {tls.certificate}: it may have expired, or be of an "
            "authority that the server does not know"
        )
    return _CAUSES["CERTIFICATE_REQUIRED"]


def _context(tls: Tls | None) -> ssl.SSLContext:
    """What the client would say in a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if tls and tls.ca:
        context.load_verify_locations(tls.ca)
    else:
        context.load_default_certs()
        if not tls or not context.cert_store_stats()["x509_ca"]:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    if tls and tls.certificate:
        with suppress(OSError, ValueError):  # The files may have changed since, and be broken.
            context.load_cert_chain(tls.certificate, tls.key)
    return context


def _cause(message: str) -> str | None:
    return next((cause for sign, cause in _CAUSES.items() if sign in message), None)
