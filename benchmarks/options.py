"""What to measure, and how thoroughly."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Part(StrEnum):
    """A part of the benchmark."""

    MATRIX = "matrix"
    CALLERS = "callers"
    TARGETS = "targets"
    KERNEL = "kernel"
    ROOMS = "rooms"
    PROCESSES = "processes"
    OVERLOAD = "overload"
    MEMORY = "memory"


@dataclass(frozen=True)
class Options:
    """The choices of the command line.

    Attributes:
        contenders: names of what takes part.
        sizes: numbers of pairs in a request.
        concurrency: numbers of requests under way.
        repeats: rounds over the contenders.
        seconds: time of each measurement.
        memory_seconds: time for which memory is watched.
        output: folder for results.
        server_cores: what contenders run on.
        flags: of boxloss-server, on top of the harness's.
    """

    contenders: tuple[str, ...]
    sizes: tuple[int, ...]
    concurrency: tuple[int, ...]
    repeats: int
    seconds: float
    memory_seconds: float
    output: Path
    server_cores: frozenset[int]
    flags: tuple[str, ...] = ()
