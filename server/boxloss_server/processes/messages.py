"""What supervisor and processes tell each other: a line of JSON each way, over a pair of sockets.

After that, a process answers every beat of its supervisor with one of its own, so that it is known not to hang.

A process stops in order when its supervisor's side of the pair closes, which it also does when the supervisor is
killed.
"""

from __future__ import annotations

from pydantic import BaseModel

from boxloss_server.settings import Settings

BEAT = b"\n"


class Job(BaseModel):
    """What the supervisor asks of a process.

    Attributes:
        number: which of the processes it is, from 0.
        settings: what to serve; `port` is the shared one, `threads` its own.
    """

    number: int
    settings: Settings


class Report(BaseModel):
    """What a process answers once it serves, or cannot.

    Attributes:
        device: what it computes on.
        metrics_port: where on 127.0.0.1 its metrics are.
        error: why it cannot serve; empty if it does.
    """

    device: str = ""
    metrics_port: int = 0
    error: str = ""
