"""The command `boxloss`, against a real server."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import boxloss
from boxloss.compare.matching import choose
from boxloss.losses.notation import label, parse
from tests.commands import Outcome, Run, runner

COMMAND = Path(sysconfig.get_path("scripts")) / "boxloss"
COINS = Path(__file__).parent.parent / "examples" / "coins"

PREDICTIONS = [[0, 0, 4, 4], [1, 1, 3, 5]]
TARGETS = [[1, 2, 5, 8], [1, 1, 3, 5]]
IOU = [3 / 17, 1]
"""Areas 16 and 24 share 6 and so cover 34; the second pair is equal."""
GIOU = [1 - 3 / 17 + 6 / 40, 0]
SMOOTH_L1 = [0.5 + 1.5 + 0.5 + 3.5, 0]

LABELS = {
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"id": 11, "image_id": 1, "category_id": 1, "bbox": [20, 0, 10, 10]},
        {"id": 12, "image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10]},
        {"id": 13, "image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10], "iscrowd": 1},
        {"id": 14, "image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 5]},
    ]
}
RESULTS = [
    {
        "image_id": 1,
        "category_id": 1,
        "bbox": [0, 0, 10, 8],
        "score": 0.5,
    },  # Its label goes to the next, which is surer.
    {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 9], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [20, 0, 10, 4], "score": 0.7},  # IoU 0.4.
    {"image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.8},  # Fits the crowd, but takes the other.
    {"image_id": 3, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 1},
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with boxloss.embedded(device="cpu") as client:
        yield client.address


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty folder, without an address in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BOXLOSS_ADDRESS", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def evaluate(run: Run, address: str) -> Run:
    """Evaluates two files on the server."""
    return lambda *arguments: run("evaluate", *arguments, "--address", address)


def save(name: str, content: Any) -> Path:
    """Writes a file: text and bytes as they are, arrays to .npy, the rest as JSON."""
    path = Path(name)
    match content:
        case str():
            path.write_text(content)
        case bytes():
            path.write_bytes(content)
        case np.ndarray():
            with path.open("wb") as file:
                np.save(file, content)
        case _:
            path.write_text(json.dumps(content))
    return path


def numbers(rows: list[dict[str, str]], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def csv_of(boxes: list[list[int]]) -> str:
    return "".join(f"{','.join(map(str, row))}\n" for row in boxes)


# Reading


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", csv_of(PREDICTIONS)),
        ("p.csv", "\ufeff0, 0, 4, 4\r\n\r\n1, 1, 3, 5\r\n"),
        ("p.csv", "id,x1,y1,x2,y2,note\na,0,0,4,4,\nb,1,1,3,5,good\n"),
        ("p.csv", '"Xmax","Ymax","Xmin","Ymin"\n4,4,0,0\n3,5,1,1\n'),
        ("p.json", PREDICTIONS),
        ("p.json", [{"left": 0, "top": 0, "right": 4, "bottom": 4}, {"left": 1, "top": 1, "right": 3, "bottom": 5}]),
        ("p.npy", np.array(PREDICTIONS)),
        ("P.NPY", np.array(PREDICTIONS, "f4")),
    ],
    ids=["csv", "csv with spaces", "csv with columns", "csv in another order", "json", "json objects", "npy", "npy f4"],
)
def test_every_format_is_read(evaluate: Run, name: str, content: Any) -> None:
    outcome = evaluate(save(name, content), save("t.json", TARGETS), "--loss", "giou")
    assert outcome.code == 0
    assert numbers(outcome.rows, "iou") == pytest.approx(IOU)
    assert numbers(outcome.rows, "loss_giou") == pytest.approx(GIOU)


@pytest.mark.parametrize(
    ("box_format", "rows", "header"),
    [("xywh", "0,0,4,4\n1,1,2,4\n", "x,y,width,height\n"), ("cxcywh", "2,2,4,4\n2,3,2,4\n", "cx,cy,w,h\n")],
)
def test_box_format_goes_for_both_files_and_the_gradients(
    evaluate: Run, box_format: str, rows: str, header: str
) -> None:
    named, plain = save("named.csv", header + rows), save("plain.csv", rows)
    outcome = evaluate(named, plain, "--box-format", box_format, "--gradients")
    assert numbers(outcome.rows, "iou") == [1, 1]
    assert [name for name in outcome.rows[0] if name.startswith("gradient")] == [
        f"gradient_ciou_{name}" for name in (("x", "y", "w", "h") if box_format == "xywh" else ("cx", "cy", "w", "h"))
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "p.txt: ends in '.txt'; give a .csv, .json or .npy file"),
        ("p.csv", "", "p.csv: is empty"),
        ("p.csv", b"\xff\xfe\x00", "p.csv: is not text in UTF-8"),
        ("p.csv", "1,2,3\n", "p.csv: has 3 columns; give 4"),
        ("p.csv", "1,2,3,4\n\n1,2,3\n", "p.csv: line 3: Expected 4 columns, got 3"),
        ("p.csv", "\nx1,y1,x2,y2\n1,2,3,4\n\n1,2,foo,4\n", "p.csv: line 5: not a number: 'foo'"),
        ("p.csv", "1,2,3,4\n1,2,,4\n", "p.csv: line 2: not a number: ''"),
        ("p.csv", "a,b,c,d\n1,2,3,4\n", "p.csv: names a, b, c, d; xyxy boxes need x1, y1, x2, y2 or "),
        ("p.csv", "x,y,w,h\n1,2,3,4\n", "or --box-format xywh"),
        (
            "p.csv",
            "0,0,1,1\n\n5,5,1,1\n0,nan,1,1\n",
            "p.csv: line 3 [5.0, 5.0, 1.0, 1.0], line 4 [0.0, nan, 1.0, 1.0]: no",
        ),
        ("p.csv", "0,0,1,1\n", "t.json: has 2 boxes, and p.csv has 1"),
        ("p.json", "[[1,2,\n3,4]", "p.json: line 2: is not JSON"),
        ("p.json", {"boxes": []}, "p.json: holds an object with boxes; give a list of boxes"),
        ("p.json", 3, "p.json: holds int; give a list"),
        ("p.json", [[0, 0, 1, 1], [0, 1, 1]], "p.json: row 1: [0, 1, 1] is no box; give 4 numbers"),
        ("p.json", [[0, 0, 1, "1"]], "p.json: row 0: [0, 0, 1, '1'] is no box"),
        ("p.json", [[0, 0, 1, 10**400]], "p.json: holds a whole number too large"),
        ("p.json", [{"x": 0, "y": 0, "w": 1, "h": 1}], "p.json: row 0: names x, y, w, h; xyxy boxes need"),
        ("p.json", [[1, 1, 0, 0]], "p.json: row 0 [1.0, 1.0, 0.0, 0.0]: no valid xyxy"),
        ("p.json", RESULTS, "p.json: is COCO and the other file is not"),
        ("p.json", [{"image_id": 1, "bbox": [0, 0, 1, 1]}], "p.json: row 0: has no category_id; COCO needs one"),
        ("p.json", {"annotations": [3]}, "p.json: annotations[0]: has no image_id"),
        ("p.json", [{**RESULTS[0], "image_id": "a"}], "p.json: row 0: has the image_id 'a'; COCO's are whole numbers"),
        ("p.json", [{**RESULTS[0], "score": "high"}], "p.json: row 0: has the score 'high'; give a number"),
        ("p.npy", b"PK", "p.npy: cannot be read as a numpy array"),
        ("p.npy", np.array([{}]), "p.npy: cannot be read as a numpy array: Object arrays cannot be loaded"),
        ("p.npy", np.zeros(4), "p.npy: holds float64 of shape (4,); give numbers of shape (N, 4)"),
        ("p.npy", np.zeros((1, 4), complex), "p.npy: holds complex128"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(evaluate: Run, name: str, content: Any, message: str) -> None:
    outcome = evaluate(save(name, content), save("t.json", TARGETS))
    assert outcome.code == 2
    assert outcome.out == ""
    assert message in outcome.err
    assert outcome.err.startswith("boxloss: ")
    assert outcome.err.count("\n") == 1


def test_coco_boxes_are_xywh(evaluate: Run) -> None:
    outcome = evaluate(save("p.json", RESULTS), save("t.json", LABELS), "--box-format", "xyxy")
    assert outcome.code == 2
    assert "p.json: is COCO, whose boxes are xywh; leave out --box-format xyxy" in outcome.err


def test_masked_boxes_are_left_out_and_counted(evaluate: Run) -> None:
    outcome = evaluate(save("p.csv", "5,5,1,1\n1,1,3,5\n"), save("t.json", TARGETS), "--invalid", "mask")
    assert outcome.code == 0
    assert outcome.rows == [
        {"row": "0", "status": "invalid", "iou": "", "loss_ciou": ""},
        {"row": "1", "status": "paired", "iou": "1", "loss_ciou": "0"},
    ]
    assert outcome.err == "1 paired, 1 invalid; means: iou 1.0000, loss_ciou 0.0000\n"


def test_many_pairs_are_scored_in_parts(evaluate: Run) -> None:
    boxes = np.tile(np.array(PREDICTIONS, float), (40_000, 1))
    boxes[70_000:, 2] += np.arange(10_000)
    outcome = evaluate(save("p.npy", boxes), save("t.npy", boxes[:, :]), "--loss", "iou")
    assert numbers(outcome.rows, "iou") == [1] * 80_000
    assert numbers(outcome.rows, "row") == list(range(80_000))


# Losses


@pytest.mark.parametrize(
    ("text", "loss", "canonical"),
    [
        ("ciou", boxloss.CIoU(), "ciou"),
        ("ciou:", boxloss.CIoU(), "ciou"),
        ("smooth_l1:beta=0.5", boxloss.SmoothL1(0.5), "smooth_l1:beta=0.5"),
        (" smooth_l1 : beta = 2.0 ", boxloss.SmoothL1(2), "smooth_l1:beta=2"),
        ("iou:form=log,floor=1e-3", boxloss.IoU("log", 1e-3), "iou:form=log,floor=0.001"),
        ("focal_eiou:detach_weight=false", boxloss.FocalEIoU(detach_weight=False), "focal_eiou:detach_weight=false"),
        ("alpha_iou:base=ciou,alpha=2", boxloss.AlphaIoU(boxloss.CIoU(), 2), "alpha_iou:base=ciou,alpha=2"),
        (
            "alpha_iou(alpha=2, base=ciou(gate=0.5))",
            boxloss.AlphaIoU(boxloss.CIoU(0.5), 2),
            "alpha_iou:base=ciou(gate=0.5),alpha=2",
        ),
    ],
)
def test_losses_are_read_and_written(text: str, loss: boxloss.Loss, canonical: str) -> None:
    assert parse(text) == loss
    assert label(loss) == canonical
    assert parse(canonical) == loss


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read; write it as smooth_l1:beta=0.5"),
        ("ciou(", "cannot be read"),
        ("smooth_l1:beta", "cannot be read"),
        ("ciou:gate=open('f')", "cannot be read"),
        ("l7", "there is no loss 'l7'; choose one of l1, l2, smooth_l1,"),
        ("ciou:beta=1", "ciou has no parameter 'beta'; it has gate"),
        ("giou:beta=1", "giou has no parameter 'beta'; it has none"),
        ("ciou:gate=0,gate=1", "gate is given twice"),
        ("alpha_iou:alpha=2", "alpha_iou needs base, for example alpha_iou:base=ciou"),
        ("alpha_iou:base=smooth_l1", "cannot be modified"),
        ("ciou:gate=-1", "gate: -1 is out of range; it must be at least 0"),
        ("ciou:gate=wide", "gate: 'wide' is not a number"),
        ("iou:form=cubic", "form: 'cubic' is not known; choose one of linear, log"),
    ],
)
def test_a_wrong_loss_is_refused(run: Run, text: str, message: str) -> None:
    outcome = run("evaluate", save("p.csv", ""), save("t.csv", ""), "--loss", text)
    assert outcome.code == 2
    assert outcome.err.startswith(f"boxloss: --loss {text}: ")
    assert message in outcome.err


def test_several_losses_get_a_column_each(evaluate: Run) -> None:
    losses = ["giou", "smooth_l1", "iou:form=log", "alpha_iou:base=iou,alpha=2", "giou"]
    outcome = evaluate(
        save("p.csv", csv_of(PREDICTIONS)), save("t.csv", csv_of(TARGETS)), *(f"--loss={loss}" for loss in losses)
    )
    assert list(outcome.rows[0]) == ["row", "status", "iou", *(f"loss_{loss}" for loss in losses[:-1])]
    assert numbers(outcome.rows, "loss_smooth_l1") == pytest.approx(SMOOTH_L1)
    assert numbers(outcome.rows, "loss_iou:form=log") == pytest.approx(-np.log(IOU))
    assert numbers(outcome.rows, "loss_alpha_iou:base=iou,alpha=2") == pytest.approx(1 - np.square(IOU))


# Matching


def test_each_row_takes_the_best_free_column() -> None:
    iou = np.array([[0.6, 0.9], [0.55, 0.8], [0.7, 0.0]])
    assert choose(iou, 0.5) == [(0, 1), (1, 0)]
    assert choose(iou, 0.6) == [(0, 1), (2, 0)]
    assert choose(np.zeros((2, 1)), 0) == []


def test_coco_predictions_are_matched_and_the_rest_reported(evaluate: Run) -> None:
    outcome = evaluate(save("p.json", RESULTS), save("t.json", LABELS), "--loss", "iou")
    assert outcome.code == 0
    columns = ("image_id", "category_id", "label_id", "prediction", "score", "status", "iou")
    assert [tuple(row[name] for name in columns) for row in outcome.rows] == [
        ("1", "1", "10", "1", "0.9", "paired", "0.9"),
        ("1", "1", "11", "", "", "missed", ""),
        ("1", "2", "12", "", "", "missed", ""),
        ("2", "1", "13", "", "", "crowd", ""),
        ("2", "1", "14", "3", "0.8", "paired", "0.5"),
        ("1", "1", "", "0", "0.5", "spurious", ""),
        ("1", "1", "", "2", "0.7", "spurious", ""),
        ("3", "1", "", "4", "1", "spurious", ""),
    ]
    assert outcome.err == "2 paired, 2 missed, 3 spurious, 0 invalid, 1 crowd; means: iou 0.7000, loss_iou 0.3000\n"


def test_min_iou_says_what_is_a_match(evaluate: Run) -> None:
    files = save("p.json", RESULTS), save("t.json", LABELS)
    assert evaluate(*files, "--min-iou", "0.3").err.startswith("3 paired, 1 missed, 2 spurious")
    assert evaluate(*files, "--min-iou", "0.95").err.startswith("0 paired, 4 missed, 5 spurious")


def test_invalid_coco_boxes_are_named_or_left_out(evaluate: Run) -> None:
    bad = {**LABELS["annotations"][0], "bbox": [0, 0, -1, 1]}
    files = save("p.json", RESULTS), save("t.json", {"annotations": [*LABELS["annotations"], bad]})
    rejected = evaluate(*files)
    assert rejected.code == 2
    assert "t.json: annotations[5] [0.0, 0.0, -1.0, 1.0]: no valid xywh" in rejected.err
    masked = evaluate(*files, "--invalid", "mask")
    assert masked.rows[5]["status"] == "invalid"
    assert ", 1 invalid, 1 crowd;" in masked.err


def test_no_predictions_miss_every_label(evaluate: Run) -> None:
    outcome = evaluate(save("p.json", []), save("t.json", LABELS))
    assert outcome.code == 0
    assert outcome.err == "0 paired, 4 missed, 0 spurious, 0 invalid, 1 crowd; means: iou none, loss_ciou none\n"


def test_the_coins_are_scored_as_their_readme_says(evaluate: Run) -> None:
    outcome = evaluate(COINS / "predictions.json", COINS / "labels.json")
    assert outcome.err.startswith("23 paired, 1 missed, 5 spurious, 0 invalid;")


# Writing


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_the_output_file_holds_every_row(evaluate: Run, ending: str) -> None:
    path = Path(f"o.{ending}")
    files = save("p.csv", csv_of(PREDICTIONS) + "1,1,0,0\n"), save("t.csv", csv_of([*TARGETS, [0, 0, 1, 1]]))
    outcome = evaluate(*files, "--loss=giou", "--invalid=mask", "--output", path)
    assert outcome.code == 0
    mean = f"iou {np.mean(IOU):.4f}, loss_giou {np.mean(GIOU):.4f}"
    assert outcome.out == f"2 paired, 1 invalid; means: {mean}\n3 rows written to o.{ending}\n"
    rows: list[dict[str, Any]]
    match ending:
        case "csv":
            rows = [{k: v or None for k, v in row.items()} for row in csv.DictReader(io.StringIO(path.read_text()))]
        case "json":
            rows = json.loads(path.read_text())
        case _:
            rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["status"] for row in rows] == ["paired", "paired", "invalid"]
    assert [float(row["loss_giou"]) for row in rows[:2]] == pytest.approx(GIOU)
    assert rows[2]["loss_giou"] is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("o.txt", "--output o.txt: ends in '.txt'; give a .csv, .json or .parquet file"),
        ("nowhere/o.csv", "--output nowhere/o.csv: there is no folder nowhere"),
        (".", "directory"),
    ],
)
def test_a_wrong_output_is_refused_before_the_work(run: Run, path: str, message: str) -> None:
    outcome = run("evaluate", save("p.csv", ""), save("t.csv", ""), "--output", path)
    assert outcome.code == 2
    assert message in outcome.err


def test_an_output_that_cannot_be_written_fails(evaluate: Run) -> None:
    Path("full.csv").symlink_to("/dev/full")
    outcome = evaluate(save("p.csv", csv_of(PREDICTIONS)), save("t.csv", csv_of(TARGETS)), "--output", "full.csv")
    assert outcome.code == 1
    assert outcome.err.startswith("boxloss: ")
    assert "No space left" in outcome.err


# Terminal and pipe


def in_terminal(*arguments: object, columns: int = 100) -> tuple[int, str]:
    """Runs the command in a terminal of its own; its exit code and what the terminal got."""
    terminal, end = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen([COMMAND, *map(str, arguments)], stdin=end, stdout=end, stderr=end, env=environment)
    os.close(end)
    output = b""
    try:
        while part := os.read(terminal, 4096):
            output += part
    except OSError:  # The terminal's way to say that all are gone.
        pass
    os.close(terminal)
    return process.wait(), output.decode()


def test_a_terminal_gets_a_table_of_the_first_rows(address: str) -> None:
    boxes = save("p.csv", "0,0,4,4\n" * 50)
    code, output = in_terminal("evaluate", boxes, boxes, "--address", address)
    assert code == 0
    assert "\x1b[" in output
    assert "─" in output
    assert output.count("paired  1.0000  0.0000") == 40
    assert "40 of 50 rows shown; --output FILE writes them all" in output
    assert "50 paired, 0 invalid; means: iou 1.0000, loss_ciou 0.0000" in output


def test_a_narrow_terminal_keeps_the_losses(address: str) -> None:
    files = COINS / "predictions.json", COINS / "labels.json"
    code, output = in_terminal("evaluate", *files, "--gradients", "--address", address, columns=60)
    assert code == 0
    assert "ciou" in output
    assert "gradient" not in output
    assert "label" in output
    assert "6 of 12 columns shown" in output


def test_a_pipe_gets_plain_text(address: str) -> None:
    boxes = save("p.csv", "0,0,4,4\n" * 50)
    for arguments in (["evaluate", boxes, boxes], ["losses"], ["ping"]):
        piped = subprocess.run([COMMAND, *arguments, "--address", address], capture_output=True, check=True, text=True)
        assert "\x1b" not in piped.stdout + piped.stderr
        assert "─" not in piped.stdout + piped.stderr


def test_a_reader_that_leaves_early_causes_no_traceback(address: str) -> None:
    boxes = save("p.csv", "0,0,4,4\n" * 50_000)
    shell = f"'{COMMAND}' evaluate {boxes} {boxes} --address {address} | head -n 2"
    piped = subprocess.run(["sh", "-c", shell], capture_output=True, check=True, text=True)
    assert piped.stdout.count("\n") == 2
    assert "Traceback" not in piped.stderr
    assert "Error" not in piped.stderr


# Servers


def test_without_an_address_the_server_is_in_this_process(run: Run) -> None:
    outcome = run("evaluate", save("p.csv", csv_of(PREDICTIONS)), save("t.csv", csv_of(TARGETS)), "--device", "cpu")
    assert outcome.code == 0
    assert numbers(outcome.rows, "iou") == pytest.approx(IOU)


def test_the_address_may_come_from_the_environment(run: Run, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXLOSS_ADDRESS", address)
    assert run("ping").code == 0
    outcome = run("evaluate", save("p.csv", csv_of(PREDICTIONS)), save("t.csv", csv_of(TARGETS)), "--device", "cpu")
    assert outcome.code == 2
    assert f"--device: is for computing in this process; leave it out, or the address {address}" in outcome.err


def test_a_device_that_is_not_there_is_wrong_usage(run: Run) -> None:
    files = save("p.csv", csv_of(PREDICTIONS)), save("t.csv", csv_of(TARGETS))
    outcome = run("evaluate", *files, "--device", "cuda:99")
    assert outcome.code == 2
    assert outcome.err.startswith("boxloss: --device: ")


def test_without_boxloss_server_an_address_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boxloss_server.embedded", None)
    outcome = run("evaluate", save("p.csv", csv_of(PREDICTIONS)), save("t.csv", csv_of(TARGETS)))
    assert outcome.code == 1
    assert "pip install boxloss-server, or give the --address of a server" in outcome.err


def test_a_dead_address_exits_with_3(run: Run) -> None:
    files = save("p.csv", csv_of(PREDICTIONS)), save("t.csv", csv_of(TARGETS))
    outcome = run("evaluate", *files, "--address", "unix:nobody", "--timeout", "0.3")
    assert outcome.code == 3
    assert outcome.err.startswith("boxloss: no boxloss server answers at unix:nobody")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (boxloss.InvalidInputError([boxloss.Violation("targets", "bad")]), 2),
        (boxloss.RequestTooLargeError([boxloss.Violation("targets", "large")]), 2),
        (boxloss.UnsupportedError([boxloss.Violation("losses", "new")]), 2),
        (boxloss.ServerUnavailableError("away"), 3),
        (boxloss.ServerBusyError("busy", 1.0), 3),
        (boxloss.DeadlineExceededError("late"), 3),
        (boxloss.ServerError("broken\nin two"), 1),
        (OSError("no disk"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_is_one_line_and_an_exit_code(
    evaluate: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("boxloss.cli.app.score", fail)
    outcome = evaluate(save("p.csv", csv_of(PREDICTIONS)), save("t.csv", csv_of(TARGETS)))
    assert outcome == Outcome(code, "", f"boxloss: {' '.join(str(error).split())}\n")


def test_ping_tells_version_device_and_latency(run: Run, address: str) -> None:
    outcome = run("ping", "--address", address)
    assert outcome.code == 0
    assert outcome.out.startswith(f"{address} is healthy: boxloss {boxloss.__version__} on cpu, ")
    assert outcome.out.endswith(" ms a call (median of 5)\n")


def test_ping_of_a_dead_address_exits_with_1(run: Run) -> None:
    outcome = run("ping", "--address", "unix:nobody", "--timeout", "0.3")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("boxloss: no boxloss server answers at unix:nobody")


# Catalogue, help and packages


def test_losses_are_listed_alike_with_and_without_a_server(run: Run, address: str) -> None:
    table, remote = run("losses"), run("losses", "--address", address)
    assert table == remote
    assert [line.split()[0] for line in table.out.splitlines()] == ["loss", *boxloss.losses.CATALOGUE]
    assert "gamma=0.5 (above 0, at most 10); detach_weight=true (true, false)" in table.out
    assert "base=... (iou, giou, diou, ciou, eiou, siou, mpdiou, piou, shape_iou, inner, focaler)" in table.out
    assert "alpha=3 (above 0, at most 10)" in table.out
    assert "arXiv:1902.09630" in table.out
    assert "1 - IoU + (C - U) / C" in table.out


def test_losses_are_listed_as_json(run: Run) -> None:
    outcome = run("losses", "--format", "json")
    names = {loss["name"]: [each["name"] for each in loss["parameters"]] for loss in json.loads(outcome.out)}
    assert names["smooth_l1"] == ["beta", "coordinates"]
    assert list(names) == list(boxloss.losses.CATALOGUE)


def test_version_and_help(run: Run) -> None:
    assert run("--version") == Outcome(0, f"boxloss {boxloss.__version__}\n", "")
    for arguments in (["--help"], ["evaluate", "--help"], ["losses", "--help"], ["ping", "--help"]):
        outcome = run(*arguments)
        assert outcome.code == 0
        assert outcome.out.startswith("Usage: boxloss")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["evaluate"],
        ["evaluate", "no.csv", "no.csv"],
        ["losses", "--format", "xml"],
        ["ping", "--timeout", "-1"],
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "Error: " in outcome.err


def test_the_sdk_does_not_need_the_packages_of_the_command() -> None:
    code = "import boxloss, boxloss.cli, sys; sys.exit(bool({'pyarrow', 'rich', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", ["pyarrow", "rich", "typer"])
def test_without_its_packages_the_command_names_the_extra(package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; from boxloss.cli import main; main(['--version'])"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("boxloss: ")
    assert outcome.stderr.endswith("pip install 'boxloss[cli]'\n")
    assert outcome.stderr.count("\n") == 1
