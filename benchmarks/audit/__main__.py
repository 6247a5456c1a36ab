"""The command: python -m benchmarks.audit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console
from tests.injector import INJECTED

from benchmarks.audit.objectlab import ObjectLab
from benchmarks.audit.precision import Find, mean_precision, suspicions
from benchmarks.audit.scale import Engine, scale
from benchmarks.audit.sets import SETS, images_of
from benchmarks.errors import BenchmarkError, UnavailableError
from benchmarks.spread import ratio, spread
from benchmarks.tables import Table, between, number
from boxloss.audit.dataset import audit
from boxloss.audit.rules import Rules

_console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
_progress = Console(stderr=True, highlight=False)

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Measures the label audit beside cleanlab's ObjectLab: quality and speed, unless one command is given."""
    if context.invoked_subcommand is None:
        measure_quality()
        measure_speed()


@app.command("quality")
def measure_quality(seeds: Annotated[int, typer.Option(min=1, help="How often errors are injected.")] = 6) -> None:
    """Has tools find errors that were injected into real labels: average precision of their ranking, by kind."""
    rows: list[tuple[str, ...]] = []
    tools: dict[str, Find] = {
        "boxloss": partial(suspicions, rules=Rules()),
        "boxloss, --min-score 0.05": partial(suspicions, rules=Rules(min_score=0.05)),
    }
    with _peer() as peer:
        if peer:
            tools["cleanlab"] = peer.suspicions
        for name in SETS:
            rows.append(())
            for tool, find in tools.items():
                _progress.print(f"{name}: {tool}")
                precision = mean_precision(images_of(name), range(seeds), find)
                cells = (f"{precision[kind]:.3f}" if kind in precision else "" for kind in INJECTED)
                rows.append((name, tool, *cells))
    columns = ("set", "tool", *INJECTED)
    Table("Average precision", columns, rows[1:], columns[:2], f"Mean over {seeds} seeds.").show(_console)


@app.command("speed")
def measure_speed(
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured, in turns.")] = 5,
) -> None:
    """Compares the time of an audit with that of cleanlab's find_label_issues on the same 100 images of COCO."""
    images = images_of("coco")
    ours: list[float] = []
    theirs: list[float] = []
    with _peer() as peer:
        for _ in range(rounds):
            started = perf_counter()
            audit(images).summary()
            ours.append(perf_counter() - started)
            if peer:
                theirs.append(peer.seconds(images))
            _progress.print(f"round: {', '.join(f'{seconds[-1]:.3g} s' for seconds in (ours, theirs) if seconds)}")
    rows = [
        (name, number(spread(seconds).median * 1e3), between(spread([each * 1e3 for each in seconds])))
        for name, seconds in (("boxloss", ours), ("cleanlab", theirs))
        if seconds
    ]
    note = ""
    if theirs:
        times = ratio(theirs, ours)
        note = f"cleanlab takes {number(times.median)} times as long ({between(times)}), the median of {rounds} rounds."
    Table("An audit of 100 images", ("tool", "ms", "least to most"), rows, ("tool",), note).show(_console)


@app.command("scale")
def measure_scale(
    images: Annotated[int, typer.Option(min=10, help="How many, in a stream that repeats the real ones.")] = 1_000_000,
    engine: Annotated[Engine, typer.Option(help="What audits them.")] = Engine.EMBEDDED,
) -> None:
    """Audits many images, and shows speed and memory after each tenth."""
    columns: tuple[str, ...] = ("images", "images/s", "MiB")
    if engine is Engine.RAY:
        columns = (*columns, "MiB of the cluster")
    rows = []
    for tenth in scale(images, engine):
        cells = f"{tenth.images:,}", number(tenth.rate), number(tenth.memory), number(tenth.workers)
        rows.append(cells[: len(columns)])
        _progress.print(", ".join(rows[-1]))
    Table(f"{images:,} images, {engine}", columns, rows, ()).show(_console)


@contextmanager
def _peer() -> Iterator[ObjectLab | None]:
    try:
        peer = ObjectLab()
    except UnavailableError as error:
        _progress.print(f"cleanlab is skipped: {error}")
        yield None
        return
    with peer:
        yield peer


if __name__ == "__main__":
    try:
        app()
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
