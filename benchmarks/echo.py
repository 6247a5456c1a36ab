"""The limit of any service in grpc.aio: bytes in, prepared bytes out.

Usage: python -m benchmarks.echo PORT FOLDER. A file of the folder is the answer to messages of so many bytes as its
name says.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

UNARY = "/boxloss.v1.LossService/Evaluate"
STREAM = "/boxloss.v1.LossService/EvaluateStream"


class Echo(grpc.GenericRpcHandler):
    """Answers both methods without reading or writing messages.

    Args:
        answers: by the size of what they answer.
    """

    def __init__(self, answers: dict[int, bytes]) -> None:
        async def unary(request: bytes, context: Any) -> bytes:
            return answers[len(request)]

        async def stream(requests: Any, context: Any) -> None:
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(answers[len(request)])

        self._handlers: dict[str, Any] = {
            UNARY: grpc.unary_unary_rpc_method_handler(unary),
            STREAM: grpc.stream_stream_rpc_method_handler(stream),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


async def _serve(port: int, answers: dict[int, bytes]) -> None:
    asked_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_stop.set)
    server = grpc.aio.server(
        handlers=[Echo(answers)],
        options=[  # The service's.
            ("grpc.max_receive_message_length", 64 * 2**20),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asked_to_stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    prepared = {int(path.name): path.read_bytes() for path in Path(sys.argv[2]).iterdir()}
    uvloop.run(_serve(int(sys.argv[1]), prepared))
