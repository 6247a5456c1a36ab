"""Files that a command is asked to write."""

from __future__ import annotations

from pathlib import Path

from boxloss.errors import fault


def check_output(option: str, path: Path, endings: tuple[str, ...]) -> None:
    """Refuses a file that could not be written when all is done.

    Raises:
        InvalidInputError: its name has none of the endings, or there is no such folder.
    """
    if path.suffix.lower() not in endings:
        raise fault(f"{option} {path}", f"ends in {path.suffix!r}; give a {' or '.join(endings)} file")
    if not path.parent.is_dir():
        raise fault(f"{option} {path}", f"there is no folder {path.parent}")
