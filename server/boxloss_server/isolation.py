"""Command lines of Python processes that run the code of this installation and no other.

Python would also import from the current folder, from PYTHONPATH and from the user's own packages: a `random.py` that
lies where a server was started would run in it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = "boxloss_server", "boxloss", "torch"


def isolated(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module's `main` in a Python of its own, isolated as by `python -I`.

    After the packages of its interpreter come the folders that this process has boxloss, its server and torch from:
    they need not be installed there, but shadow nothing that is.
    """
    roots = list(dict.fromkeys(map(_root, _PACKAGES)))
    code = f"import sys; sys.path += {roots}; from {module} import main; main()"
    return [sys.executable, "-I", "-c", code, *arguments]


def _root(package: str) -> str:
    spec = find_spec(package)
    assert spec
    assert spec.origin
    return str(Path(spec.origin).absolute().parents[1])
