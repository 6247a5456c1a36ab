"""The folder that keeps kernels. Its files are code that is run, so nobody else may be able to change them."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


class Cache:
    """Kernels by name, each a folder, that servers of this user share.

    Args:
        folder: made when the first kernel is kept, for this user alone.

    Raises:
        ValueError: others may write there, or put another folder in its place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()  # A link that somebody changes later changes nothing.
        self._check()

    def path(self, name: str) -> Path:
        """Where a kernel is, or will be."""
        return self._folder / name

    def check(self, name: str) -> None:
        """Makes sure that a kernel is as a server of this user or root has kept it.

        Raises:
            ValueError: others may change it.
        """
        self._check()
        kernel = self.path(name)
        for path in (kernel, *kernel.rglob("*")):
            _refuse(_exposure(path), path)

    @contextmanager
    def making(self, name: str, cancelled: Callable[[], bool]) -> Iterator[Path]:
        """An empty folder for work on a kernel, which no other process does meanwhile, and which is removed afterwards.

        Args:
            name: of the kernel.
            cancelled: whether to give up waiting for another process.

        Raises:
            ValueError: others may write to the cache.
            OSError: it cannot be written to.
        """
        self._make()
        with FileLock(self._lock(name), mode=0o600).acquire(cancel_check=cancelled):
            scratch = self._scratch(name)
            try:
                self._clear(name)
                scratch.mkdir(mode=0o700)
                yield scratch
            finally:
                self._clear(name)
                self._lock(name).unlink(missing_ok=True)  # While it is held: who waits for it tries again.

    def sweep(self) -> None:
        """Removes what processes that were killed have left."""
        for lock in self._folder.glob("*.lock"):
            with suppress(OSError, Timeout), FileLock(lock, mode=0o600).acquire(blocking=False):
                self._clear(lock.stem)
                lock.unlink()

    def _check(self) -> None:
        _refuse(_exposure(self._folder), self._folder)
        for path in self._folder.parents:
            _refuse(_exposure(path, sticky=True), path)

    def _make(self) -> None:
        for path in (*reversed(self._folder.parents), self._folder):
            if not path.exists():
                with suppress(FileExistsError):  # Another process was faster.
                    path.mkdir(mode=0o700)
        self._check()

    def _clear(self, name: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._scratch(name))

    def _lock(self, name: str) -> Path:
        return self._folder / f"{name}.lock"

    def _scratch(self, name: str) -> Path:
        return self._folder / f"{name}.unfinished"


def _refuse(exposure: str | None, path: Path) -> None:
    if exposure:
        raise ValueError(
            f"--kernel-cache: {path} {exposure}, and kernels are code that is run; take it over (chown), close it to "
            "others (chmod go-w), or choose another folder (--kernel-cache or BOXLOSS_KERNEL_CACHE)"
        )


def _exposure(path: Path, sticky: bool = False) -> str | None:
    """How others than this user and root can change what is at a path; None where they cannot, or nothing is there.

    Args:
        path: of a file or folder.
        sticky: whether others may add to a folder as long as they cannot change what it has, as in /tmp.
    """
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(status.st_mode):
        return "is a link"
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to another user (uid {status.st_uid})"
    by_others = status.st_mode & stat.S_IWOTH
    by_group = status.st_mode & stat.S_IWGRP and not _is_mine_alone(status.st_gid, path)
    if (by_others or by_group) and not (sticky and status.st_mode & stat.S_ISVTX):
        return f"can be written to by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _is_mine_alone(gid: int, path: Path) -> bool:
    """Whether a group is the one that many systems give each user, so that a umask of 002 is harmless."""
    if hasattr(os, "listxattr") and "system.posix_acl_access" in os.listxattr(path):
        return False  # What looks like the group's rights may be anybody's.
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
