"""Compiles one function to a kernel, in a process of its own.

Compilation takes half a minute of a CPU. Here it disturbs few: it has a low priority and its own interpreter.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import sys
import threading
import time
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

from boxloss_server.engine.function import compute, dtype_of, example, numbers_of, with_numbers
from boxloss_server.engine.pairs import Evaluation

KERNEL = "kernel"
"""The folder that is made, in the current one: an unpacked package of AOTInductor, which is loaded from where it is.
torch would unpack a packed one into the temporary folder each time, and leave that there."""

NICENESS = 5
"""A quarter of a core beside a process that keeps it busy: a kernel in minutes there. With 10 it is a tenth, and with
19 a hundredth, so that a busy server would go on for hours with functions that are ten times slower."""
_PARENT_CHECK_INTERVAL = 0.2


def target() -> str:
    """The processors that kernels compiled here run on, as a word."""
    return f"{platform.machine()}-{'avx2' if _has_avx2() else torch.backends.cpu.get_cpu_capability()}".lower()


def trace(work: Evaluation, inputs: tuple[Tensor, Tensor]) -> torch.fx.GraphModule:
    """The function of a work as a graph, value and gradient in one; its inputs are planes and numbers."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(batch: Tensor, numbers: Tensor) -> Tensor:
        return compute(with_numbers(work, iter(numbers.unbind())), batch)

    graph = make_fx(function, tracing_mode="symbolic")(*inputs)
    graph.graph.eliminate_dead_code()
    return graph


def compile_kernel(work: Evaluation, device: str) -> None:
    """Compiles the function of a work to `KERNEL`, which takes planes and numbers and gives what `compute` does."""
    from torch._inductor import aoti_compile_and_package, config

    inputs = example(work).to(device), torch.tensor(numbers_of(work), dtype=dtype_of(work), device=device)
    pairs = torch.export.Dim("pairs", min=2)
    exported = torch.export.export(trace(work, inputs), inputs, dynamic_shapes=({1: pairs}, None))
    with config.patch(_options()):
        package = aoti_compile_and_package(exported, package_path=os.path.abspath(f"{KERNEL}.pt2"))
    with ZipFile(package) as packed:
        packed.extractall()  # Its folder has the name of the package.


def _options() -> dict[str, Any]:
    options: dict[str, Any] = {
        "compile_threads": 1,
        # Batches are small: starting threads would take longer than they save. Large ones are cut into tiles.
        "cpp.threads": 1,
        "aot_inductor.compile_wrapper_opt_level": "O0",
        # A compiler uses each header once: compiling them ahead took a third of its time, and 280 MB of disk.
        "aot_inductor.precompile_headers": False,
        "cpp_cache_precompile_headers": False,
    }
    if _has_avx2():
        # Not for this processor alone: an image with kernels runs on others. AVX-512 was no faster.
        options |= {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
    return options


def _has_avx2() -> bool:
    return platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _end_with(parent: int) -> None:
    """Ends this process and those that it started when the process that started it has ended."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_INTERVAL)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Compiles the work on standard input, as Kernels sends it, for a device, in the current folder."""
    device, parent = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    os.umask(0o077)
    os.nice(NICENESS)
    torch.set_num_threads(1)
    compile_kernel(pickle.load(sys.stdin.buffer), device)
