"""What a channel is opened with: whom it talks to, how calls are shared out, and how a server is found again."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from boxloss.errors import InvalidInputError, ServerUnavailableError, Violation
from boxloss.v1 import loss_service_pb2

Address: TypeAlias = str | Sequence[str]
"""Of one server: "host:port" or "unix:/path/of/socket". Of several: ["host:port", "host:port"], or "dns:///name:port"
for all that a name stands for.
"""

_SERVICE = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"].full_name

_SCHEMES = "dns:", "unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:", "google-c2p:"
"""What addresses start with that gRPC knows and that are no "host:port"."""

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC waits up to two minutes before it connects again; a restarted server should be found in a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # While a call waits, a server that has vanished is missed after 15 seconds, however long the call may take.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # As often as it takes; the server allows it.
    # The retries of the SDK know the deadline and the server's own wish.
    ("grpc.enable_retries", 0),
]

_SHARED_OUT = [
    (
        "grpc.service_config",
        json.dumps(
            {
                "loadBalancingConfig": [{"round_robin": {}}],
                # Has every server tell when it stops to serve: none is asked that drains.
                "healthCheckConfig": {"serviceName": _SERVICE},
            }
        ),
    ),
    # A name is looked up again when a connection ends, but at most every half a minute unless told otherwise.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


def is_several(address: Address) -> bool:
    """Whether an address may stand for more than one server."""
    if isinstance(address, str):
        return address.startswith("dns:")
    return len(address) > 1 or any(map(is_several, address))


def channel_options(address: Address) -> list[tuple[str, Any]]:
    """Options of a channel to an address: calls to several servers go to each in turn, while it serves."""
    return [*_OPTIONS, *(_SHARED_OUT if is_several(address) else [])]


def target_of(address: Address) -> str:
    """An address as gRPC writes it. Names in a list are looked up here and now, and not again.

    Raises:
        InvalidInputError: the address is none.
        ServerUnavailableError: a name in a list is not known.
    """
    if isinstance(address, str):
        if "," in address and not address.startswith(("ipv4:", "ipv6:", "unix:")):
            raise InvalidInputError([Violation("address", f"{address!r} has a comma; give several as a list")])
        if not address.startswith(_SCHEMES) and not _host_and_port(address):
            raise InvalidInputError(
                [Violation("address", f"{address!r} is no host:port, like localhost:50051 or [::1]:50051")]
            )
        return address
    if not address:
        raise InvalidInputError([Violation("address", "is empty; give one or more")])
    if len(address) == 1:
        return target_of(address[0])
    found = [each for index, one in enumerate(address) for each in _look_up(one, f"address[{index}]")]
    if all(host.version == 4 for host, _ in found):
        return "ipv4:" + ",".join(f"{host}:{port}" for host, port in found)
    # gRPC takes addresses of one kind only; IPv6 has a form for those of IPv4.
    return "ipv6:" + ",".join(f"[{'::ffff:' if host.version == 4 else ''}{host}]:{port}" for host, port in found)


def hosts_and_ports(address: Address) -> list[tuple[str, int]]:
    """The hosts, as names or IP addresses, and ports that an address names; none of sockets in a file system."""
    if not isinstance(address, str):
        return [each for one in address for each in hosts_and_ports(one)]
    found = _host_and_port(re.sub(r"^dns:(//[^/]*/)?", "", address))
    return [found] if found else []


def name_of(address: Address) -> str:
    """An address as errors write it: all of a list."""
    return address if isinstance(address, str) else ", ".join(address)


def _look_up(address: str, field: str) -> list[tuple[IPv4Address | IPv6Address, int]]:
    """All IP addresses of a "host:port", with the port."""
    written = _host_and_port(address)
    if not written:
        raise InvalidInputError([Violation(field, f"{address!r} is no host:port; in a list, give these only")])
    host, port = written
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServerUnavailableError(f"{host} is not known ({error.strerror}); correct {field}, {address!r}") from None
    return [(ip_address(sockaddr[0]), port) for *_, sockaddr in found]


def _host_and_port(address: str) -> tuple[str, int] | None:
    """The parts of a "host:port", whose IPv6 addresses are in brackets; None where it is none."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (host, port) if host and port is not None and parts.netloc == address else None
