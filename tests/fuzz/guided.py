"""Inputs that atheris makes of those before, guided by what they cover of the code that reads them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["boxloss.wire", "boxloss_server.service"]):
    from tests.fuzz.target import Target

from tests.fuzz.mutation import from_bytes, mutate, to_bytes
from tests.fuzz.oracle import SECONDS
from tests.fuzz.seeds import CORPUS, seeds
from tests.fuzz.trial import Trial

_LONGEST = 2**13


def run(inputs: int, seeded: int, folder: Path) -> None:
    """Makes calls until there are so many, prints what there is to tell, and ends the process.

    An input that finds something is kept in the folder, and so are those that cover what others do not.
    """
    corpus, start = folder / "corpus", folder / "seeds"
    for each in (corpus, start):
        each.mkdir(parents=True, exist_ok=True)
    for place, call in enumerate(seeds()):
        (start / str(place)).write_bytes(to_bytes(call))
    trial = Trial(Target(), inputs)

    def make(data: bytes) -> None:
        trial.make(from_bytes(data))
        if trial.made == inputs:
            print(json.dumps(trial.end()), flush=True)
            signal.setitimer(signal.ITIMER_REAL, 0)  # libFuzzer's alarm, which Python does not handle while it ends.

    def change(data: bytes, size: int, seed: int) -> bytes:
        return mutate(data, size, seed, atheris.Mutate)

    atheris.Setup(
        [
            sys.argv[0],
            *map(str, (corpus, start, CORPUS)),
            f"-runs={inputs}",
            f"-seed={seeded}",
            f"-max_len={_LONGEST}",
            f"-timeout={SECONDS:.0f}",
            f"-artifact_prefix={folder}/",
            "-verbosity=0",
        ],
        make,
        custom_mutator=change,
    )
    atheris.Fuzz()
