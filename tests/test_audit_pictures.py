"""Pictures are found by the names that labels have, and cut where the labels mean it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from boxloss.files.pictures import Pictures

RED, BLUE = (255, 0, 0), (0, 0, 255)
TURN_RIGHT = 6
"""As EXIF says it: the stored picture is shown turned by 90 degrees."""


def halves(width: int, height: int) -> Picture.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), "u1")
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, BLUE
    return Picture.fromarray(pixels)


def color(uri: str | None) -> tuple[int, int, int]:
    """The color in the middle of a cut."""
    assert uri is not None
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    picture = Picture.open(io.BytesIO(base64.b64decode(data)))
    red, green, blue = np.asarray(picture)[picture.height // 2, picture.width // 2].round(-1).tolist()
    return min(red, 255), min(green, 255), min(blue, 255)


@pytest.mark.parametrize("name", ["a.png", "train/a.png", "a.jpg", "/data/train/a.jpg", "C:\\pictures\\train\\a.png"])
def test_a_picture_is_found_by_its_last_folders_and_stem(tmp_path: Path, name: str) -> None:
    (tmp_path / "train").mkdir()
    halves(40, 20).save(tmp_path / "train" / "a.png")
    assert Pictures(tmp_path).size(None, name) == (40, 20)


def test_folders_tell_pictures_of_one_name_apart(tmp_path: Path) -> None:
    for folder, width in (("train", 40), ("val", 60)):
        (tmp_path / folder).mkdir()
        halves(width, 20).save(tmp_path / folder / "a.png")
    pictures = Pictures(tmp_path)
    assert pictures.size(None, "x/val/a.png") == (60, 20)
    assert pictures.size(None, "a.png") is None
    assert pictures.size("a", None) is None


def test_nothing_outside_the_folder_is_opened(tmp_path: Path) -> None:
    halves(40, 20).save(tmp_path / "secret.png")
    (tmp_path / "pictures").mkdir()
    pictures = Pictures(tmp_path / "pictures")
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        assert pictures.size(None, name) is None
        assert pictures.cut(None, name, (40, 20), (0, 0, 20, 20), 100) is None
    assert len(pictures.missing) == 2


@pytest.mark.parametrize("size", [(40, 20), (400, 200), (1.0, 1.0), None])
def test_a_cut_is_where_the_labels_mean_it(tmp_path: Path, size: tuple[float, float] | None) -> None:
    halves(80, 40).save(tmp_path / "a.png")
    width, height = size or (80, 40)
    pictures = Pictures(tmp_path)
    left, right = (0, 0, width / 2, height), (width / 2, 0, width, height)
    assert color(pictures.cut(None, "a", size, left, 30)) == pytest.approx(RED, abs=10)
    assert color(pictures.cut(None, "a", size, right, 30)) == pytest.approx(BLUE, abs=10)
    assert not pictures.missing


def test_a_turned_picture_is_cut_as_it_is_shown(tmp_path: Path) -> None:
    exif = Picture.Exif()
    exif[0x0112] = TURN_RIGHT
    halves(80, 40).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pictures = Pictures(tmp_path)
    assert pictures.size(None, "a.jpg") == (40, 80)
    top, bottom = (0, 0, 40, 40), (0, 40, 40, 80)
    assert color(pictures.cut(None, "a.jpg", (40, 80), top, 30)) == pytest.approx(RED, abs=12)
    assert color(pictures.cut(None, "a.jpg", (40, 80), bottom, 30)) == pytest.approx(BLUE, abs=12)
    stored = pictures.cut(None, "a.jpg", (80, 40), (40, 0, 80, 40), 30)  # These labels ignore how it is turned.
    assert color(stored) == pytest.approx(BLUE, abs=12)


def test_cuts_are_small(tmp_path: Path) -> None:
    Picture.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), "u1")).save(tmp_path / "a.png")
    uri = Pictures(tmp_path).cut(None, "a", (3000, 2000), (0, 0, 3000, 2000), 640)
    assert uri is not None
    assert Picture.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (640, 427)


def test_a_broken_picture_is_missing(tmp_path: Path) -> None:
    halves(80, 40).save(tmp_path / "whole.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    pictures = Pictures(tmp_path)
    assert pictures.cut(None, "a.png", (80, 40), (0, 0, 40, 40), 30) is None
    assert list(pictures.missing) == ["a.png"]
