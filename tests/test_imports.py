"""Where imports may go: pyproject.toml draws the layers of the SDK and the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import boxloss

ROOT = Path(__file__).parent.parent
PUBLIC = ["audit", "compare", "errors", "files", "losses", "metrics", "torch", "v1"]


def test_imports_go_downwards_and_in_no_circle() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_dozen_names_are_at_the_top_of_the_sdk() -> None:
    names = {path.stem for path in (ROOT / "client/boxloss").iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert len(names) <= 12


def test_public_modules_come_with_the_package() -> None:
    """In a process of its own: elsewhere another test may have imported them."""
    code = f"import boxloss; print(all(getattr(boxloss, name).__name__ == 'boxloss.' + name for name in {PUBLIC}))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "True\n"
    assert {name for name in dir(boxloss) if name.islower() and not name.startswith("_")} == {*PUBLIC, "embedded"}


@pytest.mark.parametrize("module", [boxloss, boxloss.compare], ids=["boxloss", "boxloss.compare"])
def test_names_that_are_not_there_are_refused(module: ModuleType) -> None:
    with pytest.raises(AttributeError, match=rf"module '{module.__name__}' has no attribute 'wire'"):
        _ = module.wire
