"""One of several server processes, started by a supervisor.

Its standard input is a socket to the supervisor, whose job it does until the other side closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

import structlog
import torch
import uvloop

from boxloss_server.logs import configure_logs, take_standard_error
from boxloss_server.processes.endpoint import listen
from boxloss_server.processes.messages import BEAT, Job, Report
from boxloss_server.service import Server
from boxloss_server.settings import Settings
from boxloss_server.signals import on_stop

_log = structlog.get_logger()


def main() -> None:
    """Serves until asked to stop; exits 0 then, 1 where it cannot serve or its device failed, and 70 if it hangs."""
    take_standard_error()
    sys.exit(uvloop.run(_run()))


async def _run() -> int:
    """Does the supervisor's job; returns the exit status."""
    asked_to_stop = asyncio.Event()
    on_stop(asked_to_stop.set)
    link = socket.fromfd(sys.stdin.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
    reader, writer = await asyncio.open_unix_connection(sock=link)
    line = await reader.readline()
    if not line:  # The supervisor was killed at once.
        return 0
    answering = asyncio.create_task(_answer(reader, writer))
    answering.add_done_callback(lambda _: asked_to_stop.set())

    job = Job.model_validate_json(line)
    configure_logs(job.settings.log_level, job.settings.log_format, process=job.number)
    server = Server(own_settings(job), shares_port=True)
    try:
        metrics_port = listen(server.registry, "127.0.0.1", 0)
        if not await server.start(asked_to_stop):
            return 0
        server.settle()
    except (OSError, ValueError) as error:
        report = Report(error=str(error))
    else:
        report = Report(device=server.device, metrics_port=metrics_port)
        _log.info("ready", pid=os.getpid(), device=report.device, metrics_port=report.metrics_port)
    with contextlib.suppress(ConnectionError):  # It may just have closed.
        writer.write(report.model_dump_json().encode() + b"\n")
        await writer.drain()
    if report.error:
        return 1
    return await server.run(asked_to_stop)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the supervisor's beats until its side closes."""
    with contextlib.suppress(ConnectionError):
        while await reader.readline():
            writer.write(BEAT)


def own_settings(job: Job) -> Settings:
    """The settings of a job, with the device made out: where there are GPUs, "auto" gives each process the next."""
    settings = job.settings
    gpus = torch.cuda.device_count()
    if settings.device == "auto" and gpus:
        settings = settings.model_copy(update={"device": f"cuda:{job.number % gpus}"})
    return settings
