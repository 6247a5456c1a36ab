"""The peer LitServe: python -m benchmarks.peers.litserve_server PORT."""

import sys
from typing import Annotated

import litserve
from fastapi import Body, Response

from benchmarks.peers import worker


class BoxLoss(litserve.LitAPI):
    """Bytes in, bytes out."""

    def setup(self, device: str) -> None:
        worker.set_up()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return list(inputs)

    def predict(self, bodies: list[bytes]) -> list[bytes]:
        return worker.answer(bodies)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = BoxLoss(max_batch_size=worker.BATCH_REQUESTS, batch_timeout=worker.WAIT_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu", timeout=300, fast_queue=True, disable_openapi_url=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
