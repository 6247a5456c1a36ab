"""What the server grants its connections, as gRPC's channel arguments."""

from __future__ import annotations

from boxloss_server.settings import Settings

_CALLS = 1024
"""Calls under way on one connection; a client keeps more to itself. Who sends many and reads no answer is bounded."""
_IDENTITY_AND_GZIP = 0b101
"""Deflate, the bit between them, does not begin as no message can: see compression.py."""
_LEAST_PING_INTERVAL = 1.0
"""Seconds. Clients may ask so often whether the server is still there."""


def channel_arguments(settings: Settings, shares_port: bool) -> list[tuple[str, int]]:
    """The arguments of a server.

    Args:
        settings: what to serve.
        shares_port: whether other servers that also share may listen on the same port.
    """
    arguments = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.per_message_decompression", 0),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_AND_GZIP),
        ("grpc.max_concurrent_streams", _CALLS),
        ("grpc.so_reuseport", int(shares_port)),  # Two servers must not share a port unnoticed.
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(_LEAST_PING_INTERVAL)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if settings.keepalive_s:
        silence = _milliseconds(settings.keepalive_s)
        arguments += [
            ("grpc.keepalive_time_ms", silence),
            ("grpc.keepalive_timeout_ms", silence),  # For the kernel: what it has sent must be received by then.
            ("grpc.http2.ping_timeout_ms", silence),  # For gRPC, which else waits for a minute.
            ("grpc.server_handshake_timeout_ms", silence),
        ]
    if settings.max_connection_age_s:
        arguments += [
            ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(settings.shutdown_grace_s)),
        ]
    return arguments


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 1)
