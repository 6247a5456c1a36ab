"""The command `boxloss-server`."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog
import uvloop
from pydantic import ValidationError
from pydantic_settings import CliApp

from boxloss_server.exposure import warn_of_exposure
from boxloss_server.logs import configure_logs
from boxloss_server.processes import Supervisor, serve_metrics
from boxloss_server.settings import Settings, explain

_log = structlog.get_logger()


def main() -> None:
    """Serves until SIGTERM or SIGINT; exits 0 then, 2 for wrong settings and 1 where it cannot serve."""
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        print(f"boxloss-server: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    try:
        if settings.processes > 1:
            sys.exit(asyncio.run(Supervisor(settings).run()))
        uvloop.run(_serve(settings))
    except (OSError, ValueError) as error:
        sys.exit(f"boxloss-server: {error}")


async def _serve(settings: Settings) -> None:
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)

    # torch takes seconds to import: --help and wrong settings need not wait for it, and no signal is lost meanwhile.
    from boxloss_server.service import Server

    configure_logs(settings.log_level, settings.log_format)
    warn_of_exposure(settings)
    server = Server(settings)
    serve_metrics(server.registry, settings.metrics_host, settings.metrics_port)
    await server.start()
    server.settle()
    _log.info("serving", host=settings.host, port=server.port, device=server.device)
    await asked_to_stop.wait()
    await server.stop()


if __name__ == "__main__":
    main()
