"""TLS: the server's certificate, and the authorities of its callers'."""

from __future__ import annotations

import datetime
import math
import ssl
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import grpc
import structlog
from cryptography import x509

from boxloss_server.security.files import Files, contents

_log = structlog.get_logger()

_CERTIFICATE, _KEY, _CLIENT_CA = "--tls-certificate", "--tls-key", "--tls-client-ca"


class _Content(NamedTuple):
    """What the files say."""

    configuration: grpc.ServerCertificateConfiguration
    expires: float


class Certificates:
    """Certificates from files. New connections get the new ones soon after the files change; old connections go on.

    Args:
        certificate: PEM file of the server's certificate, followed by those between it and its authority.
        key: PEM file of its private key.
        client_ca: PEM file of the authorities of callers; with it, every caller must show a certificate.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be, or every user may write to it.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        paths = {_CERTIFICATE: certificate, _KEY: key, **({_CLIENT_CA: client_ca} if client_ca else {})}
        self.files = Files(paths, self._read, secret=(_KEY,))
        self._used = self.files.value.configuration

    @property
    def expires(self) -> float:
        """When the first certificate of the server's chain expires, in seconds of Unix time."""
        return self.files.value.expires

    @property
    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC takes; it asks for a change at every new connection, in a thread of its own."""
        changed: Any = self._changed  # May answer None, of which the published types do not know.
        return grpc.dynamic_ssl_server_credentials(self._used, changed, self._client_ca is not None)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The files' value where it is new; gRPC prepares it anew whenever it gets one."""
        configuration = self.files.value.configuration
        if configuration is self._used:
            return None
        self._used = configuration
        return configuration

    def _read(self) -> _Content:
        """Reads and checks the files: gRPC itself would tell only its own log what is wrong."""
        chain = contents(_CERTIFICATE, self._certificate)
        key = contents(_KEY, self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, self._refuse_encrypted)
        except ssl.SSLError as error:
            raise ValueError(
                f"{_CERTIFICATE} {self._certificate}, {_KEY} {self._key}: not a certificate and its private key in PEM "
                f"form ({error})"
            ) from None
        authorities = None
        if self._client_ca:
            authorities = contents(_CLIENT_CA, self._client_ca)
            try:
                context.load_verify_locations(cadata=authorities.decode())
            except (ssl.SSLError, ValueError) as error:
                raise ValueError(f"{_CLIENT_CA} {self._client_ca}: no certificates in PEM form ({error})") from None
            _check_dates(_CLIENT_CA, self._client_ca, authorities)
        expires = _check_dates(_CERTIFICATE, self._certificate, chain)
        return _Content(grpc.ssl_server_certificate_configuration([(key, chain)], authorities), expires)

    def _refuse_encrypted(self) -> NoReturn:
        raise ValueError(f"{_KEY} {self._key}: is encrypted; give one without a password that only the server reads")


def _check_dates(flag: str, path: Path, pem: bytes) -> float:
    """Warns of certificates that no peer accepts today; they are used all the same, since the clock may be wrong.

    Returns:
        When the first of them expires, in seconds of Unix time.
    """
    now = datetime.datetime.now(datetime.UTC)
    expires = math.inf
    for certificate in x509.load_pem_x509_certificates(pem):
        subject = certificate.subject.rfc4514_string()
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        expires = min(expires, last.timestamp())
        if now > last:
            _log.warning(
                "a certificate has expired: connections that need it fail; renew it",
                flag=flag,
                file=str(path),
                subject=subject,
                expired=last.isoformat(),
            )
        elif now < first:
            _log.warning(
                "a certificate is not valid yet: connections that need it fail; check its dates, and the clock",
                flag=flag,
                file=str(path),
                subject=subject,
                valid_from=first.isoformat(),
            )
    return expires
