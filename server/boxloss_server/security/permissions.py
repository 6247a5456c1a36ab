"""Permissions of the files that say who may call."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def check_permissions(flag: str, path: Path) -> None:
    """Refuses a file that everybody on this computer may write to.

    Raises:
        OSError: it cannot be found.
        ValueError: everybody may write to it; the message names flag and file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise OSError(f"{flag} {path}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        raise ValueError(f"{flag} {path}: every user may write to it; take that away with chmod o-w")


def weaknesses(path: Path, secret: bool) -> list[str]:
    """What else lets other users change a file or, where it is secret, read it.

    Groups, other owners and folders that everybody may write to are usual where containers share volumes.
    """
    try:
        status = path.stat()
        folders = [folder.stat().st_mode for folder in {path.absolute().parent, path.resolve().parent}]
    except OSError:
        return []
    if not stat.S_ISREG(status.st_mode):
        return []
    found = {
        "its group may write to it": status.st_mode & stat.S_IWGRP,
        "it belongs to another user": status.st_uid not in (0, os.geteuid()),
        "every user may read it": secret and status.st_mode & stat.S_IROTH,
        "every user may replace it: its folder is open": any(
            mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in folders
        ),
    }
    return [weakness for weakness, present in found.items() if present]
