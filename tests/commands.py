"""The command `boxloss`, run in this process."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pytest

from boxloss.cli import main


@dataclass(frozen=True)
class Outcome:
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, str]]:
        """The output, read as CSV."""
        return list(csv.DictReader(io.StringIO(self.out)))


Run: TypeAlias = Callable[..., Outcome]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs the command with arguments."""

    def command(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), out, err)

    return command
