"""The folder of kernels is code: only its user may write there, and what killed processes left there is removed."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from boxloss_server.engine.cache import Cache
from boxloss_server.engine.compiler import NICENESS
from tests.programs import compilers
from tests.servers import wait_until

OTHERS = 65534
"""A user and a group that this one is not."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def never() -> bool:
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache with a kernel."""
    folder = tmp_path / "home/kernels"
    kernel = folder / "iou/data"
    kernel.mkdir(parents=True)
    (kernel / "model.so").write_bytes(b"")
    for path in (tmp_path / "home", *folder.rglob("*"), folder):
        path.chmod(0o755)
    return folder


# Who may write


@pytest.mark.parametrize("mode", [0o500, 0o700, 0o755])
def test_a_folder_that_only_its_user_can_write_to_is_used(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    Cache(folder).check("iou")


@pytest.mark.parametrize("mode", [0o702, 0o757, 0o777, 0o1777])
def test_a_folder_that_everybody_can_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    fault = f"--kernel-cache: {folder} can be written to by others (mode {mode:o}), and kernels are code"
    with pytest.raises(ValueError, match=re.escape(fault)):
        Cache(folder)


@as_root
def test_a_folder_that_another_group_can_write_to_is_refused(folder: Path) -> None:
    folder.chmod(0o770)
    Cache(folder)  # Its group is the one that many systems give each user for himself.
    os.chown(folder, -1, OTHERS)
    with pytest.raises(ValueError, match=re.escape(f"{folder} can be written to by others (mode 770)")):
        Cache(folder)


@as_root
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder, OTHERS, -1)
    with pytest.raises(ValueError, match=re.escape(f"{folder} belongs to another user (uid {OTHERS})")):
        Cache(folder)


@pytest.mark.parametrize("kept", [True, False], ids=["there", "not there yet"])
def test_a_folder_that_others_could_replace_is_refused(folder: Path, kept: bool) -> None:
    above = folder.parent
    above.chmod(0o777)
    with pytest.raises(ValueError, match=re.escape(f"{above} can be written to by others (mode 777)")):
        Cache(folder if kept else above / "new/kernels")
    above.chmod(0o1777)  # As in /tmp: others can add to it, and cannot change what it has.
    Cache(folder if kept else above / "new/kernels")


def test_where_a_link_leads_is_looked_up_once(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    cache = Cache(link)
    link.unlink()
    link.symlink_to("/elsewhere")
    assert cache.path("iou") == folder / "iou"


def test_a_folder_that_was_opened_to_others_later_is_refused(folder: Path) -> None:
    cache = Cache(folder)
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="can be written to by others"):
        cache.check("iou")
    with pytest.raises(ValueError, match="can be written to by others"), cache.making("giou", never):
        pass


@pytest.mark.parametrize("name", ["iou", "iou/data", "iou/data/model.so"])
def test_a_kernel_that_others_may_change_is_refused(folder: Path, name: str) -> None:
    cache = Cache(folder)
    cache.check("iou")
    (folder / name).chmod(0o757)
    with pytest.raises(ValueError, match=re.escape(f"{folder / name} can be written to by others (mode 757)")):
        cache.check("iou")


def test_a_kernel_that_links_elsewhere_is_refused(folder: Path) -> None:
    (folder / "iou/data/other.so").symlink_to("/elsewhere")
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'iou/data/other.so'} is a link")):
        Cache(folder).check("iou")


def test_new_folders_are_for_their_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    new = tmp_path / "new"
    before = os.umask(0)
    try:
        with Cache(new / "boxloss/kernels").making("iou", never) as scratch:
            made = [new, new / "boxloss", new / "boxloss/kernels", scratch]
            modes = [stat.S_IMODE(path.stat().st_mode) for path in made]
            lock = stat.S_IMODE((new / "boxloss/kernels/iou.lock").stat().st_mode)
    finally:
        os.umask(before)
    assert (modes, lock) == ([0o700] * 4, 0o600)


def test_a_server_with_a_cache_that_others_may_write_to_does_not_start(folder: Path) -> None:
    folder.chmod(0o777)
    command = [sys.executable, "-m", "boxloss_server", "--port=0", "--metrics-port=0", "--device=cpu"]
    flags = "--compile=background", f"--kernel-cache={folder}"
    ended = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert f"boxloss-server: --kernel-cache: {folder} can be written to by others (mode 777)" in ended.stderr
    assert "choose another folder (--kernel-cache or BOXLOSS_KERNEL_CACHE)" in ended.stderr


# What is left behind


def test_work_leaves_nothing_even_if_it_fails(folder: Path) -> None:
    cache = Cache(folder)
    with pytest.raises(IsADirectoryError), cache.making("giou", never) as scratch:
        scratch.write_text("")
    assert [path.name for path in folder.iterdir()] == ["iou"]


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(folder: Path) -> None:
    cache = Cache(folder)
    for name in ("dead", "alive"):
        (folder / f"{name}.lock").write_text("")
        (folder / f"{name}.unfinished/deep").mkdir(parents=True)
    with FileLock(folder / "alive.lock"):
        cache.sweep()
    assert {path.name for path in folder.iterdir()} == {"iou", "alive.lock", "alive.unfinished"}


def test_work_begins_without_what_a_killed_process_left(folder: Path) -> None:
    (folder / "giou.unfinished/deep").mkdir(parents=True)
    with Cache(folder).making("giou", never) as scratch:
        assert not list(scratch.iterdir())


def test_what_cannot_be_removed_stays(folder: Path) -> None:
    (folder / "dead.lock").mkdir()  # Stands for a file that may not be removed, which root may everywhere.
    cache = Cache(folder)
    cache.sweep()
    cache.check("iou")


# Compilers and the servers that started them


@pytest.fixture(params=["--processes=1", "--processes=2"])
def compiling(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[psutil.Popen, list[psutil.Process]]]:
    """A server that compiles before it serves, and its compilers."""
    command = [sys.executable, "-m", "boxloss_server", "--port=0", "--metrics-port=0", "--device=cpu"]
    flags = "--compile=ahead", f"--kernel-cache={tmp_path / 'kernels'}", request.param
    found: list[psutil.Process] = []

    def all_work() -> bool:
        """Whether there are compilers, and all have begun: that is when they give up their priority."""
        found[:] = compilers(server)
        return bool(found) and all(each.nice() == NICENESS + os.nice(0) for each in found)

    with psutil.Popen([*command, *flags], stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(all_work, "compilers", 60)
            yield server, found
        finally:
            with suppress(psutil.NoSuchProcess):
                server.kill()


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_sigterm_ends_a_server_that_compiles(
    compiling: tuple[psutil.Popen, list[psutil.Process]], tmp_path: Path
) -> None:
    server, compilers_of_it = compiling
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=20) == 0
    assert all(map(has_ended, compilers_of_it))
    assert not list((tmp_path / "kernels").iterdir())


def test_compilers_end_with_a_server_that_is_killed_and_the_next_clears_up(
    compiling: tuple[psutil.Popen, list[psutil.Process]], tmp_path: Path
) -> None:
    server, compilers_of_it = compiling
    server.kill()
    wait_until(lambda: all(map(has_ended, compilers_of_it)), "the end of the compilers", 20)
    wait_until(lambda: is_cleared(tmp_path / "kernels"), "an empty cache", 20)


def is_cleared(folder: Path) -> bool:
    """Whether nothing is left in a cache once it has been cleared; what runs keeps its own."""
    Cache(folder).sweep()
    return not list(folder.iterdir())
