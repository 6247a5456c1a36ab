"""The commands audit and correct, with real files."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image as Picture

from boxloss.files.formats import read
from boxloss.files.problems import Problem
from tests.commands import Run, runner
from tests.servers import ServerProcess, free_port
from tests.shared_data import folder

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
LABELS: dict[str, Any] = {
    "images": [
        {"id": 0, "file_name": "a.jpg", "width": 640, "height": 480},
        {"id": 1, "file_name": "b.jpg", "width": 640, "height": 480},
    ],
    "categories": CATEGORIES,
    "annotations": [
        {"id": 10, "image_id": 0, "category_id": 3, "bbox": [100, 100, 100, 100]},
        {"id": 11, "image_id": 0, "category_id": 3, "bbox": [300, 100, 100, 100]},
        {"id": 12, "image_id": 0, "category_id": 7, "bbox": [100, 300, 100, 100]},
        {"id": 13, "image_id": 1, "category_id": 7, "bbox": [50, 50, 100, 100]},
        {"id": 14, "image_id": 1, "category_id": 7, "bbox": [600, 400, 80, 60]},
    ],
}
RESULTS: list[dict[str, Any]] = [
    {"image_id": 1, "category_id": 7, "bbox": [50, 50, 100, 100], "score": 0.9},
    {"image_id": 0, "category_id": 3, "bbox": [100, 100, 100, 100], "score": 0.9},
    {"image_id": 1, "category_id": 7, "bbox": [600, 400, 80, 60], "score": 0.9},
    {"image_id": 0, "category_id": 3, "bbox": [500, 300, 60, 60], "score": 0.8},  # Has no label.
    {"image_id": 0, "category_id": 3, "bbox": [320, 100, 100, 100], "score": 0.9},  # Label 11 is off by 20 pixels.
    {"image_id": 0, "category_id": 3, "bbox": [100, 300, 100, 100], "score": 0.7},  # Label 12 says dog.
]
FOUND = [("missing", None, 3), ("bad_location", 11, 4), ("wrong_class", 12, 5), ("outside", 14, None)]
"""Kind, label and row of the prediction in the list."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def save(name: str, content: Any) -> Path:
    """Writes a file: text as it is, the rest as JSON."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def audit(run: Run) -> Run:
    """Audits the labels with the predictions."""
    files = ("--labels", save("labels.json", LABELS), "--predictions", save("results.json", RESULTS))
    return lambda *arguments: run("audit", *files, *arguments)


def without(labels: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(labels | changes))  # type: ignore[no-any-return]


def findings(path: str = "out.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(path).read_text())["findings"]
    return found


# Who audits


def test_a_server_finds_what_this_process_finds(audit: Run, server: ServerProcess) -> None:
    assert audit("--output", "here.json").code == 0
    asked = server.total("boxloss_audit_images_total")
    assert audit("--output", "there.json", "--address", server.address).code == 0
    assert server.total("boxloss_audit_images_total") > asked
    assert Path("there.json").read_text() == Path("here.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "ray", "--address", "localhost:1"), "--engine"),
        (("--ray-address", "localhost:1"), "--ray-address"),
        (("--tls",), "--address"),
    ],
)
def test_engines_that_exclude_each_other_are_refused(audit: Run, options: tuple[str, ...], message: str) -> None:
    outcome = audit(*options)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_server_that_is_away_is_named(audit: Run) -> None:
    address = f"localhost:{free_port()}"
    outcome = audit("--address", address, "--timeout", "1")
    assert outcome.code == 3
    assert address in outcome.err


# What is found


def test_findings_name_label_and_prediction_as_the_files_do(audit: Run) -> None:
    assert audit("--output", "out.json").code == 0
    found = {(each["kind"], each["label_id"], each["prediction_index"]) for each in findings()}
    assert found == set(FOUND)
    (moved,) = [each for each in findings() if each["kind"] == "bad_location"]
    assert moved["box"] == [300, 100, 100, 100]
    assert moved["proposed_box"] == [320, 100, 100, 100]
    assert (moved["image_id"], moved["file_name"], moved["class"]) == (0, "a.jpg", "cat")
    assert moved["iou"] == pytest.approx(8000 / 12000)
    assert moved["score"] == pytest.approx(1 - 8000 / 12000)
    assert "Move its edges." in moved["message"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_have_a_row_for_each_finding(audit: Run, ending: str) -> None:
    assert audit("--output", f"out.{ending}").code == 0
    rows: list[dict[str, Any]]
    if ending == "csv":
        rows = list(csv.DictReader(io.StringIO(Path("out.csv").read_text())))
    else:
        rows = pyarrow.parquet.read_table("out.parquet").to_pylist()
    assert [row["kind"] for row in rows].count("missing") == 1
    by_kind = {row["kind"]: row for row in rows}
    named = {(kind, row["label_id"] or "", str(row["prediction_index"] or "")) for kind, row in by_kind.items()}
    assert named == {(kind, str(label or ""), str(index or "")) for kind, label, index in FOUND}
    assert [float(by_kind["missing"][side]) for side in ("x", "y", "width", "height")] == [500, 300, 60, 60]
    assert float(by_kind["bad_location"]["proposed_x"]) == 320
    assert by_kind["wrong_class"]["proposed_class"] == "cat"


def test_the_json_file_sums_up_and_names_what_did_not_join(audit: Run) -> None:
    save("labels.json", without(LABELS, images=[*LABELS["images"], {"id": 2, "width": 9, "height": 9}]))
    audit("--output", "out.json")
    content = json.loads(Path("out.json").read_text())
    assert content["summary"]["findings"]["missing"] == 1
    assert content["summary"]["classes"]["cat"]["labels"] == 2
    assert content["summary"]["images"] == 3
    assert [problem["place"] for problem in content["problems"]] == ["annotations[4]"]
    assert any("labeled images have no predictions" in note for note in content["mismatches"])


def test_the_terminal_tells_it_too(audit: Run) -> None:
    outcome = audit()
    assert "2 images, 5 labels, 6 predictions; 4 findings: 1 missing" in outcome.out
    assert "bad location" in outcome.out
    assert "0 (a.jpg)" in outcome.out
    assert "note: 2 class numbers of predictions were looked up among the labels' classes" in outcome.err


def test_quiet_is_one_line_and_still_counts_what_was_wrong(audit: Run) -> None:
    outcome = audit("--quiet", "--output", "out.csv")
    assert outcome.out.count("\n") == 1
    assert outcome.err == "1 problems and 1 notes; run without --quiet to see them\n"


def test_without_predictions_labels_are_held_against_themselves(run: Run) -> None:
    twice = {"id": 15, "image_id": 1, "category_id": 7, "bbox": [51, 50, 100, 100]}
    labels = save("labels.json", without(LABELS, annotations=[*LABELS["annotations"], twice]))
    assert run("audit", "--labels", labels, "--output", "out.json").code == 0
    assert {(each["kind"], each["label_id"]) for each in findings()} == {("outside", 14), ("duplicate", 15)}


def test_rules_can_be_chosen(audit: Run) -> None:
    audit("--output", "out.json", "--min-score", "0.85", "--min-iou", "0.4", "--matching", "optimal")
    assert "missing" not in {each["kind"] for each in findings()}
    assert "min_iou: is 0; give a number above 0" in audit("--min-iou", "0").err


def test_rows_count_skipped_predictions_in_every_format(run: Run) -> None:
    labels = save("labels.csv", "image,class,x1,y1,x2,y2\na.jpg,cat,0,0,50,50\nb.jpg,cat,0,0,50,50\n")
    lines = ["image,class,x1,y1,x2,y2,score", "b.jpg,cat,0,0,50,50,0.9", "a.jpg,cat,9,9,5,5,0.9"]
    predictions = save("p.csv", "\n".join([*lines, "a.jpg,cat,0,0,50,50,0.9", "a.jpg,cat,100,100,150,150,0.9"]))
    run("audit", "--labels", labels, "--predictions", predictions, "--output", "out.json")
    assert [each["prediction_index"] for each in findings()] == [3]
    save("txt/a.txt", "cat 0.9 9 9 5 5\ncat 0.9 0 0 50 50\ncat 0.9 100 100 150 150\n")
    run("audit", "--labels", labels, "--predictions", "txt", "--predictions-format", "txt", "--output", "out.json")
    assert [each["prediction_index"] for each in findings()] == [2]


def test_what_each_annotator_drew_is_audited_apart(run: Run) -> None:
    boxes = [("ann", [100, 100, 100, 100]), ("bob", [102, 100, 100, 100]), ("cyd", [100, 101, 100, 100])]
    annotations = [
        {"id": number, "image_id": 0, "category_id": 3, "bbox": box, "annotator": name}
        for number, (name, box) in enumerate([*boxes, ("bob", [103, 100, 100, 100])])
    ]
    labels = save("labels.json", without(LABELS, annotations=annotations))
    outcome = run("audit", "--labels", labels, "--output", "out.json", "--consensus", "agreed.json")
    assert [(each["kind"], each["label_id"], each["annotator"]) for each in findings()] == [("duplicate", 3, "bob")]
    assert findings()[0]["label"] == 3
    assert "2 images, 4 labels" in outcome.out
    assert "1 images have several annotators; Krippendorff's alpha" in outcome.out
    assert "ann and bob" in outcome.out
    (agreed,) = json.loads(Path("agreed.json").read_text())["annotations"]
    assert agreed["bbox"] == [100, 100, 100, 100]


def test_consensus_needs_several_annotators(audit: Run) -> None:
    outcome = audit("--consensus", "agreed.json")
    assert outcome.code == 2
    assert "labels.json has no image with several annotators" in outcome.err


# For CI


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 0, ""),
        (("--fail-over", "4"), 0, ""),
        (("--fail-over", "3"), 4, "boxloss: 4 findings; at most 3 may be\n"),
        (("--fail-score", "0.9"), 4, "boxloss: 1 findings with a score of 0.9 or more; at most 0 may be\n"),
        (("--fail-score", "0.9", "--fail-over", "1"), 0, ""),
    ],
)
def test_too_many_findings_fail(audit: Run, options: tuple[str, ...], code: int, message: str) -> None:
    outcome = audit("--report", "r.html", "--output", "out.json", *options)
    assert (outcome.code, outcome.err.endswith(message)) == (code, True)
    assert Path("r.html").exists()
    assert len(findings()) == 4


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "nowhere.json"), "nowhere.json: does not exist; give a file or a folder"),
        (("--labels", "photo.jpg"), "photo.jpg: ends in '.jpg'; give .json, .xml, .csv, .txt, .yaml or a folder"),
        (("--labels", "broken.json"), "broken.json: is none that is known"),
        (("--labels", "broken.json", "--labels-format", "coco"), "broken.json: holds nothing that can be read: "),
        (("--labels", "labels.json", "--labels-format", "pdf"), "--labels-format: 'pdf' is unknown; give one of coco"),
        (("--labels", "labels.json", "--labels-layout", "xywh"), "--labels-layout: does not go with coco"),
        (("--labels", "labels.json", "--predictions", "strange.json"), "strange.json: no image is one of labels.json"),
        (("--labels", "labels.json", "--predictions", "empty.json"), "or say --complete"),
        (("--labels", "labels.json", "--report", "r.pdf"), "--report r.pdf: ends in '.pdf'; give a .html or .htm file"),
        (("--labels", "labels.json", "--output", "no/o.csv"), "--output no/o.csv: there is no folder no"),
        (("--labels", "labels.json", "--output", "o.txt"), "ends in '.txt'; give a .json or .csv or .parquet file"),
    ],
)
def test_what_cannot_be_audited_is_refused(run: Run, arguments: tuple[str, ...], message: str) -> None:
    save("labels.json", LABELS)
    save("photo.jpg", "")
    save("broken.json", '{"images": [')
    save("empty.json", [])
    save("strange.json", [{**RESULTS[0], "image_id": 99}])
    outcome = run("audit", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_complete_predictions_may_be_empty(run: Run) -> None:
    outcome = run(
        "audit", "--labels", save("l.json", LABELS), "--predictions", save("p.json", []), "--complete", "--quiet"
    )
    assert outcome.code == 0
    assert "5 spurious" in outcome.out


def test_problems_are_named_and_the_rest_goes_on(run: Run) -> None:
    bad = [
        {"id": 20, "image_id": 1, "category_id": 7, "bbox": [0, 0, -5, 5]},
        {"id": 21, "image_id": 1, "category_id": 99, "bbox": [200, 200, 40, 40]},
        {"id": 22, "image_id": 1, "category_id": 7},
    ]
    images = [LABELS["images"][0], {"id": 1, "file_name": "b.jpg"}]
    labels = save("labels.json", without(LABELS, images=images, annotations=[*LABELS["annotations"], *bad]))
    outcome = run("audit", "--labels", labels, "--predictions", save("results.json", RESULTS), "--output", "out.json")
    assert outcome.code == 0
    assert "labels.json: annotations[5]: the box (0, 0, -5, 5) ends before it begins; " in outcome.err
    assert "labels.json: annotations[6]: the class 99 has no name; name it; there are 2 names" in outcome.err
    assert "labels.json: annotations[7]: " in outcome.err
    assert "skipped: 2 box" in outcome.err
    assert "2 images, 6 labels, 6 predictions" in outcome.out
    assert "outside" not in {each["kind"] for each in findings()}
    assert "1 images are of unknown size: labels that reach beyond them are not found; give --images: 1" in outcome.err
    problems = json.loads(Path("out.json").read_text())["problems"]
    assert [problem["place"] for problem in problems] == ["annotations[5]", "annotations[6]", "annotations[7]"]
    assert problems[0]["skipped"] == "box"


def test_a_box_outside_its_image_is_a_problem_and_a_finding(audit: Run) -> None:
    outcome = audit()
    assert "labels.json: annotations[4]: the box (600, 400, 680, 460) is not within its image" in outcome.err
    assert "1 outside" in outcome.out


def test_a_broken_line_is_named(run: Run) -> None:
    labels = save("labels.csv", "image,class,x1,y1,x2,y2\na.jpg,cat,0,0,50,50\na.jpg,cat,0,0\na.jpg,cat,0,zero,5,5\n")
    outcome = run("audit", "--labels", labels)
    assert outcome.code == 0
    assert "labels.csv: line 3: has 4 cells for 6 columns; " in outcome.err
    assert "labels.csv: line 4: the box (0, zero, 5, 5) is not four numbers; " in outcome.err
    assert "skipped: 1 box, 1 line" in outcome.err


def test_many_problems_are_counted(run: Run) -> None:
    labels = save("labels.csv", "image,class,x1,y1,x2,y2\na.jpg,cat,0,0,50,50\n" + "a.jpg,cat\n" * 30)
    outcome = run("audit", "--labels", labels)
    assert outcome.err.count("has 2 cells") == 20
    assert "and 10 more problems; audit --output FILE.json lists them all" in outcome.err


@pytest.mark.parametrize("package", ["msgspec", "jinja2", "PIL"])
def test_the_extra_is_named_where_it_is_missing(package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from boxloss.cli import main; main(sys.argv[1:])"
    files = ("--labels", save("labels.json", LABELS), "--report", "r.html")
    lacking, other = (
        subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
        for words in (("audit", *files), ("losses",))
    )
    assert lacking.stderr.endswith(
        f"boxloss: the command needs {package}, which is not installed: pip install 'boxloss[audit]'\n"
    )
    assert (lacking.returncode, other.returncode) == (1, 0)


def test_a_box_without_area_is_drawn_as_a_line(run: Run) -> None:
    labels = save("labels.csv", "image,class,x1,y1,x2,y2\na.jpg,cat,10,10,10,50\na.jpg,cat,1,1,90,90\n")
    assert run("audit", "--labels", labels, "--report", "r.html").code == 0
    cards = Path("r.html").read_text().partition('<div id="cards">')[2]
    (drawn,) = re.findall(r'<rect class="label" .*?width="(.*?)" height="(.*?)"/>', cards)
    assert float(drawn[0]) == 0.1
    assert float(drawn[1]) > 50


# Sizes from pictures


def test_pictures_tell_the_sizes_of_images(run: Run) -> None:
    save("yolo/a.txt", "0 0.5 0.5 0.5 0.5\n0 0.95 0.5 0.3 0.5\n")
    save("yolo/classes.txt", "cat\n")
    Path("pictures").mkdir()
    Picture.new("RGB", (200, 100)).save("pictures/a.png")
    outcome = run("audit", "--labels", "yolo", "--images", "pictures", "--output", "out.json", "--report", "r.html")
    assert outcome.code == 0
    assert findings()[0]["box"] == pytest.approx([160, 25, 60, 50])
    assert "data:image/jpeg;base64," in Path("r.html").read_text()
    corrected = run(
        "correct", "--labels", "yolo", "--images", "pictures", "--accepted", "out.json", "--output", "fixed.json"
    )
    assert corrected.code == 0
    boxes = [each["bbox"] for each in json.loads(Path("fixed.json").read_text())["annotations"]]
    assert boxes[1] == pytest.approx([160, 25, 40, 50])
    refused = run("correct", "--labels", "yolo", "--accepted", "out.json", "--output", "again.json")
    assert refused.code == 2
    assert "--images or --predictions if these told the sizes" in refused.err
    assert not Path("again.json").exists()


def test_pictures_that_are_missing_are_named(audit: Run) -> None:
    Path("pictures").mkdir()
    Path("pictures/a.jpg").write_bytes(b"no picture")
    outcome = audit("--images", "pictures", "--report", "r.html")
    assert outcome.code == 0
    assert "2 pictures are not in the folder or cannot be read: " in outcome.err


# Correcting


@pytest.fixture
def correct(audit: Run, run: Run) -> Run:
    """Corrects the labels with all findings."""
    audit("--output", "found.json")
    return lambda *arguments: run("correct", "--labels", "labels.json", "--accepted", "found.json", *arguments)


def test_corrected_labels_are_what_was_accepted(correct: Run) -> None:
    outcome = correct("--output", "fixed.json")
    assert outcome.code == 0
    counts = "1 bad_location, 1 missing, 1 outside, 1 wrong_class"
    assert outcome.out == f"4 findings accepted ({counts}); written: fixed.json\n"
    fixed = json.loads(Path("fixed.json").read_text())
    assert fixed["categories"] == CATEGORIES
    assert fixed["images"] == LABELS["images"]
    assert [(each["id"], each["category_id"], each["bbox"]) for each in fixed["annotations"]] == [
        (10, 3, [100, 100, 100, 100]),
        (11, 3, [320, 100, 100, 100]),
        (12, 3, [100, 300, 100, 100]),
        (15, 3, [500, 300, 60, 60]),
        (13, 7, [50, 50, 100, 100]),
        (14, 7, [600, 400, 40, 60]),
    ]


def test_corrected_labels_have_little_more_to_find(correct: Run, run: Run) -> None:
    correct("--output", "fixed.json")
    outcome = run("audit", "--labels", "fixed.json", "--predictions", "results.json", "--quiet")
    assert "; 1 findings: 1 bad_location" in outcome.out  # What was cut is smaller than a prediction beyond the edge.


def test_only_sure_findings_are_accepted_if_one_says_so(correct: Run) -> None:
    assert "1 findings accepted (1 wrong_class)" in correct("--output", "fixed.json", "--min-score", "0.9").out


def test_cvat_gets_boxes_that_the_reader_takes_back(correct: Run) -> None:
    assert correct("--output", "fixed.xml").code == 0
    problems: list[Problem] = []
    images = list(read(Path("fixed.xml"), "labels", problems.append))
    assert [(image.file_name, len(image)) for image in images] == [("a.jpg", 4), ("b.jpg", 2)]
    assert problems == []


def test_label_studio_gets_tasks_with_messages(correct: Run) -> None:
    assert correct("--output", "tasks.json", "--format", "labelstudio").code == 0
    first, _ = json.loads(Path("tasks.json").read_text())
    assert first["data"]["image"] == "a.jpg"
    assert len(first["data"]["findings"]) == 3
    assert len(first["predictions"][0]["result"]) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found.json: is not JSON"),
        ([], 'found.json: has no "findings"'),
        ({"findings": [{}]}, "found.json: findings[0]: kind: is missing"),
        ({"findings": [3]}, "found.json: findings[0]: finding: 3 is none"),
    ],
)
def test_a_file_without_findings_is_refused(correct: Run, content: Any, message: str) -> None:
    save("found.json", content)
    outcome = correct("--output", "fixed.json")
    assert outcome.code == 2
    assert message in outcome.err


def test_findings_of_other_labels_are_refused(correct: Run) -> None:
    annotations = [LABELS["annotations"][3], *LABELS["annotations"]]
    save("labels.json", without(LABELS, annotations=[{**each, "id": n} for n, each in enumerate(annotations[1:3])]))
    outcome = correct("--output", "fixed.json")
    assert outcome.code == 2
    assert "the labels lack what it accuses: wrong_class in image 0" in outcome.err
    assert not Path("fixed.json").exists()


def test_boxes_that_could_not_be_read_are_counted(correct: Run) -> None:
    bad = {"id": 20, "image_id": 1, "category_id": 7, "bbox": [0, 0, -5, 5]}
    save("labels.json", without(LABELS, annotations=[*LABELS["annotations"], bad]))
    outcome = correct("--output", "fixed.json")
    assert outcome.code == 0
    assert "1 boxes could not be read and are not in fixed.json" in outcome.err


# Real sets


def test_a_real_coco_set_is_audited_and_corrected(run: Run) -> None:
    data = folder("coco_val2014_100")
    labels, results = data / "instances_val2014_100.json", data / "instances_val2014_fakebbox100_results.json"
    outcome = run("audit", "--labels", labels, "--predictions", results, "--output", "out.json", "--report", "r.html")
    assert outcome.code == 0
    assert "100 images, 839 labels, 734 predictions" in outcome.out
    listed = json.loads(results.read_text())
    for finding in findings():
        if finding["prediction_index"] is not None:
            prediction = listed[finding["prediction_index"]]
            assert prediction["image_id"] == finding["image_id"]
            if finding["proposed_box"]:
                assert finding["proposed_box"] == pytest.approx(prediction["bbox"])
    fixed = run("correct", "--labels", labels, "--accepted", "out.json", "--min-score", "0.5", "--output", "fixed.json")
    assert fixed.code == 0
    assert_only_annotations_changed(json.loads(labels.read_text()), json.loads(Path("fixed.json").read_text()))
    again = run("audit", "--labels", "fixed.json", "--predictions", results, "--output", "again.json", "--quiet")
    assert again.code == 0
    assert len(findings("again.json")) < len(findings())


def assert_only_annotations_changed(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Whose boxes stay keep all that was said of them; the others lose their outlines, which would not fit."""
    assert {key: value for key, value in after.items() if key != "annotations"} == {
        key: value for key, value in before.items() if key != "annotations"
    }
    old = {annotation["id"]: annotation for annotation in before["annotations"]}
    assert old.keys() - {annotation["id"] for annotation in after["annotations"]}  # Spurious ones are gone.
    kinds = set()
    for annotation in after["annotations"]:
        was = old.get(annotation["id"])
        if was and was["bbox"] == annotation["bbox"]:
            kinds.add("kept")
            assert annotation == was | {"category_id": annotation["category_id"]}
        else:
            kinds.add("moved")
            assert "segmentation" not in annotation
            assert annotation["area"] == pytest.approx(annotation["bbox"][2] * annotation["bbox"][3])
    assert kinds == {"kept", "moved"}


@pytest.mark.parametrize("labels", ["pascalvoc_format", "cvat_format", "yolo_format", "openimages_format"])
def test_a_real_set_is_audited_alike_in_every_format(run: Run, labels: str) -> None:
    data = folder("voc100_multiformat")
    outcome = run("audit", "--labels", data / "gts" / labels, "--quiet")
    assert outcome.code == 0, outcome.err
    assert "100 images, 273 labels" in outcome.out


def test_real_annotators_are_compared(run: Run) -> None:
    data = folder("labelstudio_3annotators")
    outcome = run("audit", "--labels", data / "test_bbox.json", "--report", "r.html")
    assert "5 images, 91 labels, 0 predictions" in outcome.out
    assert "5 images have several annotators" in outcome.out
    assert "Agreement of annotators" in Path("r.html").read_text()
