"""Compressed messages.

gRPC would decompress each as soon as it is there, for all calls at once, in a thousand times the memory. Its channel
arguments leave that to the server (`connections.py`).
"""

from __future__ import annotations

import asyncio
import zlib

from boxloss.errors import InvalidInputError, RequestTooLargeError, Violation

MAX_RATIO = 64
"""How many times larger a message may become. Arrays of boxes become two to ten times as large."""
_ALWAYS = 2**20
"""Bytes that a message may become, whatever its ratio."""
_QUICK = 2**14
"""Bytes from which on decompressing takes longer than handing it to a thread."""
_THREADS = 2
"""Messages that are decompressed at the same time."""
_GZIP = b"\x1f\x8b"
"""How gzip begins, and no message: its first field would be of a kind that protobuf does not have."""
_FORMAT = 31  # Of zlib: gzip with any window.


class Decompression:
    """Decompresses the messages of a server.

    Args:
        message_bytes: most bytes of a message.
    """

    def __init__(self, message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._turns = asyncio.Semaphore(_THREADS)

    async def message(self, data: bytes) -> bytes:
        """The message as it was before gzip, if that was used.

        Raises:
            RequestTooLargeError: it would become too large.
            InvalidInputError: it cannot be decompressed.
        """
        if data[:2] != _GZIP:
            return data
        if len(data) < _QUICK:
            return self._decompress(data)
        async with self._turns:
            return await asyncio.to_thread(self._decompress, data)

    def _decompress(self, data: bytes) -> bytes:
        limit = min(self._message_bytes, max(MAX_RATIO * len(data), _ALWAYS))
        decompressor = zlib.decompressobj(_FORMAT)
        try:
            message = decompressor.decompress(data, limit + 1)
        except zlib.error:
            raise _unreadable() from None
        if len(message) > limit:
            fault = (
                f"is over {limit} bytes once decompressed, from {len(data)}; send it without compression, or send less"
            )
            raise RequestTooLargeError([Violation("request", fault)])
        if not decompressor.eof or decompressor.unused_data:
            raise _unreadable()
        return message


def _unreadable() -> InvalidInputError:
    return InvalidInputError([Violation("request", "is no whole gzip; send it again, or without compression")])
