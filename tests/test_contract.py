"""The contract and what is generated from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message import Message

import boxloss
from boxloss.contract import wire
from boxloss.errors import InvalidInputError, UnsupportedError
from boxloss.losses import CATALOGUE, AlphaIoU, Focal, Focaler, Inner
from boxloss.v1 import loss_pb2
from tests.catalogue import LOSSES

ROOT = Path(__file__).parent.parent
GENERATOR = ROOT / ".venv-proto/bin/python"


def test_the_committed_stubs_are_what_the_contract_generates(tmp_path: Path) -> None:
    if not GENERATOR.exists():
        pytest.skip("the generator is not installed; run `make test`, which does")
    subprocess.run([GENERATOR, ROOT / "proto/generate.py", tmp_path], check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "boxloss/v1").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "client/boxloss/v1").glob("*_pb2*.py*")}
    assert generated == committed, "the stubs are stale: run `make proto`"


@pytest.mark.parametrize("heavy", ["torch", "boxloss_server", "typer", "pyarrow"])
def test_the_sdk_imports_without(heavy: str) -> None:
    check = f"import boxloss, sys; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_every_loss_of_the_contract_has_a_specification_and_the_other_way_round() -> None:
    assert {each.name for each in loss_pb2.Loss.DESCRIPTOR.oneofs_by_name["kind"].fields} == set(CATALOGUE)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_loss_survives_the_way_over_the_wire(loss: boxloss.Loss) -> None:
    assert wire.loss_from_message(wire.loss_to_message(loss)) == loss


@pytest.mark.parametrize(
    "name", [name for name, loss in CATALOGUE.items() if loss not in (AlphaIoU, Focal, Focaler, Inner)]
)
def test_parameters_that_are_not_set_take_their_defaults(name: str) -> None:
    message = loss_pb2.Loss()
    getattr(message, name).SetInParent()
    assert wire.loss_from_message(message) == CATALOGUE[name]()


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (loss_pb2.Loss(), "kind: is not set; set one of l1, l2, smooth_l1"),
        (loss_pb2.Loss(smooth_l1=loss_pb2.SmoothL1(beta=0)), "smooth_l1.beta: 0 is out of range; it must be above 0"),
        (loss_pb2.Loss(smooth_l1=loss_pb2.SmoothL1(beta=float("nan"))), "smooth_l1.beta: nan is out of range"),
        (loss_pb2.Loss(ciou=loss_pb2.Ciou(gate=1.5)), "ciou.gate: 1.5 is out of range"),
        (loss_pb2.Loss(alpha_iou=loss_pb2.AlphaIou()), "alpha_iou.base: is not set"),
        (
            loss_pb2.Loss(alpha_iou=loss_pb2.AlphaIou(base=loss_pb2.Loss(giou=loss_pb2.Giou()), alpha=-1)),
            "alpha_iou.alpha: -1 is out of range; it must be above 0 and at most 10",
        ),
        (
            loss_pb2.Loss(alpha_iou=loss_pb2.AlphaIou(base=loss_pb2.Loss(iou=loss_pb2.Iou(floor=2)))),
            "alpha_iou.base.iou.floor: 2 is out of range",
        ),
        (
            loss_pb2.Loss(alpha_iou=loss_pb2.AlphaIou(base=loss_pb2.Loss(smooth_l1=loss_pb2.SmoothL1()))),
            "alpha_iou.base: SmoothL1(beta=1.0, coordinates='corners') cannot be modified; take a linear iou, giou",
        ),
    ],
    ids=str,
)
def test_a_wrong_loss_is_refused_by_the_field_at_fault(message: loss_pb2.Loss, complaint: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        wire.loss_from_message(message)
    assert complaint in str(refused.value)


def with_unknown_field(message: Message) -> bytes:
    """The message as a newer client would send it: with a field 1000."""
    return message.SerializeToString() + b"\xc0\x3e\x01"


def test_a_loss_from_a_newer_client_is_unsupported_not_unset() -> None:
    with pytest.raises(UnsupportedError, match=r"field 1000: is not known to this version of Loss; upgrade the server"):
        wire.loss_from_message(loss_pb2.Loss.FromString(with_unknown_field(loss_pb2.Loss())))


def test_a_parameter_from_a_newer_client_is_never_ignored() -> None:
    message = loss_pb2.Loss(giou=loss_pb2.Giou.FromString(with_unknown_field(loss_pb2.Giou())))
    with pytest.raises(UnsupportedError, match=r"giou.field 1000"):
        wire.loss_from_message(message)


def test_a_choice_from_a_newer_client_is_unsupported() -> None:
    message = loss_pb2.Loss.FromString(b"\x12\x02\x08\x63")  # iou { form: 99 }
    with pytest.raises(UnsupportedError, match=r"iou.form: 99 is not known"):
        wire.loss_from_message(message)
