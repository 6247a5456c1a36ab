"""The peer Ray Serve: python -m benchmarks.peers.ray_server PORT."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
import threading

# Read when ray is imported. The last four are of what Ray calls optimized for throughput; the rest of that listens on
# other addresses, or answers at most 4 MiB.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # On every system, this keeps Ray on 127.0.0.1.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # Or it would write one into the home folder.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers import worker


@serve.deployment(max_ongoing_requests=4 * worker.BATCH_REQUESTS, logging_config={"enable_access_log": False})
class BoxLoss:
    """Bytes in, bytes out."""

    def __init__(self) -> None:
        worker.set_up()

    @serve.batch(max_batch_size=worker.BATCH_REQUESTS, batch_wait_timeout_s=worker.WAIT_MS / 1000)
    async def answer(self, bodies: list[bytes]) -> list[bytes]:
        return worker.answer(bodies)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.answer(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=len(os.sched_getaffinity(0)),
            object_store_memory=2**28,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        asked_to_stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())  # In place of Ray's.
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        serve.run(BoxLoss.bind())
        asked_to_stop.wait()
        serve.shutdown()
        ray.shutdown()
