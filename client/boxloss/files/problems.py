"""What is wrong with a source, told one by one, so that the rest goes on and nothing vanishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Skipped: TypeAlias = Literal["box", "line", "annotation", "image", "file"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        source: the file or folder.
        place: in it, for example "line 3" or "annotations[7]"; empty for all of it.
        what: is wrong.
        fix: what would be right.
        skipped: what was left out for it; None where nothing was.
    """

    source: Path
    place: str
    what: str
    fix: str
    skipped: Skipped | None = None

    def __str__(self) -> str:
        where = f"{self.source}: {self.place}" if self.place else str(self.source)
        return f"{where}: {self.what}; {self.fix}" + (f" ({self.skipped} skipped)" if self.skipped else "")


Report: TypeAlias = Callable[[Problem], None]
"""Takes each problem as it is met; `append` of a list is one."""
