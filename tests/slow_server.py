"""A boxloss-server that computes `PAIRS_PER_SECOND`, however fast the machine: python -m tests.slow_server FLAGS.

At its end it logs how many calls of Evaluate it has read, and how many it has computed.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from typing import Any

import structlog
import uvloop
from pydantic_settings import CliApp

from boxloss_server.engine import Engine
from boxloss_server.logs import configure_logs
from boxloss_server.processes import serve_metrics
from boxloss_server.service import Server
from boxloss_server.settings import Settings

PAIRS_PER_SECOND = 500_000


class SlowEngine(Engine):
    """Takes the same time for each pair."""

    computed = 0

    def run(self, work: Any, requests: Sequence[Any]) -> Sequence[Any]:
        ends = time.monotonic() + sum(len(request.predictions) for request in requests) / PAIRS_PER_SECOND
        answers = super().run(work, requests)
        time.sleep(max(ends - time.monotonic(), 0))
        SlowEngine.computed += len(requests)
        return answers


async def _serve(settings: Settings) -> None:
    asked_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_stop.set)
    configure_logs(settings.log_level, settings.log_format)
    server = Server(settings, engine=SlowEngine)
    serve_metrics(server.registry, settings.metrics_host, settings.metrics_port)
    await server.start()
    structlog.get_logger().info("serving", host=settings.host, port=server.port, device=server.device)
    await asked_to_stop.wait()
    await server.stop()
    evaluate = {"grpc_type": "unary", "grpc_service": "boxloss.v1.LossService", "grpc_method": "Evaluate"}
    read = server.registry.get_sample_value("grpc_server_started_total", evaluate)
    structlog.get_logger().info("counted", read=read, computed=SlowEngine.computed)


if __name__ == "__main__":
    uvloop.run(_serve(CliApp.run(Settings)))
