"""Modules that nobody should run, under names that Python programs import."""

from __future__ import annotations

from pathlib import Path

_NAMES = "filelock", "pickle", "psutil", "random", "sitecustomize", "structlog", "sympy", "torch", "zipfile"
_CODE = """
import os
with open({marks!r}, "a") as file:
    file.write(f"{{os.getpid()}} {name}\\n")
"""


class Traps:
    """Makes the modules in a folder, where they note who runs them.

    Args:
        folder: an empty one.

    Attributes:
        folder: that has the modules.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._marks = folder / "marks"
        for name in _NAMES:
            (folder / f"{name}.py").write_text(_CODE.format(marks=str(self._marks), name=name))

    def sprung(self) -> set[tuple[int, str]]:
        """The process and the module, for all that were run."""
        if not self._marks.exists():
            return set()
        lines = map(str.split, self._marks.read_text().splitlines())
        return {(int(process), name) for process, name in lines}
