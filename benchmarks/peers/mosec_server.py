"""The peer Mosec: python -m benchmarks.peers.mosec_server PORT."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mosec import Server, Worker

from benchmarks.peers import worker


class BoxLoss(Worker):
    """Bytes in, bytes out."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        worker.set_up()

    def deserialize(self, data: bytes) -> bytes:
        return bytes(data)

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Sequence[bytes]) -> list[bytes]:
        return worker.answer(data)


if __name__ == "__main__":
    # Mosec takes its settings from the environment, and its workers import this file anew.
    os.environ |= {
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_PORT": sys.argv[1],
        "MOSEC_TIMEOUT": "300000",
        "MOSEC_LOG_LEVEL": "warning",
        "MOSEC_MAX_REQUEST_SIZE": str(2**26),
    }
    server = Server()
    server.append_worker(BoxLoss, max_batch_size=worker.BATCH_REQUESTS, max_wait_time=worker.WAIT_MS)
    server.run()
