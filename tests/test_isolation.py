"""The processes that a server starts run the code of its installation, whatever lies in the current folder or is named
in variables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.traps import Traps

ROOT = Path(__file__).parents[1]

RUNS_A_CHILD = """
import subprocess
from boxloss_server.isolation import isolated
subprocess.run(isolated("boxloss_server.__main__", "--help"), check=True)
"""


def test_server_processes_run_no_code_of_the_current_folder_or_of_python_variables(tmp_path: Path) -> None:
    traps = Traps(tmp_path)
    python_path = tmp_path / "python_path"  # What is there runs in the server itself, which heeds its user's variables.
    python_path.mkdir()
    marks = python_path / "marks"
    (python_path / "sitecustomize.py").write_text(
        f"import os\nwith open({str(marks)!r}, 'a') as file: file.write(f'{{os.getpid()}} ')"
    )
    command = [
        str(Path(sys.executable).with_name("boxloss-server")),
        "--port=0",
        "--metrics-port=0",
        "--log-format=json",
    ]
    with subprocess.Popen(
        [*command, "--processes=2"],
        cwd=tmp_path,
        env=os.environ | {"BOXLOSS_DEVICE": "cpu", "PYTHONPATH": str(python_path)},
        stderr=subprocess.PIPE,
    ) as server:
        assert server.stderr
        while json.loads(server.stderr.readline())["event"] != "serving":
            pass
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0
    assert marks.read_text().split() == [str(server.pid)]
    assert traps.sprung() == set()


def test_packages_need_not_be_installed_where_the_interpreter_looks() -> None:
    """As with `pip install --user`, or packages that a container has on PYTHONPATH."""
    packages = [str(path) for path in (ROOT / "client", ROOT / "server", *Path(sys.prefix).glob("lib/*/site-packages"))]
    python = os.path.realpath(sys.executable)  # Outside the virtual environment.
    ended = subprocess.run(
        [python, "-c", RUNS_A_CHILD],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(packages)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "usage: boxloss-server" in ended.stdout, ended.stderr
