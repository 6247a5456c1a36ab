"""The command `boxloss`. Its packages come with the extra: pip install 'boxloss[cli]'."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_PACKAGES = {"pyarrow", "rich", "typer"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0 where all went well, 2 for wrong input or usage, 3 where no server answers in
    time, 1 for anything else.

    Args:
        arguments: what follows `boxloss` on the command line; by default that of this process.
    """
    try:
        from boxloss.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        sys.exit(f"boxloss: the command needs {error.name}, which is not installed: pip install 'boxloss[cli]'")
    run(arguments)
