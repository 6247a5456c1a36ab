"""Kernels: compiled functions. A function runs eagerly until its kernel is there."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import structlog
import torch
from filelock import FileLock
from torch import Tensor

import boxloss_server
from boxloss.losses import AlphaIoU, CIoU, DIoU, EIoU, FocalEIoU, GIoU, IoU, SmoothL1
from boxloss_server.engine.compiler import target
from boxloss_server.engine.function import compute, dtype_of, example, numbers_of, structure_of
from boxloss_server.engine.pairs import Evaluation

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
_PATIENCE = 600.0
"""Seconds that a compiler may take: some functions of oriented boxes take it very long."""
_AGREEMENT = {"float32": 1e-3, "float64": 1e-8}

_log = structlog.get_logger()


class Kernels:
    """The kernels of one device.

    Args:
        device: what they run on.
        mode: when functions are compiled: "background" (once they are asked for often), "ahead" (as in the
            background, and the common ones in `prepare`) or "off" (never, and nothing is loaded).
        folder: where kernels are kept; only its owner should be able to write there, since what it holds is run.
        limit: most kernels; what callers ask for beyond runs eagerly.
        compiled: called with "compiled", "loaded" or "failed" and the seconds it took, from another thread.
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
        self._folder = folder
        self._limit = limit
        self._heard = compiled
        self._has_compiler = mode != "off" and shutil.which(os.environ.get("CXX") or "g++") is not None
        if mode != "off" and not self._has_compiler:
            _log.warning("no C++ compiler: functions without a kernel in the cache run eagerly; install g++")
        self._kernels: dict[Evaluation, Any] = {}
        self._asked: Counter[Evaluation] = Counter()
        self._obtaining: dict[Evaluation, Future[None]] = {}
        self._threads = ThreadPoolExecutor(os.cpu_count() if mode == "ahead" else 1, "boxloss-compiler")
        self._compilers: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def of(self, work: Evaluation) -> Kernel:
        """The work's kernel, or its eager function."""
        structure = _structure_of(work)
        kernel = self._kernels.get(structure)
        if kernel is not None:
            return partial(self._run, kernel, work)
        if self._mode != "off" and structure not in self._obtaining:
            self._ask(structure, work)
        return partial(compute, work)

    def prepare(self) -> None:
        """Loads the common functions that have been compiled; "ahead", compiles the others."""
        if self._mode != "off":
            for work in COMMON:
                if self._mode == "ahead" or self._path(work).exists():
                    self._obtain(_structure_of(work), work)
            self.wait()

    def wait(self) -> None:
        """Waits for the kernels that are being obtained."""
        for obtained in list(self._obtaining.values()):
            obtained.result()

    def close(self) -> None:
        """Ends compilation; what is under way is lost."""
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
        self._kernels.pop(_structure_of(work), None)
        _log.error("a kernel fails and is dropped; its function runs eagerly", work=repr(work), error=fault)
        return planes

    def _ask(self, structure: Evaluation, work: Evaluation) -> None:
        """Counts the batches of a function; obtains its kernel once that is worth it."""
        if len(self._asked) >= _REMEMBERED:
            self._asked.clear()
        self._asked[structure] += 1
        times = self._asked[structure]
        if (times == 1 and self._path(work).exists()) or (times == _WORTH and self._has_compiler):
            self._obtain(structure, work)

    def _obtain(self, structure: Evaluation, work: Evaluation) -> None:
        if len(self._obtaining) < self._limit and not self._closed:
            self._obtaining[structure] = self._threads.submit(self._load_or_compile, structure, work)

    def _load_or_compile(self, structure: Evaluation, work: Evaluation) -> None:
        started = time.perf_counter()
        path = self._path(work)
        name = path.stem
        try:
            outcome = "loaded"
            if not path.exists():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = FileLock(f"{path}.lock")  # Another process may be compiling it.
                with lock.acquire(cancel_check=lambda: self._closed):
                    if not path.exists():
                        outcome = "compiled"
                        self._compile(work, path)
            self._kernels[structure] = self._load(work, path)
        except Exception as error:
            if self._closed:
                return
            outcome = "failed"
            _log.error("no kernel; the function goes on running eagerly", function=name, error=str(error))
        seconds = time.perf_counter() - started
        self._heard(outcome, seconds)
        _log.info("kernel", function=name, outcome=outcome, seconds=round(seconds, 3))

    def _compile(self, work: Evaluation, path: Path) -> None:
        unfinished = path.with_suffix(".unfinished.pt2")
        try:
            with tempfile.TemporaryDirectory(prefix="boxloss-compiler-") as scratch:
                self._run_compiler(work, unfinished, scratch)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _run_compiler(self, work: Evaluation, path: Path, scratch: str) -> None:
        compiler = subprocess.Popen(
            [sys.executable, "-m", "boxloss_server.engine.compiler", str(self._device), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": scratch},
            process_group=0,  # Of its own, with the C++ compiler that it starts.
        )
        self._compilers.add(compiler)
        if self._closed:
            _kill(compiler)
        try:
            _, faults = compiler.communicate(pickle.dumps(work), timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            _kill(compiler)
            compiler.communicate()
            raise RuntimeError(f"not compiled within {_PATIENCE:g} s") from None
        finally:
            self._compilers.discard(compiler)
        if compiler.returncode:
            last = faults.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the compiler ended with status {compiler.returncode}: {''.join(last)}")

    def _load(self, work: Evaluation, path: Path) -> Any:
        """The kernel of a file, found to agree with the eager function."""
        # Not torch._inductor.aoti_load_package, which imports the whole compiler to do this, for seconds.
        kernel = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, self._device.index or -1)
        planes = example(work).to(self._device)
        tolerance = _AGREEMENT[work.precision]
        actual = _run(kernel, _numbers_of(work, self._device), planes.clone())
        torch.testing.assert_close(actual, compute(work, planes), rtol=tolerance, atol=tolerance, equal_nan=True)
        return kernel

    def _path(self, work: Evaluation) -> Path:
        """The file of a function's kernel, named by all that the kernel depends on."""
        identity = f"{_structure_of(work)} {self._device.type} {torch.__version__} {_sources()}"
        if self._device.type == "cuda":
            identity += torch.cuda.get_device_name(self._device)
        losses = "+".join(loss.name for loss in work.losses)[:60]
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return self._folder / f"{losses}-{work.box_format}-{work.precision}-{self._device.type}-{target()}-{digest}.pt2"


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
    """Compiles the common functions for the CPU into a folder, `python -m boxloss_server.engine.kernels FOLDER`."""
    outcomes: list[str] = []
    kernels = Kernels(
        torch.device("cpu"), "ahead", Path(sys.argv[1]), len(COMMON), lambda outcome, _: outcomes.append(outcome)
    )
    kernels.prepare()
    kernels.close()
    sys.exit("failed" in outcomes or len(outcomes) < len(COMMON))


if __name__ == "__main__":
    main()
