"""TLS: the server's certificate, and the authorities of its callers'."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NoReturn

import grpc

from boxloss_server.security.files import Files, contents


class Certificates:
    """Certificates from files. New connections get the new ones soon after the files change; old connections go on.

    Args:
        certificate: PEM file of the server's certificate, followed by those between it and its authority.
        key: PEM file of its private key.
        client_ca: PEM file of the authorities of callers; with it, every caller must show a certificate.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self.files = Files((certificate, key, *([client_ca] if client_ca else [])), self._read)
        self._used = self.files.value

    @property
    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC takes; it asks for a change at every new connection, in a thread of its own."""
        changed: Any = self._changed  # May answer None, of which the published types do not know.
        return grpc.dynamic_ssl_server_credentials(self._used, changed, self._client_ca is not None)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The files' value where it is new; gRPC prepares it anew whenever it gets one."""
        if self.files.value is self._used:
            return None
        self._used = self.files.value
        return self._used

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Reads and checks the files: gRPC itself would tell only its own log what is wrong."""
        chain = contents("--tls-certificate", self._certificate)
        key = contents("--tls-key", self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, self._refuse_encrypted)
        except ssl.SSLError as error:
            raise ValueError(
                f"--tls-certificate {self._certificate}, --tls-key {self._key}: not a certificate and its private key "
                f"in PEM form ({error})"
            ) from None
        authorities = None
        if self._client_ca:
            authorities = contents("--tls-client-ca", self._client_ca)
            try:
                context.load_verify_locations(cadata=authorities.decode())
            except (ssl.SSLError, ValueError) as error:
                raise ValueError(f"--tls-client-ca {self._client_ca}: no certificates in PEM form ({error})") from None
        return grpc.ssl_server_certificate_configuration([(key, chain)], authorities)

    def _refuse_encrypted(self) -> NoReturn:
        raise ValueError(f"--tls-key {self._key}: is encrypted; give one without a password that only the server reads")
