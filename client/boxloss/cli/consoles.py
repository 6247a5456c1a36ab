"""Where the commands print: standard output and standard error, as they are."""

from __future__ import annotations

from rich.console import Console

out = Console(markup=False, highlight=False, soft_wrap=True)
err = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)
