"""The arena: contenders that run side by side, of which one at a time is measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.contenders import PEERS, Boxloss, Contender, Echo
from benchmarks.errors import BenchmarkError
from benchmarks.interrupts import put_off
from benchmarks.options import Options
from benchmarks.workload import Workload, stream_answer

_RESTLESS = 0.02
"""A contender that takes this share of a core while nobody asks it is paused while others are measured."""

_QUEUE = 2**22
"""Pairs that the service admits by default."""


class Arena:
    """Contenders that are started within its `with` statement, and end with it.

    Args:
        options: where they run and log.

    Attributes:
        contenders: those that run.
        skipped: those that do not, and why.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._restless: set[str] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self.contenders: dict[str, Contender] = {}
        self.skipped: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with put_off():
            for contender in self.contenders.values():
                if contender.process:
                    contender.process.terminate()
            for contender in self.contenders.values():
                contender.stop()
            self._folder.cleanup()

    def start(self, contender: Contender) -> None:
        """Starts a contender; a peer that does not start is skipped.

        Raises:
            BenchmarkError: another does not start.
        """
        logs = self._options.output / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.contenders[contender.name] = contender
        try:
            contender.start(logs, set(self._options.server_cores), {"TMPDIR": self._folder.name})
        except BenchmarkError as error:
            if contender.name not in PEERS:
                raise
            contender.stop()
            del self.contenders[contender.name]
            self.skipped[contender.name] = str(error)

    def calm(self) -> None:
        """Pauses whoever computes although nobody asks."""
        processes = {name: each.process for name, each in self.contenders.items() if each.process}
        before = {name: process.cpu_seconds() for name, process in processes.items()}
        started = time.perf_counter()
        time.sleep(1)
        took = time.perf_counter() - started
        for name, process in processes.items():
            if (process.cpu_seconds() - before[name]) / took > _RESTLESS:
                self._restless.add(name)
                process.pause()

    @contextmanager
    def only(self, name: str) -> Iterator[Contender]:
        """One contender, undisturbed by the others."""
        contender = self.contenders[name]
        assert contender.process
        try:
            if name in self._restless:
                contender.process.resume()
                contender.verify(Workload(1))  # It is awake.
            yield contender
        finally:
            if name in self._restless:
                contender.process.pause()

    def file(self, name: str, content: Callable[[], bytes]) -> Path:
        """A file of what is sent, written when it is first asked for."""
        path = Path(self._folder.name) / name
        if not path.exists():
            path.write_bytes(content())
        return path


@contextmanager
def field(options: Options, sizes: Iterable[int]) -> Iterator[Arena]:
    """The arena with all contenders of the options, ready for workloads of these sizes.

    The service runs in any case: the echo answers what it does.
    """
    sizes = sorted(sizes)
    queue = max(_QUEUE, sizes[-1] * max(options.concurrency))
    boxloss = Boxloss(f"--max-waiting-pairs={queue}", *options.flags)
    with tempfile.TemporaryDirectory() as folder, Arena(options) as arena:
        answers = Path(folder)
        arena.start(boxloss)
        _record(boxloss, sizes, answers)
        for name in options.contenders:
            if name != boxloss.name:
                arena.start(Echo(answers) if name == Echo.name else PEERS[name]())
        arena.calm()
        yield arena


def _record(boxloss: Boxloss, sizes: Iterable[int], folder: Path) -> None:
    """Writes what the service answers, for the echo."""
    for pairs in {1, *sizes}:
        workload = Workload(pairs)
        answer = boxloss.ask(workload, timeout=60)
        (folder / str(len(workload.request))).write_bytes(answer)
        (folder / str(len(workload.stream_request))).write_bytes(stream_answer(answer))
