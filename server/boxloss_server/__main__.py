"""The command `boxloss-server`."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys

import structlog
import uvloop
from pydantic import ValidationError
from pydantic_settings import CliApp

from boxloss_server.exposure import warn_of_exposure
from boxloss_server.logs import configure_logs, take_standard_error
from boxloss_server.processes import Supervisor, serve_metrics
from boxloss_server.settings import Settings, explain
from boxloss_server.signals import LAST_STEPS, on_stop

_log = structlog.get_logger()


def main() -> None:
    """Serves until SIGTERM or SIGINT; a second one ends it at once.

    Exits 0 then, 2 for wrong settings, 1 where it cannot serve or its device failed, and 70 if it hangs.
    """
    take_standard_error()
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        print(f"boxloss-server: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    _allow_descriptors()
    try:
        if settings.processes > 1:
            sys.exit(asyncio.run(Supervisor(settings).run()))
        sys.exit(uvloop.run(_serve(settings)))
    except (OSError, ValueError) as error:
        sys.exit(f"boxloss-server: {error}")


def _allow_descriptors() -> None:
    """Takes as many as the system lets this process have: each connection needs one, and by default 1024 are usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):  # Where "most" is no number, as on macOS.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(settings: Settings) -> int:
    """Returns the exit status."""
    asked_to_stop = asyncio.Event()
    on_stop(asked_to_stop.set, within=settings.shutdown_grace_s + LAST_STEPS)

    # torch takes seconds to import: --help and wrong settings need not wait for it, and no signal is lost meanwhile.
    from boxloss_server.service import Server

    configure_logs(settings.log_level, settings.log_format)
    warn_of_exposure(settings)
    server = Server(settings)
    serve_metrics(server.registry, settings.metrics_host, settings.metrics_port)
    if not await server.start(asked_to_stop):
        _log.info("stopped")
        return 0
    server.settle()
    _log.info("serving", host=settings.host, port=server.port, device=server.device)
    return await server.run(asked_to_stop)


if __name__ == "__main__":
    main()
