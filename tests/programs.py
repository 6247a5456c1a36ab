"""Programs that the tests run where they are installed, and those that servers run."""

from __future__ import annotations

import shutil
import subprocess

import psutil
import pytest


def tool(name: str) -> str:
    """The path of a program; without it, the test is skipped."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(command: list[str]) -> None:
    """Runs a command, which must succeed."""
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def compilers(process: psutil.Process) -> list[psutil.Process]:
    """The compilers of kernels that run for a process, or for one that it has started."""
    return [each for each in process.children(recursive=True) if _is_compiler(each)]


def _is_compiler(process: psutil.Process) -> bool:
    try:
        return "boxloss_server.engine.compiler" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # Or what is left of it.
        return False
