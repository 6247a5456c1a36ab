"""The command: python -m benchmarks."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import h2load
from benchmarks.arena import field
from benchmarks.contenders import NAMES, PEERS
from benchmarks.errors import BenchmarkError
from benchmarks.in_process import kernels
from benchmarks.measure import Cell, compare, with_callers, with_h2load
from benchmarks.memory import memory
from benchmarks.options import Options, Part
from benchmarks.overload import overload
from benchmarks.processes import processes
from benchmarks.report import Report
from benchmarks.rooms import rooms
from benchmarks.spread import Spread
from benchmarks.tables import flatness, number
from benchmarks.targets import KERNEL_PAIRS, SIZES, Target, targets

_SERVER_PARTS = {Part.MATRIX, Part.CALLERS, Part.TARGETS}

_ROOMS = (64, 1), (64, 24), (16_384, 1), (262_144, 1)
"""Pairs of a request, and requests that share a batch."""

_progress = Console(stderr=True, highlight=False)


def main(
    parts: Annotated[list[Part] | None, typer.Argument(help="What to run; everything unless given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short run without peers.")] = False,
    contenders: Annotated[str, typer.Option(help=f"Of {','.join(NAMES)}; all unless given.")] = "",
    sizes: Annotated[str, typer.Option(help="Pairs in a call; 16,64,1024,16384,262144 unless given.")] = "",
    concurrency: Annotated[str, typer.Option(help="Calls in flight; 1,8,64 unless given.")] = "",
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds; 3 unless given. Targets take 2 n - 1.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Time of a measurement; 1 unless given.")] = None,
    memory_seconds: Annotated[float | None, typer.Option(min=1, help="Time to watch memory; 60 unless given.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for results.")] = Path("build/bench"),
    server_cores: Annotated[str, typer.Option(help="Cores of the contenders, as 0,1; all unless given.")] = "",
    load_cores: Annotated[str, typer.Option(help="Cores of the load, as 0,1; all unless given.")] = "",
    flags: Annotated[str, typer.Option(help="More flags of boxloss-server, as --flags='--threads=1'.")] = "",
) -> None:
    """Measures boxloss beside its limits and its peers, under the same load on the same cores."""
    cores = frozenset(os.sched_getaffinity(0))
    options = Options(
        contenders=_words(contenders) or (tuple(name for name in NAMES if name not in PEERS) if quick else NAMES),
        sizes=_numbers(sizes) or ((64, 16_384) if quick else (16, 64, 1024, 16_384, 262_144)),
        concurrency=_numbers(concurrency) or ((64,) if quick else (1, 8, 64)),
        repeats=repeats or (2 if quick else 3),
        seconds=seconds or (0.4 if quick else 1.0),
        memory_seconds=memory_seconds or (5 if quick else 60),
        output=output,
        server_cores=frozenset(_numbers(server_cores)) or cores,
        flags=tuple(shlex.split(flags)),
    )
    # Every process that is started by now ends in order, whoever ends this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks: ended by SIGTERM"))
    report = Report()
    problem = None
    try:
        if load_cores:
            os.sched_setaffinity(0, _numbers(load_cores))
        h2load.check_installed()
        run(set(parts or Part), options, report)
    except BenchmarkError as error:
        problem = f"benchmarks: {error}"
    except KeyboardInterrupt:
        problem = "benchmarks: interrupted"
    if report.tables():  # Half an hour is not lost to its last minute.
        report.publish(options, Console(width=None if sys.stdout.isatty() else 150))
    sys.exit(problem)


def run(parts: set[Part], options: Options, report: Report) -> None:
    """Runs the parts and notes what they find."""
    options.output.mkdir(parents=True, exist_ok=True)
    if parts & _SERVER_PARTS:
        _run_servers(parts, options, report)
    if Part.KERNEL in parts:
        _run_kernel(thorough(options), report)
    if Part.ROOMS in parts:
        for pairs, requests in _ROOMS:
            _tell(f"rooms, {pairs:,} pairs, batch of {requests}")
            report.rooms.extend(rooms(pairs, requests))
    if Part.PROCESSES in parts:
        _tell("one and two processes")
        report.targets.append(processes(thorough(options)))
    if Part.OVERLOAD in parts:
        report.targets.extend(overload(thorough(options), _tell))
    if Part.MEMORY in parts:
        _tell(f"memory, {options.memory_seconds:.0f} s")
        seen = report.memory = memory(options)
        details = f"MiB: {number(seen.start)} at the start, {number(seen.peak)} at most. {flatness(seen)}"
        what = f"memory, last tenth over second: {seen.clients} clients, {seen.pairs:,} pairs each"
        report.targets.append(Target(8, what, Spread(seen.growth, seen.growth, seen.growth), details))


def thorough(options: Options) -> Options:
    """With more rounds: few numbers, which much is read into."""
    return replace(options, repeats=2 * options.repeats - 1)


def _run_servers(parts: set[Part], options: Options, report: Report) -> None:
    sizes = {*options.sizes, *(SIZES if Part.TARGETS in parts else ())}
    with field(options, sizes) as arena:
        for name, reason in arena.skipped.items():
            _tell(f"{name} is skipped: {reason}")
        report.skipped = arena.skipped
        names = [name for name in options.contenders if name in arena.contenders]

        def fill(cell: Cell, prepare: Any) -> Cell:
            compare(arena, names, cell, prepare, options.repeats)
            rates = ", ".join(f"{name} {number(cell.rate(name).median)}" for name in cell.samples)
            _tell(f"{cell.generator}, {cell.pairs:,} pairs, {cell.in_flight} in flight, calls/s: {rates}")
            for name, reason in cell.failures.items():
                _tell(f"  {name} failed: {reason}")
            return cell

        for pairs in options.sizes if Part.MATRIX in parts else ():
            for in_flight in options.concurrency:
                report.matrix.append(
                    fill(
                        Cell("h2load", pairs, in_flight),
                        lambda contender, pairs=pairs, in_flight=in_flight: with_h2load(
                            arena, contender, pairs, options.seconds, streams=in_flight
                        ),
                    )
                )
        for pairs in options.sizes if Part.CALLERS in parts else ():
            for in_flight in options.concurrency:
                report.callers.append(
                    fill(
                        Cell("callers", pairs, in_flight),
                        lambda contender, pairs=pairs, in_flight=in_flight: with_callers(
                            contender, pairs, options.seconds, in_flight
                        ),
                    )
                )
        if Part.TARGETS in parts:
            report.targets.extend(targets(arena, thorough(options), _tell))


def _run_kernel(options: Options, report: Report) -> None:
    sizes = sorted({*options.sizes, KERNEL_PAIRS})
    cores = sorted(options.server_cores)
    for count in sorted({1, len(cores)}):
        _tell(f"in-process, cores: {count}")
        report.kernels.extend(kernels(sizes, cores[:count], options.repeats, options.seconds / 4))
    one = next(each for each in report.kernels if each.cores == 1 and each.pairs == KERNEL_PAIRS)
    eager, kernel, engine = (number(one.spread(way).median * 1e3) for way in ("eager", "kernel", "engine"))
    report.targets.append(
        Target(
            6,
            f"kernel's speed over eager autograd's: {KERNEL_PAIRS:,} pairs, one core",
            one.speedup("kernel"),
            f"{eager} and {kernel} ms; with rows in and out {engine} ms",
        )
    )


def _tell(text: str) -> None:
    _progress.print(text)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(text.split(",")) if text else ()
    if unknown := set(words) - set(NAMES):
        raise typer.BadParameter(f"{', '.join(unknown)}: not known; choose of {', '.join(NAMES)}")
    return words


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise typer.BadParameter(f"{text}: give numbers separated by commas") from None


if __name__ == "__main__":
    typer.run(main)
