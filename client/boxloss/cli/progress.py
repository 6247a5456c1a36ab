"""What is being done, on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

import rich.progress

from boxloss.cli.consoles import err

T = TypeVar("T")


class Steps:
    """A bar for each step, while it lasts; nothing where standard error is no terminal.

    Args:
        quiet: show nothing there, either.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._progress = rich.progress.Progress(console=err, transient=True, disable=quiet or not err.is_terminal)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def track(self, work: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Goes over work as it is described."""
        task = self._progress.add_task(description, total=total)
        for each in work:
            yield each
            self._progress.advance(task)
        self._progress.remove_task(task)
