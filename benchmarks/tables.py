"""Results as tables, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.contenders import Echo
from benchmarks.in_process import Kernel
from benchmarks.measure import Cell
from benchmarks.memory import Memory
from benchmarks.rooms import Room
from benchmarks.spread import Spread
from benchmarks.targets import Target


@dataclass(frozen=True)
class Table:
    """Text in rows.

    Attributes:
        title: above it.
        columns: their names; all but those of `words` are numbers.
        rows: of text; an empty row separates.
        words: names of the columns that hold words.
        note: below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: tuple[str, ...]
    note: str = ""

    def show(self, console: Console) -> None:
        """Prints it."""
        table = RichTable()
        for column in self.columns:
            table.add_column(column, justify="left" if column in self.words else "right")
        for row in self.rows:
            if row:
                table.add_row(*row)
            else:
                table.add_section()
        console.print(f"\n[bold]{self.title}[/bold]")
        console.print(table)
        if self.note:
            console.print(self.note)

    def markdown(self) -> str:
        """The same in Markdown."""
        rule = [":--" if column in self.words else "--:" for column in self.columns]
        rows = [self.columns, tuple(rule), *(row for row in self.rows if row)]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([f"## {self.title}", "", *lines, *(["", self.note] if self.note else []), ""])


def cell_table(title: str, cells: Sequence[Cell]) -> Table:
    """Calls per second, side by side."""
    rows: list[tuple[str, ...]] = []
    for cell in cells:
        rows.append(())
        for name in cell.samples:
            rate, batch = cell.rate(name), cell.batch(name)
            limited = Echo.name in cell.samples and name != Echo.name
            rows.append(
                (
                    f"{cell.pairs:,}",
                    str(cell.in_flight),
                    name,
                    number(rate.median),
                    between(rate),
                    f"{cell.rate_ratio(name, Echo.name).median:.3f}" if limited else "",
                    number(cell.median(name, "p50") * 1e3),
                    number(cell.median(name, "p99") * 1e3),
                    f"{batch:.1f}" if batch else "",
                    str(len(cell.samples[name])),
                )
            )
        for name, reason in cell.failures.items():
            rows.append((f"{cell.pairs:,}", str(cell.in_flight), f"{name}: {reason}", *[""] * 7))
    columns = (
        *("pairs", "in flight", "contender", "calls/s", "least to most", "of echo"),
        *("p50 ms", "p99 ms", "batch", "rounds"),
    )
    return Table(title, columns, rows[1:], ("contender",))


def kernel_table(kernels: Sequence[Kernel]) -> Table:
    """Milliseconds in-process."""
    rows = [
        (
            f"{each.pairs:,}",
            str(each.cores),
            *(number(each.spread(way).median * 1e3) for way in ("eager", "kernel", "engine")),
            f"{each.speedup('kernel').median:.3g}",
            f"{each.speedup('engine').median:.3g}",
            number(each.pairs / each.spread("kernel").median / 1e6),
            number(each.pairs / each.spread("engine").median / 1e6),
        )
        for each in kernels
    ]
    columns = (
        *("pairs", "cores", "eager ms", "kernel ms", "engine ms", "eager / kernel", "eager / engine"),
        *("kernel million pairs/s", "engine million pairs/s"),
    )
    return Table("In-process: CIoU with gradients, float32", columns, rows, ())


def room_table(rooms: Sequence[Room]) -> Table:
    """Microseconds of a request, by room."""
    kinds = list(dict.fromkeys((room.pairs, room.requests) for room in rooms))
    seconds = {(room.name, (room.pairs, room.requests)): room.seconds for room in rooms}
    names = list(dict.fromkeys(room.name for room in rooms))
    rows = [(name, *(number(seconds[name, kind] * 1e6) for kind in kinds)) for name in names]
    columns = ("room", *(f"{pairs:,} pairs, batch of {requests}: us" for pairs, requests in kinds))
    return Table("The rooms of the server: one request", columns, rows, ("room",))


def target_table(targets: Sequence[Target]) -> Table:
    """The ratios."""
    rows = [
        (
            str(each.number),
            each.what,
            f"{each.ratio.median:.3g}" if each.ratio else "",
            between(each.ratio) if each.ratio else "",
            each.details,
        )
        for each in sorted(targets, key=lambda each: each.number)
    ]
    return Table("Targets", ("", "what", "ratio", "least to most", "details"), rows, ("what", "details"))


def memory_table(seen: Memory) -> Table:
    """Memory over time."""
    rows = [("start", number(seen.start))]
    rows += [(f"tenth {tenth}", number(size)) for tenth, size in enumerate(seen.tenths, start=1)]
    rows.append(("peak", number(seen.peak)))
    return Table(
        f"Memory of the server: {seen.clients} clients, {seen.pairs:,} pairs each, {seen.samples[-1][0]:.0f} s",
        ("", "MiB"),
        rows,
        ("",),
        f"{number(seen.rate)} calls/s. {flatness(seen)}.",
    )


def skipped_table(skipped: Mapping[str, str]) -> Table:
    """Who did not take part."""
    return Table("Skipped", ("contender", "reason"), list(skipped.items()), ("contender", "reason"))


def flatness(seen: Memory) -> str:
    """Whether memory grows, in words."""
    word = "Flat" if seen.flat else "Not flat"
    return f"{word}: the last tenth is {seen.growth:.3f} times the second"


def between(values: Spread) -> str:
    """The ends of a spread."""
    return f"{number(values.low)} to {number(values.high)}"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
