"""Real boxes that tests may use where they lie beside the project; they are not part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "shared" / "data"


def folder(name: str) -> Path:
    """A set of real boxes; the test is skipped where it is missing."""
    if not (found := FOLDER / name).is_dir():
        pytest.skip(f"the real boxes are not there: {found}")
    return found
