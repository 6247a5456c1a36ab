"""The detector of examples/detector: pictures, assignment, and a training by a server that is the one in-process."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from benchmarks.detector import cost
from benchmarks.detector import main as benchmark
from benchmarks.errors import BenchmarkError
from examples.detector.__main__ import main
from examples.detector.agreement import Agreement, apart, nudge
from examples.detector.assignment import assign
from examples.detector.evaluation import average_precision, detect, quality, without_repeats
from examples.detector.model import STRIDE, Detector, cell_centers
from examples.detector.pictures import CLASSES, MOST, NOISE, SIDE, Picture, pictures
from examples.detector.training import SPEC, Recipe, Trained, batch_of, deterministic, held_out, in_process, train
from PIL import Image
from typer.testing import CliRunner, Result

import boxloss
from boxloss.torch import BoxLoss
from tests.servers import ServerProcess, answered, free_port

ROOT = Path(__file__).parent.parent
RECIPE = Recipe(steps=160, batch=8, seed=1)


def drawn(count: int = 60, seed: int = 7) -> list[Picture]:
    return list(islice(pictures((seed,)), count))


def figure(picture: Picture) -> torch.Tensor:
    """Which pixels differ from the ground, that being the median of those that no box holds."""
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    for left, top, right, bottom in picture.boxes.int().tolist():
        outside[top:bottom, left:right] = False
    ground = picture.pixels[:, outside].median(dim=1).values
    return (picture.pixels - ground[:, None, None]).abs().amax(dim=0) > 2 * NOISE


def test_the_same_seed_draws_the_same_pictures() -> None:
    for picture, again, other in zip(drawn(), drawn(), drawn(seed=8), strict=True):
        assert torch.equal(picture.pixels, again.pixels)
        assert torch.equal(picture.boxes, again.boxes)
        assert torch.equal(picture.classes, again.classes)
        assert not torch.equal(picture.pixels, other.pixels)


def test_no_training_sees_what_it_is_judged_on() -> None:
    judged = held_out(RECIPE, 20)
    for step in range(20):
        for pixels in batch_of(RECIPE, step).pixels:
            assert not any(torch.equal(pixels, picture.pixels) for picture in judged)


def test_boxes_are_the_edges_of_what_is_drawn() -> None:
    for picture in drawn():
        shapes = figure(picture)
        for left, top, right, bottom in picture.boxes.int().tolist():
            shape = shapes[top:bottom, left:right].clone()
            assert shape.shape == (bottom - top, right - left)
            for edge in (shape[0], shape[-1], shape[:, 0], shape[:, -1]):
                assert edge.any()
            shapes[top:bottom, left:right] = False
        assert not shapes.any(), "something is drawn that no box holds"


def test_shapes_are_what_their_class_says() -> None:
    seen = set()
    for picture in drawn():
        shapes = figure(picture)
        for (left, top, right, bottom), number in zip(
            picture.boxes.int().tolist(), picture.classes.tolist(), strict=True
        ):
            filled = shapes[top:bottom, left:right].float().mean().item()
            seen.add(number)
            expected = {"rectangle": 1, "ellipse": math.pi / 4, "triangle": 1 / 2}[CLASSES[number]]
            assert filled == pytest.approx(expected, abs=0.07)
    assert seen == set(range(len(CLASSES)))


def test_pictures_have_several_shapes_apart_from_each_other() -> None:
    counts = set()
    for picture in drawn():
        counts.add(len(picture.boxes))
        overlaps = torch.minimum(picture.boxes[:, None, 2:], picture.boxes[:, 2:]) - torch.maximum(
            picture.boxes[:, None, :2], picture.boxes[:, :2]
        )
        together = (overlaps >= 0).all(dim=2)
        assert together.sum() == len(picture.boxes), "two boxes touch"
    assert counts == set(range(1, 1 + MOST))


def test_an_object_has_the_cells_in_the_middle_half_of_its_box() -> None:
    box = torch.tensor([[8.0, 8, 40, 24]])
    targets = assign(box, torch.tensor([2]))
    assert cell_centers()[targets.positive].tolist() == [[20, 12], [28, 12], [20, 20], [28, 20]]
    assert targets.classes[targets.positive].tolist() == [2, 2, 2, 2]
    assert torch.equal(targets.boxes[targets.positive], box.expand(4, 4))
    assert not targets.classes[~targets.positive].any()
    assert not targets.boxes[~targets.positive].any()


def test_every_object_has_the_cell_around_its_center() -> None:
    for picture in drawn():
        targets = assign(picture.boxes, picture.classes)
        for box, number in zip(picture.boxes, picture.classes, strict=True):
            column, row = ((box[:2] + box[2:]) / 2 // STRIDE).int().tolist()
            cell = row * (SIDE // STRIDE) + column
            assert targets.positive[cell]
            assert torch.equal(targets.boxes[cell], box)
            assert targets.classes[cell] == number


def test_the_smallest_object_has_a_cell_that_several_ask_for() -> None:
    boxes = torch.tensor([[0.0, 0, 64, 64], [22, 22, 34, 34]])
    targets = assign(boxes, torch.tensor([0, 1]))
    small = cell_centers()[targets.classes == 1]
    assert small.tolist() == [[28, 28]]
    assert targets.positive.sum() == 16


def test_a_cell_predicts_a_box_around_its_center() -> None:
    boxes = Detector()(batch_of(RECIPE, 0).pixels).boxes
    assert boxes.shape == (RECIPE.batch, (SIDE // STRIDE) ** 2, 4)
    assert (boxes[..., :2] < cell_centers()).all()
    assert (boxes[..., 2:] > cell_centers()).all()


def test_detections_of_the_same_object_count_once() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 0, 30, 10]])
    assert without_repeats(boxes, torch.tensor([0, 0, 1, 0])) == [0, 2, 3]


def test_average_precision_is_the_area_under_the_best_precision() -> None:
    hits = np.array([False, True, True, True, False])
    scores = np.array([0.5, 0.9, 0.4, 0.3, 0.7], np.float32)  # By rank: hit, miss, miss, hit, hit.
    assert average_precision(scores, hits, objects=4) == pytest.approx((1 + 3 / 5 + 3 / 5) / 4)
    assert average_precision(scores[:0], hits[:0], objects=4) == 0


@dataclass
class Compared:
    """A training in-process that asked the server at each step as well, and one by the server."""

    here: Trained
    served: Trained
    agreement: Agreement
    calls: float


@pytest.fixture(scope="module")
def compared(server: ServerProcess, client: boxloss.Client) -> Compared:
    client.info()
    remote = BoxLoss(client, SPEC)
    agreement = Agreement(in_process, remote)
    with deterministic():
        here = train(RECIPE, in_process, agreement)
        before = answered(server)
        served = train(RECIPE, remote)
    return Compared(here, served, agreement, answered(server) - before)


def test_each_step_agrees(compared: Compared) -> None:
    assert len(compared.agreement.losses) == len(compared.agreement.gradients) == RECIPE.steps
    assert max(compared.agreement.losses) < 1e-5
    assert 0 < max(compared.agreement.gradients) < 1e-5  # Equal bits would mean that nothing was compared.


def test_two_trainings_agree_until_rounding_has_grown(compared: Compared) -> None:
    here, served = compared.here.losses, compared.served.losses
    assert max(apart(here[:20], served[:20])) < 1e-5
    assert np.mean(served[-20:]) == pytest.approx(np.mean(here[-20:]), rel=0.1)


def test_in_double_precision_they_agree_for_longer(client: boxloss.Client) -> None:
    recipe = Recipe(steps=40, batch=2, dtype=torch.float64)
    with deterministic():
        here, served = (train(recipe, loss).losses for loss in (in_process, BoxLoss(client, SPEC)))
    assert here[-1] < here[0]
    assert max(apart(here, served)) < 1e-11


def test_a_step_is_one_call(compared: Compared) -> None:
    assert compared.calls == RECIPE.steps


def test_it_learns_by_the_service(compared: Compared) -> None:
    losses = compared.served.losses
    assert np.mean(losses[-20:]) < losses[0] / 2
    seen = held_out(RECIPE, 100)
    found = detect(compared.served.model, seen)
    trained = quality(found, seen)
    chances = quality(found[1:] + found[:1], seen), quality(detect(Detector(), seen), seen)
    for chance in chances:  # The detections of other pictures, and those of an untrained model.
        assert trained.ap50 > 0.25 > 5 * chance.ap50
        assert trained.mean_iou > 0.1 > 5 * chance.mean_iou


def test_the_same_training_has_the_same_curve() -> None:
    recipe = Recipe(steps=5, batch=2)
    with deterministic():
        first, second, other = (train(each, in_process).losses for each in (recipe, recipe, replace(recipe, seed=1)))
    assert first == second != other


def test_the_nudge_is_the_least_that_the_type_can_tell() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[1.0, 2, 5, 8]])
    value = in_process(*boxes)
    nudged = nudge(in_process)(*boxes)
    assert 0 < nudged - value < 2.5e-7 * value


def command(*flags: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, flags)


def test_the_command_writes_curves_and_pictures(server: ServerProcess, tmp_path: Path) -> None:
    before = answered(server)
    output = tmp_path / "new" / "detector"
    ended = command("--steps=12", "--batch=2", "--address", server.address, "--output", str(output))
    assert ended.exit_code == 0, ended.output
    assert answered(server) == before + 2 * 12
    assert "AP50" in ended.stdout
    curves = json.loads((output / "curves.json").read_text())
    assert len(curves) == 5
    assert all(len(curve) == 12 for curve in curves.values())
    for name in ("detector-curves.png", "detector-pictures.png"):
        with Image.open(output / name) as picture:
            assert picture.width > 800
            assert len(picture.getcolors() or ()) > 10


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--steps=0", "--steps"),
        ("--batch=0", "--batch"),
        ("--seed=-1", "--seed"),
        ("--precision=float16", "--precision"),
        (f"--output={__file__}", "--output"),
    ],
)
def test_wrong_flags_are_explained(flag: str, said: str) -> None:
    ended = command(flag)
    assert ended.exit_code == 2
    assert f"Invalid value for '{said}'" in ended.stderr


def test_without_a_server_nobody_waits_for_a_training(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    ended = command("--address", address, "--output", str(tmp_path / "detector"))
    assert ended.exit_code == 1
    assert ended.output.startswith("detector: ")
    assert address in ended.output
    assert not list(tmp_path.iterdir())


def run(*arguments: str) -> str:
    """What a module prints that runs as a program."""
    program = [sys.executable, "-m", *arguments]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_command_starts() -> None:
    assert "--precision" in run("examples.detector", "--help")


def test_the_cost_of_a_step_is_measured() -> None:
    printed = run("benchmarks.detector", "--pictures=1,2", "--rounds=1")
    assert "Medians of 1 rounds" in printed
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    assert [int(row[0]) for row in rows] == [1, 2]
    assert all(float(step) > 0 for row in rows for step in row[2:4])


def test_a_cost_is_that_of_the_same_loss(client: boxloss.Client) -> None:
    batch = batch_of(Recipe(batch=1), 0)
    with deterministic():
        measured = cost(batch, BoxLoss(client, SPEC), rounds=2)
    assert measured.pairs == batch.targets.positive.sum()
    assert [len(way) for way in (*measured.steps, *measured.losses)] == [2, 2, 2, 2]
    with pytest.raises(BenchmarkError, match=r"in-process and .* remote"):
        cost(batch, BoxLoss(client, boxloss.GIoU()), rounds=1)


@pytest.mark.parametrize("numbers", ["", "1,none", "0", "1,-2"])
def test_wrong_batches_are_explained(numbers: str) -> None:
    app = typer.Typer()
    app.command()(benchmark)
    ended = CliRunner().invoke(app, [f"--pictures={numbers}"])
    assert ended.exit_code == 2
    assert "Invalid value for --pictures" in ended.stderr
