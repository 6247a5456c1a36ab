"""Files that name classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from boxloss.errors import fault
from boxloss.files.annotations import Class

BESIDE = ("data.yaml", "dataset.yaml", "data.yml", "obj.names", "classes.txt", "labels.txt", "names.txt")
"""What such a file is called where it lies beside the boxes."""


def names_of(value: Mapping[int, str] | Sequence[str] | Path) -> dict[Class, str]:
    """Names by number. A sequence counts from 0, and so do the lines of a text file.

    Raises:
        InvalidInputError: a file does not hold names.
        OSError: it cannot be read.
    """
    if isinstance(value, Mapping):
        return {number: name for number, name in value.items()}  # noqa: C416
    if not isinstance(value, Path):
        return dict(enumerate(value))
    try:
        text = value.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise fault(value, "is not text in UTF-8") from None
    if value.suffix.lower() in (".yaml", ".yml"):
        return _of_yaml(value, text)
    if value.suffix.lower() == ".csv":  # OpenImages: /m/011k07,Tortoise
        pairs = (line.split(",", 1) for line in text.splitlines() if line.strip())
        return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
    return dict(enumerate(line.strip() for line in text.rstrip().splitlines()))


def beside(path: Path) -> Path | None:
    """The file of names in the folder, or in one of the two above it, as in dataset/labels/train."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    folders = (folder, *folder.parents[:2])
    return next((found for up in folders for name in BESIDE if (found := up / name).is_file()), None)


def load_yaml(path: Path, text: str) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        InvalidInputError: it has none.
    """
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise fault(path, f"is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise fault(path, f"holds a {type(content).__name__}; give the keys of a YOLO data.yaml")
    return content


def _of_yaml(path: Path, text: str) -> dict[Class, str]:
    match load_yaml(path, text).get("names"):
        case list(names):
            return {number: str(name) for number, name in enumerate(names)}
        case dict(names):
            return {
                int(number) if str(number).isdecimal() else str(number): str(name) for number, name in names.items()
            }
    raise fault(path, "has no names; give a list or a table of them, as a YOLO data.yaml has")
