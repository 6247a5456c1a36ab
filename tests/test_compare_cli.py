"""The command compare, with real files and a real server."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image as Picture

from boxloss.cli import main
from tests.servers import ServerProcess
from tests.shared_data import folder

ROOT = Path(__file__).parent.parent
COINS = ROOT / "examples" / "coins"

LABELS: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480},
        {"id": 2, "file_name": "b.jpg", "width": 300, "height": 400},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 3, "bbox": [100, 100, 100, 100]},
        {"id": 11, "image_id": 1, "category_id": 7, "bbox": [300, 100, 50, 100]},
        {"id": 12, "image_id": 2, "category_id": 7, "bbox": [20, 30, 40, 40]},
        {"id": 13, "image_id": 2, "category_id": 7, "bbox": [200, 300, 40, 0]},
    ],
}
RESULTS: list[dict[str, Any]] = [
    {"image_id": 2, "category_id": 7, "bbox": [65, 30, 40, 40], "score": 0.9},  # Apart by 5 pixels.
    {"image_id": 1, "category_id": 3, "bbox": [110, 110, 100, 100], "score": 0.8},
    {"image_id": 1, "category_id": 7, "bbox": [300, 100, 50, 80], "score": 0.3},
    {"image_id": 1, "category_id": 7, "bbox": [500, 400, 50, 50], "score": 0.9},  # Near no label.
]
IOU = [90 * 90 / (2 * 100 * 100 - 90 * 90), 0.8, 0]
"""Of labels 10 to 12."""
GIOU = [1 - IOU[0] + 200 / 110**2, 0.2, 1 + 5 / 85]
"""The enclosing boxes have 110 x 110, 50 x 100 and 85 x 40 pixels."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty folder, without an address in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BOXLOSS_ADDRESS", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process."""

    def command(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), out, err)

    return command


@pytest.fixture
def compare(run: Run, server: ServerProcess) -> Run:
    """Compares losses on the server."""
    return lambda *arguments: run("compare", "--address", server.address, *arguments)


def save(name: str, content: Any) -> Path:
    """Writes a file: text as it is, arrays to .npy, the rest as JSON."""
    path = Path(name)
    match content:
        case str():
            path.write_text(content)
        case np.ndarray():
            np.save(path, content)
        case _:
            path.write_text(json.dumps(content))
    return path


def files(labels: Any = LABELS, results: Any = RESULTS) -> tuple[object, ...]:
    return "--labels", save("labels.json", labels), "--predictions", save("results.json", results)


def document(compare: Run, *arguments: object) -> dict[str, Any]:
    outcome = compare(*arguments, "--output", "out.json")
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


# What comes out


def test_tables_and_advice_are_printed(compare: Run) -> None:
    outcome = compare(*files(), "--loss", "giou", "--loss", "iou")
    assert outcome.code == 0
    assert "3 pairs of 4 labels and 4 predictions; 1 labels without area left out\n" in outcome.out
    assert re.search(rf"^giou +{np.mean(GIOU):.3f} +{np.std(GIOU):.3f} ", outcome.out, re.MULTILINE)
    assert re.search(rf"^iou +{1 - np.mean(IOU):.3f} ", outcome.out, re.MULTILINE)
    assert re.search(r"^iou +1.000 +33% +0% ", outcome.out, re.MULTILINE)
    assert re.search(r"^giou +1.000 +0% +0% ", outcome.out, re.MULTILINE)
    assert "recommended: giou\n" in outcome.out
    assert "- 33% of the pairs do not overlap" in outcome.out
    assert outcome.out.endswith("This is advice from these boxes alone; nothing was trained.\n")
    assert max(map(len, outcome.out.splitlines())) <= 120


def test_pairs_are_called_as_in_the_files(compare: Run) -> None:
    outcome = compare(*files(), "--loss", "iou", "--loss", "focal:base=giou", "--output", "out.json")
    (disagreement,) = json.loads(Path("out.json").read_text())["disagreements"]
    assert disagreement == {  # Focal scores boxes apart like identical ones.
        "losses": ["iou", "focal:base=giou"],
        "ranks": [3, 1],
        "image": 2,
        "label": 12,
        "prediction": 0,
        "class_name": "dog",
        "iou": 0,
    }
    assert re.search(r"^image 2, label 12, prediction 0 \(dog\) +0.00 +iou +3 +focal:base=giou +1$", outcome.out, re.M)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_has_a_row_for_each_loss(compare: Run, ending: str) -> None:
    path = Path(f"out.{ending}")
    losses = ("giou", "focal_eiou", "iou:form=square,floor=0.01")
    outcome = compare(*files(), *(f"--loss={loss}" for loss in losses), "--output", path)
    assert outcome.out.endswith(f"written: {path}\n")
    rows: list[dict[str, Any]]
    if ending == "csv":
        with path.open() as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["loss"] for row in rows] == list(losses)
    assert float(rows[0]["mean"]) == pytest.approx(np.mean(GIOU))
    assert float(rows[0]["maximum"]) == pytest.approx(max(GIOU))
    assert float(rows[1]["flat"]) == pytest.approx(1 / 3)
    assert float(rows[2]["median"]) == pytest.approx(1 - IOU[0] ** 2)
    assert float(rows[0]["spearman_iou:form=square,floor=0.01"]) == pytest.approx(1)
    assert [str(row["recommended"]).lower() for row in rows] == ["true", "false", "false"]
    assert set(rows[0]) == {
        *("loss", "mean", "std", "minimum", "p25", "median", "p75", "p95", "maximum"),
        *("flat", "against", "spread", "like_iou", "rate", "iou_on_the_way", "iou_at_the_end", "recommended"),
        *(f"{kind}_{row['loss']}" for kind in ("pearson", "spearman", "kendall") for row in rows),
    }


def test_json_has_everything(compare: Run) -> None:
    found = document(compare, *files(), "--loss", "iou", "--loss", "giou")
    assert found["facts"]["apart"] == pytest.approx(1 / 3)
    assert found["facts"]["iou"]["mean"] == pytest.approx(np.mean(IOU))
    assert [each["loss"] for each in found["losses"]] == ["iou", "giou"]
    assert len(found["losses"][0]["path"]) == 31
    assert found["losses"][0]["path"][0] == pytest.approx(np.mean(IOU))
    assert found["losses"][1]["iou_at_the_end"] == pytest.approx(found["losses"][1]["path"][-1])
    assert found["correlations"]["losses"] == ["iou", "giou"]
    for kind in ("pearson", "spearman", "kendall"):
        assert np.shape(found["correlations"][kind]) == (2, 2)
    assert np.ravel(found["correlations"]["kendall"]) == pytest.approx([1, 1, 1, 1])
    assert found["recommendation"]["loss"] == "giou"
    assert found["left_out"] == []


def test_what_is_not_defined_is_null(compare: Run) -> None:
    found = document(compare, *files(LABELS, RESULTS[:1]), "--loss", "iou")
    assert found["losses"][0]["like_iou"] is None
    assert found["correlations"]["spearman"] == [[None]]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(compare: Run, ending: str) -> None:
    path = Path(f"out.{ending}")
    losses = () if ending == "png" else ("--loss", "iou", "--loss", "giou")
    assert compare(*files(), *losses, "--picture", path).out.endswith(f"written: {path}\n")
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    if ending == "png":
        with Picture.open(path) as picture:
            assert picture.width == 1600
            pixels = np.asarray(picture.convert("RGB"))
        colored = np.ptp(pixels, axis=2) > 60
        for top, left, right in ((0, 200, 700), (0, 900, 1500), (580, 150, 550), (580, 700, 1050), (580, 1200, 1590)):
            panel = colored[top : top + 460, left:right]
            assert 30 < panel.sum() < 0.98 * panel.size  # Axes are black.


def test_a_picture_of_a_single_pair_is_drawn(compare: Run) -> None:
    assert compare(*files(LABELS, RESULTS[:1]), "--loss", "iou", "--picture", "out.png").code == 0


# What goes in


def test_options_say_what_is_a_pair(compare: Run) -> None:
    def pairs(*options: object) -> int:
        return int(document(compare, *files(), "--loss", "iou", *options)["facts"]["pairs"])

    assert pairs("--min-score", 0.5) == 2
    assert pairs("--reach", 0.1) == 2  # Label 12 and its prediction are 0.8 diagonals apart.
    assert pairs("--matching", "greedy") == 3


def test_rows_are_compared_one_by_one(compare: Run) -> None:
    labels = save("l.csv", "0,0,10,10\n0,0,10,10\n5,5,4,4\n7,7,7,9\n")
    predictions = save("p.npy", np.array([[1, 0, 10, 10], [20, 0, 10, 10], [0, 0, 1, 1], [0, 0, 1, 1]]))
    arguments = ("--labels", labels, "--predictions", predictions, "--matching", "rows", "--loss", "giou")
    outcome = compare(*arguments, "--predictions-layout", "xywh", "--output", "out.json")
    assert outcome.code == 0
    assert "2 pairs of 4 labels and 4 predictions" in outcome.out
    assert (
        "note: 1 pairs of boxes are inverted, not finite or too large and are left out, the first in line 3"
        in outcome.err
    )
    assert "note: 1 pairs of boxes have a label without area and are left out, the first in line 4" in outcome.err
    found = json.loads(Path("out.json").read_text())
    assert found["losses"][0]["minimum"] == pytest.approx(1 - 90 / 110)
    assert found["losses"][0]["maximum"] == pytest.approx(1 + 10 / 30)


def test_without_the_sizes_of_images_mpdiou_is_left_out(compare: Run) -> None:
    losses = ("--loss", "mpdiou", "--loss", "iou")
    with_sizes = compare(*files(), *losses)
    assert re.search("^mpdiou ", with_sizes.out, re.MULTILINE)
    unsized = [{key: each[key] for key in ("id", "file_name")} for each in LABELS["images"]]
    outcome = compare(*files({**LABELS, "images": unsized}), *losses)
    assert outcome.code == 0
    assert not re.search("^mpdiou ", outcome.out, re.MULTILINE)
    assert "note: mpdiou left out: 3 pairs lack the size of their image; give --images" in outcome.err
    Picture.new("L", (640, 480)).save("a.jpg")
    Picture.new("L", (300, 400)).save("b.jpg")
    pictured = compare(*files({**LABELS, "images": unsized}), *losses, "--images", ".")
    assert pictured.out == with_sizes.out


def test_mpdiou_sees_the_size_of_each_image(compare: Run) -> None:
    (found,) = document(compare, *files(), "--loss", "mpdiou")["losses"]
    penalties = [2 * (10**2 + 10**2) / 800**2, 20**2 / 800**2, 2 * 45**2 / 500**2]
    assert found["mean"] == pytest.approx(1 - np.mean(IOU) + np.mean(penalties))


def test_the_server_does_the_work(compare: Run, server: ServerProcess) -> None:
    before = server.total("grpc_server_handled_total", grpc_method="Evaluate", grpc_code="OK")
    assert compare(*files(), "--loss", "giou").code == 0
    # The IoU of the running mean and of the gradients, the loss, 31 positions of the descent.
    assert server.total("grpc_server_handled_total", grpc_method="Evaluate", grpc_code="OK") == before + 34


def test_without_an_address_the_server_is_in_this_process(run: Run, compare: Run) -> None:
    here = run("compare", *files(), "--loss", "giou", "--device", "cpu")
    assert here == compare(*files(), "--loss", "giou")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "cuio"), "--loss cuio: there is no loss 'cuio'; did you mean ciou? There are l1, l2,"),
        (("--loss", "prob_iou"), "--loss prob_iou: is for oriented boxes"),
        (("--output", "out.txt"), "--output out.txt: ends in '.txt'; give a .csv or .json or .parquet file"),
        (("--picture", "out.jpg"), "--picture out.jpg: ends in '.jpg'; give a .png or .svg or .pdf file"),
        (("--picture", "no/out.png"), "--picture no/out.png: there is no folder no"),
        (("--reach", "0", "--min-score", "0.85"), "none of its 2 boxes is near one of the 4 labels of its class"),
        (("--labels-format", "voc"), "labels.json"),
        (("--matching", "rows"), "results.json: is COCO, whose boxes are matched by image and class; leave out"),
        (("--matching", "rows", "--min-score", "0.5"), "--min-score: does not go with --matching rows"),
        (("--device", "cpu"), "--device: is for computing in this process"),
    ],
)
def test_wrong_input_is_refused_with_the_fix(compare: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = compare(*files(), *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("labels", "results", "message"),
    [
        (
            LABELS,
            [{**RESULTS[0], "image_id": 9}],
            "results.json: no box is in an image of labels.json and has the --min-score; correct ids",
        ),
        (LABELS, [{**RESULTS[0], "category_id": 3}], "results.json: none of its 1 boxes is near one of the 4 labels"),
        ({**LABELS, "images": [], "annotations": []}, RESULTS, "labels.json: holds no images"),
    ],
)
def test_files_without_pairs_are_refused(compare: Run, labels: Any, results: Any, message: str) -> None:
    outcome = compare(*files(labels, results))
    assert outcome.code == 2
    assert message in outcome.err


def test_help_explains_it(run: Run) -> None:
    outcome = run("compare", "--help")
    assert outcome.code == 0
    assert "nothing is trained" in " ".join(outcome.out.split())


def test_rows_of_different_numbers_are_refused(compare: Run) -> None:
    one, two = save("one.csv", "0,0,1,1\n"), save("two.csv", "0,0,1,1\n0,0,1,1\n")
    outcome = compare("--labels", one, "--predictions", two, "--matching", "rows")
    assert outcome.code == 2
    assert "one.csv: has 1 boxes, and two.csv has 2" in outcome.err


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(compare: Run) -> None:
    outcome = compare(*files(LABELS, [*RESULTS, {**RESULTS[0], "bbox": [1, 2, 3]}]), "--loss", "giou")
    assert outcome.code == 0
    assert "results.json: " in outcome.err
    assert "(box skipped)" in outcome.err


@pytest.mark.parametrize(("package", "extra"), [("scipy", "audit"), ("matplotlib", "plots")])
def test_without_its_packages_the_command_names_the_extra(package: str, extra: str) -> None:
    arguments = ["compare", *map(str, files()), "--picture", "out.png"]
    code = f"import sys; sys.modules['{package}'] = None; from boxloss.cli import main; main({arguments})"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert outcome.returncode == 1
    assert outcome.stderr.endswith(f"pip install 'boxloss[{extra}]'\n")
    assert outcome.stderr.count("\n") == 1


# Real boxes


def examples() -> list[list[str]]:
    """The lines of each output that docs/compare.md shows."""
    page = (ROOT / "docs" / "compare.md").read_text()
    return [
        re.split(r"\n    ", found) for found in re.findall(r"^    (\$ boxloss .*(?:\n    .*)*)", page, re.MULTILINE)
    ]


def figures(line: str) -> tuple[str, list[float]]:
    """A line without its numbers and blanks, and the numbers: their last digits may differ between processors."""
    number = r"-?\d+(?:\.\d+)?"
    return re.sub(rf"{number}|\s", "", line), list(map(float, re.findall(number, line)))


def test_the_page_shows_what_the_command_prints(
    run: Run, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "compare.md").read_text()
    (code,) = re.findall(r"^    (import json.*?)\n\n    \$", page, re.DOTALL | re.MULTILINE)
    save("labels.json", json.loads((COINS / "labels.json").read_text()))
    save("predictions.json", json.loads((COINS / "predictions.json").read_text()))
    exec(code.replace("\n    ", "\n"), {})
    monkeypatch.setenv("BOXLOSS_ADDRESS", server.address)
    coins, early = examples()
    for lines in (coins, early):
        outcome = run(*lines[0].split()[2:])
        assert outcome.code == 0
        printed = list(map(figures, outcome.out.splitlines()))
        for line in lines[1:]:
            words, numbers = figures(line)
            alike = [found for text, found in printed if text == words]
            assert line == "..." or any(found == pytest.approx(numbers, abs=0.005) for found in alike), line


def test_real_predictions_are_compared(compare: Run) -> None:
    real = folder("cartucho_map_85")
    files = ("--labels", real / "ground-truth", "--predictions", real / "detection-results")
    found = document(compare, *files, "--loss", "iou", "--loss", "eiou", "--loss", "l2")
    assert 250 < found["facts"]["pairs"] <= 494
    assert found["recommendation"]["loss"] == "eiou"
    assert "l2 (" in found["recommendation"]["reasons"][-2]
    wider = document(compare, *files, "--loss", "iou", "--loss", "eiou", "--reach", "3")
    assert wider["facts"]["pairs"] > found["facts"]["pairs"]
    assert wider["facts"]["apart"] > 0.05
    assert any("No gradient" in reason and "iou (" in reason for reason in wider["recommendation"]["reasons"])


def test_real_pairs_are_those_that_evaluate_finds_and_more(compare: Run) -> None:
    real = folder("coco_val2014_100")
    files = real / "instances_val2014_100.json", real / "instances_val2014_fakebbox100_results.json"
    found = document(compare, "--labels", files[0], "--predictions", files[1], "--loss", "iou")
    assert 600 < found["facts"]["pairs"] <= 734
    assert found["facts"]["iou"]["median"] > 0.75
