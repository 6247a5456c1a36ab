"""Compiles one function to a kernel file, in a process of its own.

Compilation takes half a minute of a CPU. Here it disturbs nobody: it has the lowest priority and its own interpreter.
"""

from __future__ import annotations

import os
import pickle
import platform
import sys
from typing import Any

import torch
from torch import Tensor

from boxloss_server.engine.function import compute, dtype_of, example, numbers_of, with_numbers
from boxloss_server.engine.pairs import Evaluation


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


def compile_kernel(work: Evaluation, device: str, path: str) -> None:
    """Compiles the function of a work. The kernel takes planes and numbers, and gives the planes of `compute`."""
    from torch._inductor import aoti_compile_and_package, config

    inputs = example(work).to(device), torch.tensor(numbers_of(work), dtype=dtype_of(work), device=device)
    pairs = torch.export.Dim("pairs", min=2)
    exported = torch.export.export(trace(work, inputs), inputs, dynamic_shapes=({1: pairs}, None))
    with config.patch(_options()):
        aoti_compile_and_package(exported, package_path=path)


def _options() -> dict[str, Any]:
    options: dict[str, Any] = {
        "compile_threads": 1,
        # Batches are small: starting threads would take longer than they save. Large ones are cut into tiles.
        "cpp.threads": 1,
        "aot_inductor.compile_wrapper_opt_level": "O0",
    }
    if _has_avx2():
        # Not for this processor alone: an image with kernels runs on others. AVX-512 was no faster.
        options |= {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
    return options


def _has_avx2() -> bool:
    return platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def main() -> None:
    """Compiles the work on standard input, as Kernels sends it, for a device to a path."""
    os.nice(19)
    torch.set_num_threads(1)
    device, path = sys.argv[1:]
    compile_kernel(pickle.load(sys.stdin.buffer), device, path)


if __name__ == "__main__":
    main()
