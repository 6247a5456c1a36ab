"""A server inside a process leaves nothing in the temporary folder, however the process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import boxloss
from boxloss import CIoU
from boxloss_server.socket_folder import SocketFolder

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
CIOU_OF_A_AND_B = 0.9361860890731847

SERVES = """
import signal
import boxloss
client = boxloss.embedded(device="cpu")
print(client.address, flush=True)
signal.pause()
"""
STARTS = """
import signal
from boxloss_server.socket_folder import SocketFolder
folder = SocketFolder()
print(folder.socket, flush=True)
signal.pause()
"""
FORKS = """
import os
from boxloss_server.socket_folder import SocketFolder
folder = SocketFolder()
if os.fork() == 0:
    folder.close()
    os._exit(0)
os.wait()
print(folder.socket.parent.exists())
folder.close()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def start(program: str) -> tuple[subprocess.Popen[str], str]:
    """Starts a program; returns it with the first line that it writes."""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with process:
        process.send_signal(number)
    assert process.returncode == -number


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the folder stays as long as the server")


@on_linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_by_a_signal_leaves_nothing(number: signal.Signals, folder: Path) -> None:
    process, address = start(SERVES)
    assert not list(folder.iterdir())
    with boxloss.Client(address) as other:  # Of the same user, though the socket is in no folder.
        assert other.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])
    end(process, number)
    assert not list(folder.iterdir())


def test_what_a_process_that_was_killed_while_it_started_has_left_is_removed_by_the_next(folder: Path) -> None:
    killed, its = start(STARTS)
    living, other = start(STARTS)
    end(killed, signal.SIGKILL)
    assert Path(its).parent.exists()
    with boxloss.embedded(device="cpu"):
        assert not Path(its).parent.exists()
        assert Path(other).parent.exists()
    end(living, signal.SIGKILL)


def test_files_of_that_name_that_are_no_folders_are_left_alone(folder: Path) -> None:
    (folder / "boxloss-socket-file").write_text("")
    (folder / "elsewhere").mkdir()
    (folder / "boxloss-socket-link").symlink_to(folder / "elsewhere")
    SocketFolder().close()
    assert {path.name for path in folder.iterdir()} == {"boxloss-socket-file", "boxloss-socket-link", "elsewhere"}


def test_clients_connect_as_often_as_they_like() -> None:
    with boxloss.embedded(device="cpu") as client:
        for _ in range(2):
            with boxloss.Client(client.address) as other:
                assert other.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])


def test_a_fork_does_not_remove_the_folder_of_its_parent() -> None:
    ended = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, check=True, text=True)
    assert ended.stdout == "True\n"
