"""The regression simulation of the DIoU paper, with few of its cases."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from examples.simulation import gradients, published
from examples.simulation.__main__ import run
from examples.simulation.cases import PER_POINT, POINTS, cases_at, scatter, written
from examples.simulation.contenders import ALL, PAPER
from examples.simulation.descent import Descent, descend
from examples.simulation.gradients import FIRST_MEAN, IMAGE_SIZE, Source
from examples.simulation.published import DEPARTURES, PUBLISHED, Departure, program
from examples.simulation.results import stored

import boxloss
from boxloss import WIoU
from boxloss.contract.arrays import Array
from boxloss.contract.words import BoxFormat
from boxloss.losses import CATALOGUE, CIoU, DIoU, EIoU, GIoU, IoU, Loss, MPDIoU
from boxloss.losses.notation import label
from boxloss_server import losses
from tests.programs import compilers, tool
from tests.servers import ServerProcess, answered, wait_until

FEW = scatter(6, seed=3)
"""2,058 cases."""


@pytest.fixture(scope="module")
def process() -> Iterator[Source]:
    with gradients.process() as source:
        yield source


@pytest.fixture(scope="module")
def ends(process: Source) -> Mapping[str, Mapping[Loss, Descent]]:
    """What the paper's losses end in, by coordinates."""
    formats: tuple[BoxFormat, ...] = ("cxcywh", "xyxy")
    return {
        coordinates: {loss: descend(process, loss, FEW, coordinates=coordinates) for loss in PAPER}
        for coordinates in formats
    }


def test_there_are_as_many_cases_as_in_the_paper() -> None:
    assert PER_POINT * POINTS == 1_715_000
    anchors, targets = cases_at(scatter(2))
    assert anchors.shape == targets.shape == (2 * PER_POINT, 4)
    assert len(np.unique(np.hstack([anchors, targets]).round(9), axis=0)) == 2 * PER_POINT


def test_points_fill_the_disc_evenly() -> None:
    distance = np.hypot(*(scatter() - 10).T)
    assert distance.max() < 3
    shares = np.histogram(distance**2, 9, (0, 9))[0] / POINTS
    assert shares == pytest.approx(1 / 9, abs=0.02)


def test_targets_and_anchors_have_the_papers_areas_and_shapes() -> None:
    shapes = [1 / 4, 1 / 3, 1 / 2, 1, 2, 3, 4]
    anchors, targets = cases_at(scatter(1))
    assert np.all(targets[:, :2] == 10)
    assert targets[:, 2:].prod(axis=1) == pytest.approx(1)
    assert np.unique((targets[:, 2] / targets[:, 3]).round(9)) == pytest.approx(shapes)
    assert np.unique(anchors[:, 2:].prod(axis=1).round(9)) == pytest.approx([0.5, 0.67, 0.75, 1, 1.33, 1.5, 2])
    assert np.unique((anchors[:, 2] / anchors[:, 3]).round(9)) == pytest.approx(shapes)


def test_steps_are_the_papers() -> None:
    """0.1 (2 - IoU) of the gradient; a tenth of it from 80 % of the iterations, and again from 90 %."""

    def widens(overlap: float) -> Descent:
        def constant(boxes: Array, targets: Array) -> tuple[Array, Array]:
            return np.full(len(boxes), overlap), np.tile([0.0, 0, -1, 0], (len(boxes), 1))

        return descend(lambda loss, box_format: constant, IoU(), FEW)

    steps = np.diff(widens(0).curve)
    assert steps[30:160] == pytest.approx(0.2)  # All boxes are wider than their targets by then.
    assert steps[160:180] == pytest.approx(0.02)
    assert steps[180:] == pytest.approx(0.002)
    assert np.diff(widens(0.5).curve)[30:160] == pytest.approx(0.15)


def test_an_error_is_the_sum_over_center_and_sides_in_either_coordinates(
    ends: Mapping[str, Mapping[Loss, Descent]],
) -> None:
    anchors, targets = cases_at(FEW)
    for coordinates in ("cxcywh", "xyxy"):
        start = ends[coordinates][IoU()].curve[0]
        assert start == pytest.approx(np.abs(anchors - targets).sum(axis=1).mean())


def test_sides_never_become_negative() -> None:
    def shrinks(boxes: Array, targets: Array) -> tuple[Array, Array]:
        sides = boxes[:, 2:] if box_format == "cxcywh" else boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= 0
        gradient = {"cxcywh": [0.0, 0, 1, 1], "xyxy": [-1.0, -1, 1, 1]}[box_format]
        return np.zeros(len(boxes)), np.tile(gradient, (len(boxes), 1))

    for box_format in ("cxcywh", "xyxy"):
        descend(lambda loss, box_format: shrinks, IoU(), FEW, coordinates=box_format)


@pytest.mark.parametrize("coordinates", ["cxcywh", "xyxy"])
def test_the_order_of_the_losses(coordinates: str, ends: Mapping[str, Mapping[Loss, Descent]]) -> None:
    error = {type(loss): descent.curve[-1] for loss, descent in ends[coordinates].items()}
    assert error[IoU] > 2 * max(error[GIoU], error[DIoU])
    assert error[CIoU] < min(error[GIoU], error[DIoU])
    assert error[EIoU] < error[CIoU]


@pytest.mark.parametrize("loss", [*PAPER, WIoU(version=3), MPDIoU()], ids=label)
def test_the_service_gives_the_same_errors_as_this_process(loss: Loss, client: boxloss.Client, process: Source) -> None:
    served = descend(gradients.service(client), loss, FEW[:3])
    computed = descend(process, loss, FEW[:3])
    assert served.final == pytest.approx(computed.final, abs=1e-5)
    assert served.curve == pytest.approx(computed.curve, abs=1e-5)


def test_a_compiler_under_way_ends_with_the_descents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool("g++")
    monkeypatch.setenv("BOXLOSS_COMPILE", "background")
    monkeypatch.setenv("BOXLOSS_KERNEL_CACHE", str(tmp_path))
    with gradients.process() as source:
        descend(source, GIoU(), FEW[:1], iterations=20)
        wait_until(lambda: bool(compilers(psutil.Process())), "a compiler starts")
    assert not compilers(psutil.Process())


def test_every_axis_aligned_loss_of_the_catalogue_takes_part() -> None:
    assert {loss.name for loss in ALL} == {
        name for name, kind in CATALOGUE.items() if not kind.__module__.endswith("oriented")
    }


@pytest.mark.parametrize("box_format", ["cxcywh", "xyxy"])
@pytest.mark.parametrize("loss", ALL, ids=label)
def test_gradients_are_those_of_the_loss_in_torch(loss: Loss, box_format: BoxFormat, process: Source) -> None:
    anchors, targets = (torch.from_numpy(written(boxes, box_format)) for boxes in cases_at(FEW[:1]))
    anchors.requires_grad_()

    def corners(boxes: torch.Tensor) -> torch.Tensor:
        half = boxes[:, 2:] / 2
        return boxes if box_format == "xyxy" else torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], dim=1)

    values = losses.box_loss(corners(anchors), corners(targets), loss, image_size=IMAGE_SIZE, running_mean=FIRST_MEAN)
    (expected,) = torch.autograd.grad(values.sum(), anchors)
    overlap = 1 - losses.box_loss(corners(anchors.detach()), corners(targets), IoU())
    iou, gradient = process(loss, box_format)(anchors.detach().numpy(), targets.numpy())
    assert gradient == pytest.approx(expected.numpy(), abs=1e-12)
    assert iou == pytest.approx(overlap.numpy(), abs=1e-12)


def command(*flags: str) -> str:
    """Runs the command; what it exits with, "0" where all went well."""
    with pytest.raises(SystemExit) as end:
        run(flags)
    return str(end.value)


def near(seed: int) -> tuple[Array, Array]:
    """Pairs without ties, where one-sided derivatives differ."""
    anchors, targets = cases_at(FEW)
    return anchors + np.random.default_rng(seed).normal(0, 0.01, anchors.shape), targets


@pytest.mark.parametrize("loss", PUBLISHED, ids=label)
def test_without_departures_the_papers_program_has_exact_gradients(loss: Loss, process: Source) -> None:
    iou, gradient = program()(loss, "cxcywh")(*near(0))
    exact_iou, exact = process(loss, "cxcywh")(*near(0))
    assert iou == pytest.approx(exact_iou, abs=1e-12)
    assert gradient == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("departure", DEPARTURES)
def test_every_departure_changes_the_losses_that_have_it_alone(departure: Departure) -> None:
    def gradient(loss: Loss, *departures: Departure) -> Array:
        return program(departures)(loss, "cxcywh")(*near(0))[1]

    changed = {loss: not np.allclose(gradient(loss, departure), gradient(loss)) for loss in PUBLISHED}
    inherent = {loss: departure in made for loss, made in PUBLISHED.items()}
    assert changed == inherent


def test_the_papers_program_brings_diou_ahead_of_giou() -> None:
    giou, diou = (descend(program(PUBLISHED[loss]), loss, FEW).curve[-1] for loss in (GIoU(), DIoU()))
    exact_giou, exact_diou = (descend(program(), loss, FEW).curve[-1] for loss in (GIoU(), DIoU()))
    assert exact_giou < exact_diou
    assert diou < 0.005
    assert giou > 20 * exact_giou


def test_the_command_writes_tables_and_pictures_and_adds_to_them(
    server: ServerProcess, process: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--points=4", "--iterations=10", f"--output={tmp_path}")
    before = answered(server)
    assert command(*small, "--losses=giou wiou:version=3", "--through=both", f"--address={server.address}") == "0"
    assert answered(server) == before + 2 * 10
    assert command(*small, "--losses=smooth_l1:beta=0.5", "--coordinates=xyxy") == "0"
    assert capsys.readouterr().out.count("1,372") == 2 * 2 + (2 * 2 + 1)

    with open(tmp_path / "errors.csv", encoding="utf-8") as file:
        rows = {(row["loss"], row["coordinates"], row["through"]): row for row in csv.DictReader(file)}
    assert rows.keys() == {
        ("giou", "cxcywh", "service"),
        ("giou", "cxcywh", "process"),
        ("wiou:version=3", "cxcywh", "service"),
        ("wiou:version=3", "cxcywh", "process"),
        ("smooth_l1:beta=0.5", "xyxy", "process"),
    }
    descent = descend(process, GIoU(), scatter(4), iterations=10)
    row = rows["giou", "cxcywh", "process"]
    assert float(row["mean"]) == pytest.approx(descent.final.mean())
    assert float(row["median"]) == pytest.approx(np.median(descent.final))
    assert float(row["off"]) == np.mean(descent.final > 0.1)
    assert float(rows["giou", "cxcywh", "service"]["apart"]) <= 1e-5
    with open(tmp_path / "curves.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows) * 11
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "surfaces.png", "positions.png"}
    assert len(stored(tmp_path)) == len(rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--losses", "diuo"], "--losses: there is no loss 'diuo'"),
        (["--losses", "smooth_l1:beta=-1"], "beta"),
        (["--losses", "kld"], "--losses: kld compares oriented boxes"),
        (["--losses", " "], "--losses: names none"),
        (["--address", "localhost:1"], "--address: names a server, which --through process does not ask"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], message: str, tmp_path: Path) -> None:
    assert message in command(*flags, "--output", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_papers_program_is_compared_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published.main(points=3, iterations=10, output=tmp_path)
    table = capsys.readouterr().out
    for departure in DEPARTURES:
        assert departure in table
    with open(tmp_path / "errors.csv", encoding="utf-8") as file:
        assert {"giou", "giou overlaps", "diou sides sign mixed shrink"} < {row["loss"] for row in csv.DictReader(file)}
    assert (tmp_path / "published.png").exists()
