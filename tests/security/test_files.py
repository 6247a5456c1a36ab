"""Files that say who may call: read again whatever has happened, and not trusted where anybody may write to them."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from boxloss_server.security import Certificates, Files
from boxloss_server.security import files as files_module
from tests.certificates import Authority
from tests.security.callers import until

FLAG = "--tokens-file"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_INTERVAL", 0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("first")
    file.chmod(0o600)
    return file


@contextmanager
def following(files: Files[str]) -> Iterator[None]:
    """Follows files meanwhile, which nothing may end."""
    ended = threading.Event()

    async def follow() -> None:
        task = asyncio.create_task(files.follow())
        await asyncio.to_thread(ended.wait)
        assert not task.done()
        task.cancel()

    with ThreadPoolExecutor() as threads:
        followed = threads.submit(asyncio.run, follow())
        try:
            yield
        finally:
            ended.set()
        followed.result()


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: Exception) -> Iterator[list[int]]:
    """Has a function raise an error meanwhile; gives the list of its calls."""
    calls: list[int] = []

    def fail(*_args: object) -> None:
        calls.append(1)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield calls


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a fault of ours"), MemoryError(), RecursionError(), OSError(errno.EMFILE, "Too many open files")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_reading_raises_is_logged_once_and_read_again_when_it_has_passed(file: Path, error: Exception) -> None:
    broken: list[Exception] = []

    def read() -> str:
        if broken:
            raise broken[0]
        return file.read_text()

    files = Files({FLAG: file}, read)
    with capture_logs() as lines, following(files):
        broken.append(error)
        file.write_text("second")
        until(lambda: files.failures >= 3)
        assert files.value == "first"
        broken.clear()
        until(lambda: files.value == "second")
        file.write_text("third")
        until(lambda: files.value == "third")
    assert [line["log_level"] for line in lines] == ["error"]


def test_a_look_that_fails_altogether_is_followed_by_others(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files({FLAG: file}, file.read_text)
    with capture_logs() as lines, following(files):
        with failing(monkeypatch, files, "_look", RuntimeError("can't start new thread")) as calls:
            file.write_text("second")
            until(lambda: len(calls) >= 3)
        until(lambda: files.value == "second")
    assert [line["log_level"] for line in lines] == ["error"]


def test_a_change_is_noticed_though_time_and_size_stay(file: Path) -> None:
    files = Files({FLAG: file}, file.read_text)
    was = file.stat()
    with following(files):
        file.write_text("other")
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        until(lambda: files.value == "other")


def test_when_files_were_last_read_and_how_often_that_failed_is_known(file: Path) -> None:
    started = time.time()
    files = Files({FLAG: file}, file.read_text)
    first = files.reloaded
    assert started - 1 <= first <= time.time() + 1
    with capture_logs() as lines, following(files):
        file.unlink()
        until(lambda: files.failures >= 2)
        assert files.reloaded == first
        file.write_text("second")
        until(lambda: files.value == "second")
        assert files.reloaded > first
    assert lines[0]["error"] == f"{FLAG} {file}: No such file or directory"


# Permissions


@pytest.mark.parametrize("mode", [0o602, 0o622, 0o666, 0o777])
def test_a_file_that_everybody_may_write_to_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ValueError, match=f"{FLAG} {file}: every user may write to it; take that away with chmod o-w"):
        Files({FLAG: file}, file.read_text)


def test_a_change_that_everybody_could_have_made_is_not_taken(file: Path) -> None:
    files = Files({FLAG: file}, file.read_text)
    with capture_logs() as lines, following(files):
        file.chmod(0o606)
        file.write_text("intruder")
        until(lambda: files.failures > 0)
        assert files.value == "first"
        file.write_text("mended")
        file.chmod(0o600)
        until(lambda: files.value == "mended")
    assert "every user may write to it" in lines[0]["error"]


@pytest.mark.parametrize(
    ("mode", "faults"),
    [
        (0o400, []),
        (0o600, []),
        (0o440, []),  # As Kubernetes mounts secrets with fsGroup.
        (0o644, ["every user may read it"]),
        (0o660, ["its group may write to it"]),  # As umask 002 makes files.
        (0o664, ["its group may write to it", "every user may read it"]),
    ],
)
def test_what_is_usual_and_less_safe_is_warned_of(file: Path, mode: int, faults: list[str]) -> None:
    file.chmod(mode)
    with capture_logs() as lines:
        Files({FLAG: file}, lambda: "", secret=(FLAG,))
    assert [(line["log_level"], line["fault"]) for line in lines] == [("warning", fault) for fault in faults]
    with capture_logs() as lines:
        Files({FLAG: file}, lambda: "")
    assert "every user may read it" not in [line["fault"] for line in lines]


def test_a_folder_where_everybody_may_replace_the_file_is_warned_of(file: Path) -> None:
    link = file.parent / "elsewhere" / "link"  # As Kubernetes mounts secrets.
    link.parent.mkdir()
    link.symlink_to(file)
    for folder, mode, warnings in ((file.parent, 0o777, 1), (file.parent, 0o1777, 0), (link.parent, 0o777, 1)):
        before = folder.stat().st_mode
        folder.chmod(mode)
        with capture_logs() as lines:
            Files({FLAG: link}, lambda: "")
        folder.chmod(before)
        assert [line["fault"] for line in lines] == ["every user may replace it: its folder is open"] * warnings


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_of_another_user_is_warned_of(file: Path) -> None:
    shutil.chown(file, 12345)
    with capture_logs() as lines:
        Files({FLAG: file}, lambda: "")
    assert [line["fault"] for line in lines] == ["it belongs to another user"]


def test_keys_and_authorities_that_everybody_may_write_to_are_refused(authority: Authority) -> None:
    pair, callers = authority.issue("open"), authority.issue("callers")
    files = {"--tls-certificate": pair.certificate, "--tls-key": pair.key, "--tls-client-ca": callers.certificate}
    for flag, path in files.items():
        before = path.stat().st_mode
        path.chmod(0o666)
        with pytest.raises(ValueError, match=f"{flag} {path}: every user may write to it"):
            Certificates(pair.certificate, pair.key, callers.certificate)
        path.chmod(before)
    pair.key.chmod(0o644)
    with capture_logs() as lines:
        Certificates(pair.certificate, pair.key, callers.certificate)
    assert [(line["flag"], line["fault"]) for line in lines] == [("--tls-key", "every user may read it")]


# Dates


def test_certificates_that_have_expired_or_are_not_valid_yet_are_warned_of(authority: Authority) -> None:
    good, expired, future = authority.issue("valid"), authority.issue_expired("stale"), authority.issue_future("early")
    for pair, complaint in ((expired, "has expired"), (future, "is not valid yet"), (good, "")):
        with capture_logs() as lines:
            certificates = Certificates(pair.certificate, pair.key)
        assert [line["log_level"] for line in lines] == ["warning"] * bool(complaint)
        assert all(complaint in line["event"] and line["file"] == str(pair.certificate) for line in lines)
        assert (certificates.expires < time.time()) == (pair is expired)
    with capture_logs() as lines:
        Certificates(good.certificate, good.key, expired.certificate)
    assert [line["flag"] for line in lines] == ["--tls-client-ca"]


def test_of_a_chain_the_first_to_expire_counts(authority: Authority) -> None:
    leaf, above = authority.issue("leaf"), authority.issue_expired("above")
    leaf.certificate.write_bytes(leaf.certificate.read_bytes() + above.certificate.read_bytes())
    with capture_logs() as lines:
        assert Certificates(leaf.certificate, leaf.key).expires < time.time()
    assert len(lines) == 1
