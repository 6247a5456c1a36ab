"""Everything that one run found out, on the terminal and in files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from rich.console import Console

from benchmarks import plots, tables
from benchmarks.in_process import Kernel
from benchmarks.measure import Cell
from benchmarks.memory import Memory
from benchmarks.options import Options
from benchmarks.rooms import Room
from benchmarks.targets import Target


@dataclass
class Report:
    """What the parts that ran have found."""

    matrix: list[Cell] = field(default_factory=list)
    callers: list[Cell] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    memory: Memory | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def tables(self) -> list[tables.Table]:
        """What there is to show, the summary last: it stays in view."""
        shown = []
        if self.matrix:
            shown.append(tables.cell_table("The server alone: h2load", self.matrix))
        if self.callers:
            shown.append(tables.cell_table("The whole way: Python callers", self.callers))
        if self.kernels:
            shown.append(tables.kernel_table(self.kernels))
        if self.rooms:
            shown.append(tables.room_table(self.rooms))
        if self.memory:
            shown.append(tables.memory_table(self.memory))
        if self.targets:
            shown.append(tables.target_table(self.targets))
        if self.skipped:
            shown.append(tables.skipped_table(self.skipped))
        return shown

    def publish(self, options: Options, console: Console) -> None:
        """Prints the tables; writes them, the raw numbers and the pictures."""
        folder = options.output
        setting = _setting(options)
        shown = self.tables()
        for table in shown:
            table.show(console)
        words = "\n".join(f"- {name}: {value}" for name, value in setting.items())
        markdown = "\n".join(["# Benchmark", "", words, "", *(table.markdown() for table in shown)])
        (folder / "results.md").write_text(markdown)
        (folder / "results.json").write_text(json.dumps({"setting": setting, **asdict(self)}, indent=1))
        self._draw(options)
        console.print(f"results.json, results.md and pictures are in {folder}")

    def _draw(self, options: Options) -> None:
        plots.set_up()
        for title, cells, name in (
            ("The server alone: CIoU with gradients, float32, h2load", self.matrix, "server.png"),
            ("The whole way: CIoU with gradients, float32, Python callers", self.callers, "callers.png"),
        ):
            if any(cell.samples for cell in cells):
                plots.draw_cells(title, cells, self.kernels, options.output / name)
        if self.memory:
            plots.draw_memory(self.memory, options.output / "memory.png")


def _setting(options: Options) -> dict[str, str]:
    """What a number depends on."""
    h2load = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cores of servers": str(len(options.server_cores)),
        "cores of load": str(len(os.sched_getaffinity(0))),
        "flags of boxloss-server": " ".join(options.flags) or "defaults",
        "rounds": str(options.repeats),
        "seconds of a measurement": f"{options.seconds:g}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("boxloss-server", "torch", "grpcio", "aiohttp")},
        "load generator": h2load,
    }
