"""Structured logs on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure_logs(level: str, form: str, **marks: Any) -> None:
    """Has structlog write lines of at least `level` ("info") as `form`: "console", "json", or "auto" for the first on
    a terminal and the second elsewhere. All lines have the marks; each is written in one piece, so that those of
    several processes do not mix.
    """

    def mark(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, **marks}

    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            mark,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if console else [structlog.processors.format_exc_info]),
            # Not the default formatter of exceptions, which prints variables: they hold the callers' data.
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if console
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
