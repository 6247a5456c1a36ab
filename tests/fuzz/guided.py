"""Inputs that atheris makes of those before, guided by what they cover of the code that reads them."""

from __future__ import annotations

import json
import os
import sys
import traceback
from hashlib import sha1
from pathlib import Path
from typing import NoReturn

import atheris
from atheris.import_hook import HookManager

# Not atheris.instrument_imports, which traces comparisons, too: atheris never frees what they return, which would look
# like a leak of the service where it is an array or a tensor.
with HookManager({"boxloss", "boxloss_server"}, set(), enable_loader_override=True, trace_dataflow=False):
    from tests.fuzz.target import Target

from tests.fuzz.mutation import from_bytes, mutate, to_bytes
from tests.fuzz.oracle import SECONDS, Finding
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
        try:
            trial.make(from_bytes(data))
        except Exception:
            (folder / f"crash-{sha1(data).hexdigest()}").write_bytes(data)
            _end(traceback.format_exc(), 1)
        if trial.made == inputs:
            try:
                _end(json.dumps(trial.end()), 0)
            except Finding:
                _end(traceback.format_exc(), 1)

    def change(data: bytes, size: int, seed: int) -> bytes:
        return mutate(data, size, seed, atheris.Mutate)

    atheris.Setup(
        [
            sys.argv[0],
            *map(str, (corpus, start, CORPUS)),
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


def _end(told: str, status: int) -> NoReturn:
    """Ends the process at once: libFuzzer's alarm would kill it while Python takes its time."""
    print(told, flush=True)
    os._exit(status)
