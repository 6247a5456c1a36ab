"""YOLO text: `class cx cy w h [score]` as parts of the image, one file for each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from boxloss.errors import InvalidInputError
from boxloss.files.annotations import Annotations, Class, Draft, Source
from boxloss.files.filenames import is_picture
from boxloss.files.formats.names import BESIDE, beside, load_yaml, names_of
from boxloss.files.formats.request import Request, corners, named
from boxloss.files.formats.text import files, lines, name_under, number, wanted

_YAML = (".yaml", ".yml")


def read(request: Request) -> Source:
    """Reads a folder of text files, or what a data.yaml lists.

    Names of classes are taken from the request, or from data.yaml, obj.names or classes.txt in the folder or above it.
    An empty file, and a picture that data.yaml lists without a file, says that the image has no boxes.
    """
    table = request.path if request.path.suffix.lower() in _YAML else beside(request.path)
    names = request.names
    try:
        if names is None:
            names = names_of(table) if table else {}
    except InvalidInputError as error:
        for violation in error.violations:
            request.problem("", violation.description, "name the classes by names", None, table)
        names = {}
    listed = _listed(request) if request.path.suffix.lower() in _YAML else _beneath(request)
    return Source(request.path, "yolo", _images(request, listed, names), names)


@dataclass(frozen=True)
class _File:
    path: Path
    """Of the boxes; it may not exist where the picture does."""
    picture: str


def _beneath(request: Request) -> Iterator[_File]:
    for path in wanted(request, ".txt"):
        if path.name not in BESIDE and not is_list(path):
            yield _File(path, name_under(request.path, path))


def is_list(path: Path) -> bool:
    """Whether a text file lists pictures, as train.txt does, instead of boxes."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return is_picture(next((line.strip() for line in file if line.strip()), ""))
    except (OSError, UnicodeDecodeError):
        return False


def _listed(request: Request) -> Iterator[_File]:
    """The files that belong to the pictures of a data.yaml's train, val and test."""
    try:
        content = load_yaml(request.path, request.path.read_text("utf-8-sig"))
    except (InvalidInputError, UnicodeDecodeError, OSError):
        return  # The names were sought there first, and the report made.
    folder = request.path.parent / str(content.get("path") or ".")
    folder = folder if folder.is_dir() else request.path.parent
    seen: set[Path] = set()
    for split in ("train", "val", "test"):
        places = content.get(split) or []
        for place in places if isinstance(places, list) else [places]:
            root = folder / str(place)
            if not root.exists():  # Roboflow writes ../train/images for train/images.
                root = folder / str(place).removeprefix("../")
            if not root.exists() and not _boxes_of(root).exists():
                request.problem(split, f"{root} does not exist", "correct the path", "file")
            for found in _split(request, root, folder):
                if found.path not in seen:
                    seen.add(found.path)
                    yield found


def _split(request: Request, root: Path, folder: Path) -> Iterator[_File]:
    """The files of the pictures in a folder or a list, and those without a picture."""
    pictures = sorted(path for path in root.rglob("*") if is_picture(path.name)) if root.is_dir() else []
    for line, name in (lines(root, request) or ()) if root.is_file() else ():
        if is_picture(name.strip()):
            pictures.append(root.parent / name.strip())
        else:
            request.problem(f"line {line}", f"{name.strip()!r:.60} is no picture", "list pictures", "line", root)
    for picture in pictures:
        yield _File(_boxes_of(picture).with_suffix(".txt"), _within(folder, picture))
    if (boxes := _boxes_of(root)).is_dir():
        known = {_boxes_of(picture).with_suffix(".txt") for picture in pictures}
        for path in files(boxes, ".txt"):
            if path not in known and path.name not in BESIDE and not is_list(path):
                yield _File(path, _within(folder, path.with_suffix("")))


def _within(folder: Path, path: Path) -> str:
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _boxes_of(picture: Path) -> Path:
    """Where YOLO looks for the boxes of a picture or a folder: labels for the last images in its path."""
    parts = list(PurePosixPath(picture.as_posix()).parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _images(request: Request, listed: Iterable[_File], names: Mapping[Class, str]) -> Iterator[Annotations]:
    for found in listed:
        if (rows := lines(found.path, request) if found.path.exists() else []) is None:
            continue
        draft = Draft(found.path, request.report, file_name=found.picture, relative=True)
        for line, text in rows:
            _add(draft, f"line {line}", text.split(), names)
        yield draft.finish()


def _add(draft: Draft, place: str, words: list[str], names: Mapping[Class, str]) -> None:
    numbers = [found for word in words[1:] if (found := number(word)) is not None]
    shown = " ".join(words)
    if len(words) > 6 and len(numbers) == len(words) - 1:
        what = f"has {len(numbers)} numbers: a polygon, a turned box or keypoints"
        draft.problem(place, what, "give class cx cy w h: only upright boxes are audited", "line")
        return
    if len(words) not in (5, 6) or len(numbers) != len(words) - 1 or not _is_whole(words[0]):
        draft.problem(place, f"{shown!r:.60} is no box", "give class cx cy w h and perhaps a score", "line")
        return
    category = named(names, int(float(words[0])), lambda what, fix: draft.problem(place, what, fix))
    a, b, c, d, *score = numbers
    draft.add(place, corners("cxcywh", (a, b, c, d)), category, score=score[0] if score else None)


def _is_whole(word: str) -> bool:
    found = number(word)
    return found is not None and found.is_integer()
