"""Kernels: compiled functions give what the eager ones do, for any parameters; kept, bounded and dispensable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from structlog.testing import capture_logs

from boxloss import BCD, GWD, KLD, CIoU, Focal, Focaler, GIoU, Inner, IoU, KFIoU, Loss, MPDIoU, ProbIoU, SmoothL1
from boxloss_server.engine import Engine, Evaluation, Kernels, Pairs, Scores, kernels
from boxloss_server.engine.compiler import trace
from boxloss_server.engine.function import compute, dtype_of, example, numbers_of, structure_of, with_numbers
from tests.boxes import random_boxes
from tests.catalogue import LOSSES
from tests.traps import Traps

pytestmark = pytest.mark.timeout(600)  # Compiling takes half a minute, and more where others compute.

CPU = torch.device("cpu")
SIMPLE = Evaluation((SmoothL1(beta=2.0),), "xyxy", "float64", prediction_gradients=True, target_gradients=False)


def mixed(beta: float, gamma: float, upper: float) -> Evaluation:
    losses = SmoothL1(beta=beta), Focal(Focaler(Inner(CIoU(), ratio=0.8), upper=upper), gamma=gamma), MPDIoU()
    return Evaluation(losses, "cxcywh", "float32", prediction_gradients=True, target_gradients=True)


MIXED = mixed(beta=1.0, gamma=0.5, upper=0.9)


def pairs(seed: int, count: int, work: Evaluation) -> Pairs:
    rng = np.random.default_rng(seed)
    boxes = [random_boxes(rng, count) for _ in range(2)]
    if work.box_format == "cxcywh":
        boxes = [np.hstack([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]]) for box in boxes]
    first, second = (box.astype(work.precision) for box in boxes)
    return Pairs(first, second, squared_image_diagonal=1e4)


def evaluate(engine: Engine, work: Evaluation, *requests: Pairs) -> list[Scores]:
    return engine.evaluate(work, requests)  # type: ignore[return-value]


def assert_equal(first: list[Scores], second: list[Scores], tolerance: float) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.iou, other.iou, rtol=tolerance, atol=tolerance)
        for score, twin in zip(one.scores, other.scores, strict=True):
            for array, expected in zip(score[:3], twin[:3], strict=True):
                if array is None or expected is None:
                    assert array is expected
                else:
                    np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance)


class Heard:
    """Kernels, and what they told."""

    def __init__(self, folder: Path, limit: int = 8, mode: Any = "background") -> None:
        self.outcomes: list[str] = []
        self.kernels = Kernels(CPU, mode, folder, limit, lambda outcome, _: self.outcomes.append(outcome))
        self.engine = Engine(CPU, self.kernels)

    def ask(self, work: Evaluation, times: int = 20) -> None:
        """Asks often enough for a kernel, and waits for it."""
        for _ in range(times):
            self.kernels.of(work)
        self.kernels.wait()


@pytest.fixture
def eager() -> Engine:
    return Engine(CPU, Kernels(CPU))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all processes that run these tests, so that one of them compiles."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "kernels"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Traps:
    return Traps(tmp_path_factory.mktemp("traps"))


@pytest.fixture(scope="module")
def compiled(folder: Path, traps: Traps) -> Iterator[Heard]:
    """Kernels of two functions, compiled while traps lie where Python might look for code."""
    heard = Heard(folder, mode="ahead")  # On all cores.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(traps.folder)
        patch.setenv("PYTHONPATH", str(traps.folder))
        for _ in range(20):
            heard.kernels.of(SIMPLE)
            heard.kernels.of(MIXED)
        heard.kernels.wait()
    assert heard.outcomes in (["compiled", "compiled"], ["loaded", "loaded"])
    yield heard
    heard.kernels.close()


def test_the_compiler_runs_no_code_of_the_current_folder_or_of_python_variables(compiled: Heard, traps: Traps) -> None:
    assert traps.sprung() == set()


def test_a_kernel_is_all_that_compiling_leaves(compiled: Heard, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {compiled.kernels._name(work) for work in (SIMPLE, MIXED)}


def test_loading_a_kernel_leaves_nothing_in_the_temporary_folder(
    compiled: Heard, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    heard = Heard(folder)
    heard.ask(SIMPLE, times=1)
    assert heard.outcomes == ["loaded"]
    assert not list(tmp_path.iterdir())
    heard.kernels.close()


def test_a_kernel_that_others_may_change_is_not_loaded(compiled: Heard, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (library,) = tmp_path.glob("copy/smooth_l1-*/data/aotinductor/model/*.so")
    library.chmod(0o602)
    heard = Heard(tmp_path / "copy")
    with capture_logs() as logs:
        heard.ask(SIMPLE, times=1)
    assert heard.outcomes == ["failed"]
    assert f"{library} can be written to by others (mode 602)" in logs[0]["error"]
    heard.kernels.close()


@pytest.mark.parametrize(("work", "tolerance"), [(SIMPLE, 1e-12), (MIXED, 1e-5)], ids=["float64", "float32"])
def test_a_kernel_gives_what_the_eager_function_does(
    compiled: Heard, eager: Engine, work: Evaluation, tolerance: float
) -> None:
    requests = [pairs(seed, count, work) for seed, count in enumerate([1, 0, 63, 64, 65, 20_000])]
    assert_equal(evaluate(compiled.engine, work, *requests), evaluate(eager, work, *requests), tolerance)


def test_other_parameters_need_no_other_kernel(compiled: Heard, eager: Engine) -> None:
    other = mixed(beta=3.5, gamma=1.7, upper=0.6)
    request = pairs(7, 100, other)
    before = list(compiled.outcomes)
    assert_equal(evaluate(compiled.engine, other, request), evaluate(eager, other, request), 1e-5)
    assert compiled.outcomes == before


def test_neighbors_do_not_change_a_bit(compiled: Heard) -> None:
    request = pairs(8, 50, MIXED)
    (alone,) = evaluate(compiled.engine, MIXED, request)
    together = evaluate(compiled.engine, MIXED, pairs(9, 1001, MIXED), request, pairs(10, 77, MIXED))[1]
    assert_equal([alone], [together], 0)


def test_kernels_outlive_the_process_and_need_no_compiler(
    compiled: Heard, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with capture_logs() as logs:
        heard = Heard(folder)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
        "no C++ compiler: functions without a kernel in the cache run eagerly; install g++"
    ]
    heard.ask(SIMPLE, times=1)
    assert heard.outcomes == ["loaded"]
    heard.ask(Evaluation((GIoU(),), "xyxy", "float64", True, False))
    assert heard.outcomes == ["loaded"]
    heard.kernels.close()


def test_no_more_kernels_than_the_limit(compiled: Heard, folder: Path) -> None:
    heard = Heard(folder, limit=1)
    heard.ask(SIMPLE, times=1)
    heard.ask(MIXED, times=1)
    assert heard.outcomes == ["loaded"]
    heard.kernels.close()


def test_what_is_asked_for_seldom_is_not_compiled(tmp_path: Path) -> None:
    heard = Heard(tmp_path)
    heard.ask(SIMPLE, times=3)
    assert heard.outcomes == []
    heard.kernels.close()


def test_off_means_that_nothing_is_even_loaded(compiled: Heard, folder: Path) -> None:
    heard = Heard(folder, mode="off")
    heard.ask(SIMPLE)
    assert heard.outcomes == []


def test_a_spoilt_kernel_is_not_used(compiled: Heard, eager: Engine, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (library,) = tmp_path.glob("copy/smooth_l1-*/data/aotinductor/model/*.so")
    library.write_bytes(b"no kernel")
    heard = Heard(tmp_path / "copy")
    heard.ask(SIMPLE, times=1)
    assert heard.outcomes == ["failed"]
    request = pairs(11, 10, SIMPLE)
    assert_equal(evaluate(heard.engine, SIMPLE, request), evaluate(eager, SIMPLE, request), 0)
    heard.kernels.close()


def test_a_kernel_of_another_function_is_not_used(compiled: Heard, folder: Path, tmp_path: Path) -> None:
    other = Evaluation((IoU(),), "xyxy", "float64", prediction_gradients=True, target_gradients=False)
    heard = Heard(tmp_path)
    shutil.copytree(folder / heard.kernels._name(SIMPLE), tmp_path / heard.kernels._name(other))
    heard.ask(other, times=1)
    assert heard.outcomes == ["failed"]
    heard.kernels.close()


def test_a_failing_compiler_leaves_the_function_eager(
    compiled: Heard, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    clock = Clock(monkeypatch)
    heard = Heard(tmp_path)
    with capture_logs() as logs:
        heard.ask(SIMPLE)
    assert heard.outcomes == ["failed"]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "no kernel; the function goes on running eagerly"
    ]
    # What another server has compiled meanwhile is found at the next try.
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    clock.now += 600
    heard.ask(SIMPLE, times=1)
    assert heard.outcomes == ["failed", "loaded"]
    heard.kernels.close()


def test_closing_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    heard = Heard(tmp_path)
    for _ in range(20):
        heard.kernels.of(SIMPLE)
    heard.kernels.close()
    assert heard.outcomes == []
    assert not list(tmp_path.iterdir())


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        time = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        monkeypatch.setattr(kernels, "time", time)


def test_a_compiler_that_uses_too_much_cpu_time_is_tried_again_after_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_COMPILE_CPU_TIMEOUT", 0.1)
    clock = Clock(monkeypatch)
    heard = Heard(tmp_path)
    with capture_logs() as logs:
        heard.ask(SIMPLE)
    assert heard.outcomes == ["postponed"]
    assert [line["error"] for line in logs if line["log_level"] == "warning"] == [
        "not compiled within 0.1 s of CPU time"
    ]
    assert not [line for line in logs if line["log_level"] == "error"]
    for pause in (600, 1200):
        before = list(heard.outcomes)
        clock.now += pause - 1
        heard.ask(SIMPLE)
        assert heard.outcomes == before
        clock.now += 1
        heard.ask(SIMPLE)
        assert heard.outcomes == [*before, "postponed"]
    assert not list(tmp_path.iterdir())
    heard.kernels.close()


def test_a_compiler_that_gets_no_time_makes_room_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_COMPILE_TIMEOUT", 0)
    heard = Heard(tmp_path)
    heard.ask(SIMPLE)
    heard.ask(MIXED)
    assert heard.outcomes == ["postponed", "postponed"]
    heard.kernels.close()


@pytest.mark.timeout(60)
def test_closing_does_not_wait_for_another_process_that_compiles(tmp_path: Path) -> None:
    heard = Heard(tmp_path)
    with FileLock(tmp_path / f"{heard.kernels._name(SIMPLE)}.lock"):
        for _ in range(20):
            heard.kernels.of(SIMPLE)
        heard.kernels.close()
    assert heard.outcomes == []


FUNCTIONS: dict[str, tuple[Any, tuple[Loss, ...]]] = {
    "axis-aligned": ("xywh", tuple(LOSSES)),
    "oriented": ("cxcywha_degrees", (GIoU(), ProbIoU(), GWD(), KLD(), BCD(), KFIoU())),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_loss_traces_to_one_graph_whose_inputs_are_its_parameters(kind: str) -> None:
    box_format, losses = FUNCTIONS[kind]
    work = Evaluation(losses, box_format, "float64", prediction_gradients=True, target_gradients=True)
    numbers = torch.tensor(numbers_of(work), dtype=dtype_of(work))
    planes = example(work)
    graph = trace(work, (planes.clone(), numbers))
    assert structure_of(work) == structure_of(with_numbers(work, iter((numbers * 1.01).tolist())))
    other = with_numbers(work, iter((numbers * 1.01).tolist()))
    longer = torch.cat([planes, planes.flip(1)], 1)
    torch.testing.assert_close(
        graph(longer.clone(), numbers * 1.01), compute(other, longer), rtol=1e-10, atol=1e-12, equal_nan=True
    )
