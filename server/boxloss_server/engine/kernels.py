"""Kernels: compiled functions. A function runs eagerly until its kernel is there."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil
import structlog
import torch
from torch import Tensor

import boxloss_server
from boxloss.losses import AlphaIoU, CIoU, DIoU, EIoU, FocalEIoU, GIoU, IoU, SmoothL1
from boxloss_server.engine.cache import Cache
from boxloss_server.engine.compiler import KERNEL, target
from boxloss_server.engine.function import compute, dtype_of, example, numbers_of, structure_of
from boxloss_server.engine.pairs import Evaluation
from boxloss_server.isolation import isolated

Kernel: TypeAlias = Callable[[Tensor], Tensor]
"""Computes the planes of `compute` from those of a batch."""

Compile: TypeAlias = Literal["background", "ahead", "off"]

COMMON = tuple(
    Evaluation((loss,), "xyxy", "float32", prediction_gradients=True, target_gradients=False)
    for loss in (SmoothL1(), IoU(), GIoU(), DIoU(), CIoU(), EIoU(), FocalEIoU(), AlphaIoU(CIoU()))
)
"""Functions that are compiled ahead where that is asked for, and loaded ahead where they have been compiled."""

_WORTH = 16
"""Batches after which a function is worth half a minute of compilation."""
_REMEMBERED = 1024
_COMPILE_CPU_TIMEOUT = 600.0
"""Seconds of CPU time that a compiler may use: some functions of oriented boxes take it very long."""
_COMPILE_TIMEOUT = 3600.0
"""Seconds after which a compiler makes room for the next, because it hangs or the machine has no time for it."""
_CPU_CHECK_INTERVAL = 1.0
_FIRST_RETRY_AFTER = 600.0
"""Seconds after which a function without a kernel is worth another try; twice as long after each that fails."""
_LAST_RETRY_AFTER = 86_400.0
_AGREEMENT = {"float32": 1e-3, "float64": 1e-8}

_log = structlog.get_logger()


class Kernels:
    """The kernels of one device.

    Args:
        device: what they run on.
        mode: when functions are compiled: "background" (once they are asked for often), "ahead" (as in the
            background, and the common ones in `prepare`) or "off" (never, and nothing is loaded).
        folder: where kernels are kept.
        limit: most kernels; what callers ask for beyond runs eagerly.
        compiled: called with "compiled", "loaded", "failed" or, where there was too little time to compile,
            "postponed", and the seconds it took, from another thread. The last two are tried again later. And with
            "dropped" and 0 where a kernel fails in use.

    Raises:
        ValueError: others may write to the folder.
    """

    def __init__(
        self,
        device: torch.device,
        mode: Compile = "off",
        folder: Path = Path(),
        limit: int = 0,
        compiled: Callable[[str, float], None] = lambda outcome, seconds: None,
    ) -> None:
        self._device = device
        self._mode = mode
        self._limit = limit
        self._heard = compiled
        self._has_compiler = mode != "off" and shutil.which(os.environ.get("CXX") or "g++") is not None
        if mode != "off" and not self._has_compiler:
            _log.warning("no C++ compiler: functions without a kernel in the cache run eagerly; install g++")
        if mode != "off":
            self._cache = Cache(folder)
            self._cache.sweep()
        self._kernels: dict[Evaluation, Any] = {}
        self._asked: Counter[Evaluation] = Counter()
        self._obtaining: dict[Evaluation, Future[None]] = {}
        self._retries: dict[Evaluation, float] = {}
        self._retry_after: dict[Evaluation, float] = {}
        self._threads = ThreadPoolExecutor(os.cpu_count() if mode == "ahead" else 1, "boxloss-compiler")
        self._compilers: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def of(self, work: Evaluation) -> Kernel:
        """The work's kernel, or its eager function."""
        structure = _structure_of(work)
        kernel = self._kernels.get(structure)
        if kernel is not None:
            return partial(self._run, kernel, work)
        if self._mode != "off" and (structure not in self._obtaining or self._is_due(structure)):
            self._ask(structure, work)
        return partial(compute, work)

    def prepare(self) -> None:
        """Loads the common functions that have been compiled; "ahead", compiles the others."""
        if self._mode != "off":
            for work in COMMON:
                if self._mode == "ahead" or self._is_kept(work):
                    self._obtain(_structure_of(work), work)
            self.wait()

    def wait(self) -> None:
        """Waits for the kernels that are being obtained."""
        for obtained in list(self._obtaining.values()):
            with suppress(CancelledError):
                obtained.result()

    def close(self) -> None:
        """Ends compilation, from any thread; what is under way is lost."""
        self._closed = True
        for compiler in list(self._compilers):
            _kill(compiler)
        self._threads.shutdown(cancel_futures=True)

    def _run(self, kernel: Any, work: Evaluation, batch: Tensor) -> Tensor:
        """Runs a kernel; for good without it, if it fails where the eager function does not."""
        try:
            return _run(kernel, _numbers_of(work, self._device), batch)
        except Exception as error:
            fault = str(error)
        planes = compute(work, batch)  # Says what is wrong if that is not the kernel's doing, for example its memory.
        if self._kernels.pop(_structure_of(work), None):  # Else another thread has dropped it.
            self._heard("dropped", 0.0)
            _log.error("a kernel fails and is dropped; its function runs eagerly", work=repr(work), error=fault)
        return planes

    def _ask(self, structure: Evaluation, work: Evaluation) -> None:
        """Counts the batches of a function; obtains its kernel once that is worth it."""
        if len(self._asked) >= _REMEMBERED:
            self._asked.clear()
        self._asked[structure] += 1
        times = self._asked[structure]
        if (times == 1 and self._is_kept(work)) or (times == _WORTH and self._has_compiler):
            self._obtain(structure, work)

    def _is_due(self, structure: Evaluation) -> bool:
        """Whether it is time to try again what failed."""
        return time.monotonic() >= self._retries.get(structure, math.inf)

    def _obtain(self, structure: Evaluation, work: Evaluation) -> None:
        if (structure in self._obtaining or len(self._obtaining) < self._limit) and not self._closed:
            self._retries.pop(structure, None)
            self._obtaining[structure] = self._threads.submit(self._load_or_compile, structure, work)

    def _load_or_compile(self, structure: Evaluation, work: Evaluation) -> None:
        started = time.perf_counter()
        name = self._name(work)
        try:
            outcome = "loaded"
            if not self._is_kept(work):
                with self._cache.making(name, lambda: self._closed) as scratch:  # Another process may be compiling it.
                    if not self._is_kept(work):
                        outcome = "compiled"
                        self._compile(work, scratch)
                        (scratch / KERNEL).rename(self._cache.path(name))
            self._kernels[structure] = self._load(work)
        except Exception as error:
            if self._closed:
                return
            outcome = "postponed" if isinstance(error, _OutOfTimeError) else "failed"
            log = _log.warning if outcome == "postponed" else _log.error
            log("no kernel; the function goes on running eagerly", function=name, error=str(error))
            self._retry_later(structure)
        seconds = time.perf_counter() - started
        self._heard(outcome, seconds)
        _log.info("kernel", function=name, outcome=outcome, seconds=round(seconds, 3))

    def _retry_later(self, structure: Evaluation) -> None:
        after = self._retry_after.get(structure, _FIRST_RETRY_AFTER)
        self._retry_after[structure] = min(2 * after, _LAST_RETRY_AFTER)
        self._asked[structure] = 0
        self._retries[structure] = time.monotonic() + after

    def _compile(self, work: Evaluation, scratch: Path) -> None:
        """Compiles a function to `KERNEL` in a folder."""
        with subprocess.Popen(
            isolated("boxloss_server.engine.compiler", str(self._device), str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env=_environment(scratch),
            process_group=0,  # Of its own, with the C++ compiler that it starts.
        ) as compiler:
            self._compilers.add(compiler)
            if self._closed:
                _kill(compiler)
            try:
                faults = _communicate(compiler, pickle.dumps(work))
            except BaseException:
                _kill(compiler)
                raise
            finally:
                self._compilers.discard(compiler)
        if compiler.returncode:
            last = faults.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the compiler ended with status {compiler.returncode}: {''.join(last)}")

    def _load(self, work: Evaluation) -> Any:
        """The kernel that is kept, found to agree with the eager function."""
        name = self._name(work)
        self._cache.check(name)
        # Not torch._inductor.aoti_load_package, which imports the whole compiler to do this, for seconds.
        kernel = torch._C._aoti.AOTIModelPackageLoader(
            str(self._cache.path(name)), "model", False, 1, self._device.index or -1
        )
        planes = example(work).to(self._device)
        tolerance = _AGREEMENT[work.precision]
        actual = _run(kernel, _numbers_of(work, self._device), planes.clone())
        torch.testing.assert_close(actual, compute(work, planes), rtol=tolerance, atol=tolerance, equal_nan=True)
        return kernel

    def _is_kept(self, work: Evaluation) -> bool:
        return self._cache.path(self._name(work)).exists()

    def _name(self, work: Evaluation) -> str:
        """The name of a function's kernel, by all that the kernel depends on."""
        identity = f"{_structure_of(work)} {self._device.type} {torch.__version__} {_sources()}"
        if self._device.type == "cuda":
            identity += torch.cuda.get_device_name(self._device)
        losses = "+".join(loss.name for loss in work.losses)[:60]
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return f"{losses}-{work.box_format}-{work.precision}-{self._device.type}-{target()}-{digest}"


class _OutOfTimeError(Exception):
    """A compiler that might have got further with more time."""


def _communicate(compiler: subprocess.Popen[bytes], work: bytes | None) -> bytes:
    """Gives a compiler its work and waits for its end; returns what it wrote to standard error.

    Raises:
        _OutOfTimeError: it ran for too long.
    """
    deadline = time.monotonic() + _COMPILE_TIMEOUT
    while time.monotonic() < deadline:
        try:
            return compiler.communicate(work, timeout=_CPU_CHECK_INTERVAL)[1]
        except subprocess.TimeoutExpired:
            work = None  # It has been sent.
            if _cpu_seconds(compiler.pid) > _COMPILE_CPU_TIMEOUT:
                raise _OutOfTimeError(f"not compiled within {_COMPILE_CPU_TIMEOUT:g} s of CPU time") from None
    raise _OutOfTimeError(f"not compiled within {_COMPILE_TIMEOUT:g} s: the machine is busy, or the compiler hangs")


def _cpu_seconds(pid: int) -> float:
    """The CPU time that a process and those that it started have used."""
    seconds = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                times = each.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _environment(scratch: Path) -> dict[str, str]:
    """A compiler's environment: all its files are in one folder, and no Python that it starts heeds the user's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return inherited | {
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
    }


def _kill(compiler: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(compiler.pid, signal.SIGKILL)


def _run(kernel: Any, numbers: Tensor, batch: Tensor) -> Tensor:
    planes: Tensor = kernel.run([batch, numbers])[0]
    return planes


@lru_cache(_REMEMBERED)
def _structure_of(work: Evaluation) -> Evaluation:
    return structure_of(work)


@lru_cache(_REMEMBERED)
def _numbers_of(work: Evaluation, device: torch.device) -> Tensor:
    return torch.tensor(numbers_of(work), dtype=dtype_of(work), device=device)


_COMPILED = "compiler", "formats", "function"
"""Modules of this package that kernels are made of, or made by."""


@cache
def _sources() -> str:
    """What kernels are compiled from, as a digest."""
    root = Path(boxloss_server.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("losses/*.py"), *(root / "engine" / f"{name}.py" for name in _COMPILED)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Compiles the common functions for the CPU into a folder: `python -P -m boxloss_server.engine.kernels FOLDER`."""
    outcomes: list[str] = []
    kernels = Kernels(
        torch.device("cpu"), "ahead", Path(sys.argv[1]), len(COMMON), lambda outcome, _: outcomes.append(outcome)
    )
    kernels.prepare()
    kernels.close()
    sys.exit(not set(outcomes) <= {"compiled", "loaded"} or len(outcomes) < len(COMMON))


if __name__ == "__main__":
    main()
