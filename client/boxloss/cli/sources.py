"""Sources of labels and predictions: the options that say how to read them, and reading them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

import typer

from boxloss.cli.progress import Steps
from boxloss.errors import InvalidInputError, fault
from boxloss.files.annotations import Source
from boxloss.files.problems import Problem

if TYPE_CHECKING:  # Only audits need the extra's packages.
    from boxloss.files.pictures import Pictures

_FORMATS = "coco, yolo, voc, cvat, labelstudio, openimages, mot, csv or txt"

LabelsPath = Annotated[Path, typer.Option(metavar="PATH", help="A file or folder: COCO, YOLO, VOC, CVAT and others.")]
LabelsFormat = Annotated[str | None, typer.Option(metavar="FORMAT", help=f"{_FORMATS}.", show_default="detected")]
PredictionsFormat = Annotated[str | None, typer.Option(metavar="FORMAT", help=f"{_FORMATS}.", show_default="detected")]
LabelsNames = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Names of the classes: a name a line, data.yaml, or CSV.")
]
PredictionsNames = Annotated[Path | None, typer.Option(metavar="FILE", help="The same for the model's classes.")]
Layout: TypeAlias = Literal["xyxy", "xywh", "cxcywh"]
LabelsLayout = Annotated[Layout | None, typer.Option(help="Of the boxes of txt files.", show_default="xyxy")]
PredictionsLayout = Annotated[Layout | None, typer.Option(help="Of the boxes of txt files.", show_default="xyxy")]
LabelsRelative = Annotated[
    bool, typer.Option("--labels-relative", help="Boxes of txt and csv files are parts of the image, 0 to 1.")
]
PredictionsRelative = Annotated[
    bool, typer.Option("--predictions-relative", help="Boxes of txt and csv files are parts of the image, 0 to 1.")
]
ImagesFolder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", exists=True, file_okay=False, help="With the pictures; subfolders count."),
]


class Reading(NamedTuple):
    """What the options say of how to read a source; `boxloss.files.formats.read` documents it."""

    form: str | None
    names: Path | None
    layout: Layout | None
    relative: bool


class Sources:
    """Reads files, and stops where one holds nothing that can be used.

    Args:
        images: the folder of the pictures, which tell sizes that labels lack.
        steps: shows what is being read.

    Attributes:
        pictures: in that folder.
        problems: of the files; they do not keep the rest from being read.
    """

    def __init__(self, images: Path | None, steps: Steps) -> None:
        self.pictures = _pictures(images)
        self.problems: list[Problem] = []
        self._steps = steps

    def read(self, path: Path, role: Literal["labels", "predictions"], reading: Reading) -> Source:
        """Reads all images.

        Raises:
            InvalidInputError: there are none, or an option is wrong.
        """
        from boxloss.files import formats
        from boxloss.files.pictures import sized

        names = {name: f"--{role}-{name}" for name in ("format", "names", "layout", "relative")}
        before = len(self.problems)
        try:
            source = formats.read(
                path,
                role,
                self.problems.append,
                format=reading.form,  # type: ignore[arg-type]
                names=reading.names,
                layout=reading.layout,
                relative=reading.relative,
            )
        except InvalidInputError as error:
            raise error.renamed(names) from None
        if self.pictures:
            source = sized(source, self.pictures)
        found = list(self._steps.track(source, f"reading {path}"))
        if not found and (problem := next((each for each in self.problems[before:] if each.skipped), None)):
            raise fault(path, f"holds nothing that can be read: {problem}")
        if not found and role == "labels":
            raise fault(path, "holds no images; give a file or folder of labels")
        return dataclasses.replace(source, images=found)


def _pictures(folder: Path | None) -> Pictures | None:
    if folder is None:
        return None
    from boxloss.files.pictures import Pictures

    return Pictures(folder)
