"""The pages of docs say what the catalogue and the losses are."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from google.protobuf import json_format
from torch import Tensor

import boxloss
from boxloss import (
    BCD,
    GWD,
    KLD,
    L1,
    L2,
    NWD,
    AlphaIoU,
    BalancedL1,
    BoundedIoU,
    CIoU,
    DIoU,
    EIoU,
    Focal,
    FocalEIoU,
    Focaler,
    GIoU,
    Huber,
    Inner,
    IoU,
    KFIoU,
    Loss,
    MPDIoU,
    PIoU,
    PIoUv2,
    ProbIoU,
    ShapeIoU,
    SIoU,
    SmoothL1,
    WIoU,
)
from boxloss.contract.wire import loss_from_message
from boxloss.losses import CATALOGUE, notation
from boxloss.v1 import loss_pb2
from boxloss_server import losses
from boxloss_server.losses.polygons import rectangle_corners

DOCS = Path(__file__).parent.parent / "docs"
GENERATE = runpy.run_path(str(DOCS / "generate.py"))
PAGE = (DOCS / "losses.md").read_text(encoding="utf-8")
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}


def test_the_page_is_up_to_date() -> None:
    assert GENERATE["page"]() == PAGE, "run: python docs/generate.py"


def test_every_loss_is_described() -> None:
    for loss in CATALOGUE.values():
        assert f"\n### {loss.title}\n" in PAGE
    assert GENERATE["GRADIENTS"].keys() <= CATALOGUE.keys()


def test_pictures_are_there_and_shown() -> None:
    shown = {name for page in PAGES.values() for name in re.findall(r"\(pictures/([\w-]+)\.png\)", page)}
    assert {path.stem for path in (DOCS / "pictures").iterdir()} == shown >= set(GENERATE["PICTURES"])
    assert {name for picture in GENERATE["PICTURES"].values() for name in picture.shows} == set(CATALOGUE)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_links_lead_somewhere(page: str) -> None:
    anchors = {GENERATE["anchor"](heading) for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
    for target in re.findall(r"\]\((?!https://)(.*?)\)", page):
        assert target[1:] in anchors if target.startswith("#") else (DOCS / target).is_file(), target


def test_every_fault_names_tests_that_exist() -> None:
    tests = {
        name
        for path in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))
    }
    rows = re.findall(r"^\|.*\|$", (DOCS / "reliability.md").read_text(encoding="utf-8"), re.MULTILINE)
    faults = [row for row in rows if not re.match(r"\| (fault|:--) \|", row)]
    assert faults
    for fault in faults:
        named = re.findall(r"`(test_\w+)`", fault)
        assert named, fault
        assert set(named) <= tests, fault


def test_the_pictures_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    subprocess.run([sys.executable, DOCS / "pictures.py", tmp_path], check=True, timeout=100)
    assert {path.stem for path in tmp_path.iterdir()} == set(GENERATE["PICTURES"])


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_loss_can_be_spelled_as_shown(name: str) -> None:
    loss = GENERATE["example"](CATALOGUE[name])
    section = PAGE.partition(f"\n### {loss.title}\n")[2]
    code, command, raw = re.findall(r"```\n(.*?)\n(.*?)\n(.*?)\n```", section)[0]
    assert eval(code, {"boxloss": boxloss}) == loss
    assert notation.parse(command.removeprefix("--loss ")) == loss
    assert loss_from_message(json_format.ParseDict(json.loads(raw), loss_pb2.Loss())) == loss


SIDE = 20.0


def at(
    loss: Loss, x: float = 0, y: float = 0, width: float = 1, height: float = 1, running_mean: float = 0.3
) -> tuple[float, Tensor]:
    """A loss and its gradient in center and sides, which are in sides of the target, a square of 20 pixels around 0."""
    box = torch.tensor([x, y, width, height], dtype=torch.float64, requires_grad=True)
    center, reach = box[:2] * SIDE, box[2:] * SIDE / 2
    prediction = torch.cat([center - reach, center + reach])[None]
    target = torch.tensor([[-SIDE, -SIDE, SIDE, SIDE]], dtype=torch.float64) / 2
    value = losses.box_loss(prediction, target, loss, image_size=(640, 480), running_mean=running_mean)
    (gradient,) = torch.autograd.grad(value.sum(), box)
    return value.item(), gradient


def turned(
    loss: Loss, x: float = 0, angle: float = 0, width: float = 1, side: float = SIDE
) -> tuple[float, float, float]:
    """A loss of oriented boxes, one moved along x and turned from the other, and its gradient in both."""
    moves = torch.tensor([x, angle], dtype=torch.float64, requires_grad=True)
    zero, long, short = torch.tensor([0, width * side, side], dtype=torch.float64)
    prediction = torch.stack([moves[0] * side, zero, long, short, moves[1]])
    boxes = (rectangle_corners(each[:, None]) for each in (prediction, torch.stack([zero, zero, long, short, zero])))
    value = losses.evaluate(losses.OrientedGeometry(*boxes), loss)
    (gradient,) = torch.autograd.grad(value.sum(), moves)
    return value.item(), gradient[0].item(), gradient[1].item()


APART = [(1.001, 0.3), (2, 0), (5, -4)]


@pytest.mark.parametrize(
    "loss",
    [
        IoU(),
        IoU(form="log"),
        IoU(form="square"),
        AlphaIoU(IoU()),
        Inner(IoU()),
        Focaler(IoU()),
        FocalEIoU(),
        FocalEIoU(detach_weight=False),
        Focal(GIoU()),
    ],
    ids=notation.label,
)
def test_without_penalties_boxes_apart_have_no_gradient(loss: Loss) -> None:
    for x, y in APART:
        assert not at(loss, x, y)[1].any()


@pytest.mark.parametrize("loss", [Focal(CIoU()), Focal(AlphaIoU(DIoU())), FocalEIoU()], ids=notation.label)
def test_focal_losses_score_boxes_apart_like_identical_ones(loss: Loss) -> None:
    assert at(loss, 3)[0] == at(loss)[0] == 0


@pytest.mark.parametrize("loss", [GIoU(), DIoU(), CIoU(), EIoU(), SIoU(), MPDIoU(), WIoU(), ShapeIoU(), PIoU(), L1()])
def test_penalties_pull_boxes_together_that_are_apart(loss: Loss) -> None:
    for x in (1.001, 2, 4):
        assert at(loss, x)[1][0] > 0


def test_giou_is_iou_for_nested_boxes() -> None:
    for nested in ((0.2, -0.1, 0.5, 0.3), (0.1, 0.3, 3, 2)):
        (giou, slope), (iou, iou_slope) = at(GIoU(), *nested), at(IoU(), *nested)
        assert giou == pytest.approx(iou)
        assert slope.numpy() == pytest.approx(iou_slope.numpy())


def test_giou_grows_boxes_apart_on_both_sides() -> None:
    gradient = at(GIoU(), 3)[1]
    assert gradient[2] < 0
    assert gradient[0] + 2 * -gradient[2] > 0  # The far edge moves away.


@pytest.mark.parametrize("loss", [DIoU(), WIoU()], ids=notation.label)
def test_boxes_about_one_center_are_compared_by_iou_alone(loss: Loss) -> None:
    for sides in ((0.5, 0.3), (3, 2), (0.4, 2)):
        (value, slope), (iou, iou_slope) = at(loss, 0, 0, *sides), at(IoU(), 0, 0, *sides)
        assert value == pytest.approx(iou)
        assert slope.numpy() == pytest.approx(iou_slope.numpy())


def test_diou_leads_away_along_the_smaller_offset() -> None:
    assert at(DIoU(), 3, 0.5)[1][1] < 0


def test_ciou_is_diou_for_proportional_boxes() -> None:
    for scale in (0.2, 0.9, 3):
        assert at(CIoU(), 0.3, 0.1, scale, scale)[0] == pytest.approx(at(DIoU(), 0.3, 0.1, scale, scale)[0])
        assert at(EIoU(), 0.3, 0.1, scale, scale)[0] > at(DIoU(), 0.3, 0.1, scale, scale)[0]


def test_v_grows_one_side_and_shrinks_the_other() -> None:
    for sides in ((0.5, 0.3), (3, 2), (0.4, 2)):
        v = at(CIoU(), 0.1, 0, *sides)[1] - at(DIoU(), 0.1, 0, *sides)[1]
        assert v[2] * v[3] < 0


def test_eiou_is_nearly_flat_for_a_prediction_far_too_large() -> None:
    assert 0 < at(EIoU(), width=20, height=20)[1][2] < 0.01 < at(EIoU(), width=3, height=3)[1][2]


def test_siou_pulls_less_than_diou_and_hardly_sees_small_differences_of_shape() -> None:
    assert at(SIoU(), 4)[1][0] < at(DIoU(), 4)[1][0] / 3
    assert 0 < at(SIoU(), width=0.8)[0] - at(IoU(), width=0.8)[0] < 0.001


def test_wiou_does_not_compare_the_sizes_of_boxes_apart() -> None:
    for x, y in APART:
        assert not at(WIoU(), x, y, 0.5, 0.7)[1][2:].any()


def test_wiou_v3_turns_from_the_worst_pairs_where_the_mean_is_low() -> None:
    v1, v3 = (at(WIoU(version=version), 2, running_mean=0.1)[1][0] for version in (1, 3))
    assert v3 < v1 / 20


def test_mpdiou_sees_little_of_small_boxes() -> None:
    assert at(MPDIoU(), 2)[0] - 1 < 0.01


def test_piou_is_flat_where_the_edges_are_two_sides_off() -> None:
    assert at(PIoU(), 2)[1][0] > 0.3
    assert 0 < at(PIoU(), 4)[1][0] < 0.05
    assert 0 < at(PIoU(), 2, 2)[1][0] < 0.05
    assert 0 < at(PIoU(), 6)[1][0] < 0.001


def test_piou_v2_leads_boxes_away_that_are_far_apart() -> None:
    assert at(PIoUv2(), 1.8)[1][0] > 0
    for x in (2, 3, 5):
        assert at(PIoUv2(), x)[1][0] < 0


def test_alpha_iou_hardly_sees_little_overlap() -> None:
    assert at(AlphaIoU(IoU()), 0.9)[1][0] < at(IoU(), 0.9)[1][0] / 20
    assert at(AlphaIoU(IoU()), 0.1)[1][0] > at(IoU(), 0.1)[1][0]


def test_focaler_does_not_see_good_pairs() -> None:
    assert at(Focaler(IoU()), 0.01)[0] == 0
    assert not at(Focaler(IoU()), 0.01)[1].any()


def test_bounded_iou_sees_a_center_within_the_target_only() -> None:
    assert at(BoundedIoU(), 0.49, 0.2)[1][0] > 0
    assert at(BoundedIoU(), 0.51, 0.2)[1][0] == 0


def test_shape_iou_sees_little_along_the_long_side_with_a_scale() -> None:
    def penalties(scale: float, x: float, y: float) -> float:
        box = torch.tensor([[x, y, x + 40, y + 10]], dtype=torch.float64)
        target = torch.tensor([[0, 0, 40, 10]], dtype=torch.float64)
        diagonal = (40 + x) ** 2 + (10 + y) ** 2
        return (losses.box_loss(box, target, ShapeIoU(scale=scale)).item() - 1) * diagonal

    assert penalties(0, 60, 0) == pytest.approx(penalties(0, 0, 60))
    assert penalties(1, 60, 0) < penalties(1, 0, 60) / 3


@pytest.mark.parametrize("loss", [L1(), L2(), SmoothL1(), Huber(), BalancedL1(), NWD()], ids=notation.label)
def test_losses_of_coordinates_rank_by_the_unit(loss: Loss) -> None:
    boxes = torch.tensor([[2.0, 0, 102, 100], [2, 0, 4, 2]]), torch.tensor([[0.0, 0, 100, 100], [0, 0, 2, 2]])
    large, small = losses.box_loss(*boxes, loss).tolist()
    assert large == pytest.approx(small)


def test_nwd_fades_and_jumps_at_0() -> None:
    assert at(NWD(), 5)[1][0] < 0.001
    assert at(NWD(), 1e-9)[1][0] == pytest.approx(SIDE / 12.8)
    assert not at(NWD())[1].any()


GAUSSIAN = [ProbIoU(), GWD(), KLD(), BCD(), KFIoU()]


@pytest.mark.parametrize("loss", GAUSSIAN, ids=notation.label)
def test_gaussians_do_not_see_a_square_turn(loss: Loss) -> None:
    assert turned(loss, angle=0.7)[0] == pytest.approx(0, abs=1e-12)
    assert turned(loss, angle=0.7, width=4)[0] > 0.1


def test_prob_iou_is_flat_far_away_in_one_form() -> None:
    assert turned(ProbIoU(form="hellinger"), x=6)[1] < 0.001
    assert turned(ProbIoU(form="bhattacharyya"), x=6)[1] > 1


@pytest.mark.parametrize("kind", [GWD, KLD, BCD])
def test_transforms_only_slow_how_gaussians_become_flat(kind: type[GWD | KLD | BCD]) -> None:
    identity, root, logarithm = (turned(kind(transform=each), x=30)[1] for each in ("identity", "sqrt", "log"))
    assert 0 <= identity < root < 0.01
    assert 0 <= identity < logarithm < 0.01


def test_gwd_ranks_by_the_unit() -> None:
    assert turned(GWD(), x=1, side=100)[0] > turned(GWD(), x=1, side=1)[0] + 0.2
    for loss in (ProbIoU(), KLD(), BCD(), KFIoU()):
        assert turned(loss, x=1, side=100)[0] == pytest.approx(turned(loss, x=1, side=1)[0])


def test_kf_iou_fades_as_a_logarithm_does() -> None:
    assert turned(KFIoU(), x=30)[1] == pytest.approx(2 / 30, rel=0.01)
