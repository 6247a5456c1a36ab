"""The command `python -m tests.fuzz`: gives a server inputs that nobody would write, and tells what it found."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import SystemRandom
from typing import Any

_SHARES = {"structured": 0.03, "sockets": 0.05}
"""Of all inputs; the rest is guided, in two halves, of which each has the other's inputs to start from."""


def main() -> int:
    """Runs all kinds of fuzzing side by side, a process each; 1 where one found something."""
    options = _options()
    if options.files:
        return _replay(options.files)
    if options.kind:
        return _work(options.kind, options.inputs, options.seed, options.output)
    print(f"seed {options.seed}", flush=True)
    shares = [(kind, round(options.inputs * share)) for kind, share in _SHARES.items()]
    rest = options.inputs - sum(inputs for _, inputs in shares)
    work = [("guided", rest - rest // 2), ("guided", rest // 2), *shares]
    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as lanes:
        jobs = [
            lanes.submit(_worker, kind, inputs, options.seed + place, options.output)
            for place, (kind, inputs) in enumerate(work)
        ]
        reports = [job.result() for job in jobs]
    _tell([report for report in reports if report], time.monotonic() - started)
    return 0 if all(reports) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="inputs to try again instead")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many, of all kinds together")
    parser.add_argument("--seed", type=int, default=SystemRandom().getrandbits(31), help="of what is random")
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"), help="folder for what is found")
    parser.add_argument("--kind", choices=["guided", *_SHARES], help="only inputs of this kind, in this process")
    return parser.parse_args()


def _worker(kind: str, inputs: int, seed: int, output: Path) -> dict[str, Any] | None:
    """What a process with a share of the inputs tells; None where it has found something."""
    arguments = [f"--kind={kind}", f"--inputs={inputs}", f"--seed={seed}", f"--output={output}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        env=os.environ | {"BOXLOSS_COMPILE": "off", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        told = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if not line.startswith(("INFO:", "WARNING: Failed to find"))
        ]
        print(f"{' '.join(arguments)} found something, or failed ({done.returncode}):", *told, sep="\n", flush=True)
        return None
    report: dict[str, Any] = json.loads(done.stdout[done.stdout.rindex('{"inputs"') :].splitlines()[0])
    return report


def _work(kind: str, inputs: int, seed: int, output: Path) -> int:
    if kind == "guided":
        from tests.fuzz import guided  # Before anything that it instruments.

        guided.run(inputs, seed, output)
    from tests.fuzz import sockets, structured
    from tests.fuzz.target import Target
    from tests.fuzz.trial import Trial
    from tests.servers import ServerProcess

    if kind == "structured":
        trial = Trial(Target(), inputs)
        structured.run(trial, inputs, seed)
        report = trial.end()
    else:
        with ServerProcess() as server:
            report = sockets.run(server, inputs, seed)
    print(json.dumps(report))
    return 0


def _replay(files: Sequence[Path]) -> int:
    from tests.fuzz.mutation import from_bytes
    from tests.fuzz.target import Target
    from tests.fuzz.trial import Trial

    trial = Trial(Target(), len(files))
    for file in files:
        trial.make(from_bytes(file.read_bytes()))
        print(f"{file}: answered")
    return 0


def _tell(reports: Sequence[dict[str, Any]], seconds: float) -> None:
    endings: Counter[str] = Counter()
    for report in reports:
        endings.update(report["endings"])
    for ending, count in sorted(endings.items()):
        print(f"{count:9,}  {ending}")
    for report in reports:
        print(
            f"{report['inputs']:9,}  inputs of a kind: slowest {report['slowest']:.3f} s, "
            f"memory grew by {report['grown'] / 2**20:.1f} MiB"
        )
    print(f"{endings.total():9,}  inputs in {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
