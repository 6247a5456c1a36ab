"""The command `boxloss`. Its packages come with the extras: pip install 'boxloss[cli]', for audits 'boxloss[audit]'."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_EXTRAS = {
    "pyarrow": "cli",
    "rich": "cli",
    "typer": "cli",
    "PIL": "audit",
    "defusedxml": "audit",
    "jinja2": "audit",
    "msgspec": "audit",
    "scipy": "audit",
    "yaml": "audit",
    "matplotlib": "plots",
}
"""Packages, and the extra that brings each."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0 where all went well, 2 for wrong input or usage, 3 where no server answers in
    time, 4 where an audit found more than it may, 1 for anything else.

    Args:
        arguments: what follows `boxloss` on the command line; by default that of this process.
    """
    try:
        from boxloss.cli.app import run

        run(arguments)
    except ModuleNotFoundError as error:
        if (extra := _EXTRAS.get((error.name or "").partition(".")[0])) is None:
            raise
        sys.exit(f"boxloss: the command needs {error.name}, which is not installed: pip install 'boxloss[{extra}]'")
