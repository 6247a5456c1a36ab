"""What a server shows beyond this computer without protection."""

from __future__ import annotations

import ipaddress

import structlog

from boxloss_server.settings import Settings

_log = structlog.get_logger()


def warn_of_exposure(settings: Settings) -> None:
    """Logs what others in the network could read or reach."""
    if not settings.tls_certificate:
        if not _is_loopback(settings.host):
            _log.warning(
                "others in the network can read and change what is sent: there is no TLS; set --tls-certificate",
                host=settings.host,
            )
        if settings.tokens_file:
            _log.warning("tokens are sent without TLS; set --tls-certificate, or keep them on this computer")
    if not _is_loopback(settings.metrics_host):
        _log.warning(
            "anybody in the network can read the metrics, which have neither TLS nor a login",
            metrics_host=settings.metrics_host,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
