"""Labels and predictions of the same images, brought together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boxloss.audit.image import Id, Image, Labels, Predictions
from boxloss.files.annotations import Annotations, Class, Source, placed
from boxloss.files.filenames import parts

EXAMPLES = 5
"""Named of each kind of mismatch."""


@dataclass(frozen=True)
class Mismatch:
    """Something that did not join, or joined only with care.

    Attributes:
        what: happened, and what to do about it.
        count: of the images, boxes or classes that it happened to.
        examples: the first of them.
    """

    what: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} {self.what}: {', '.join(self.examples)}{more}"


@dataclass(frozen=True)
class Joined:
    """The images to audit, and what did not join."""

    images: tuple[Image, ...]
    mismatches: tuple[Mismatch, ...]


def join(labels: Source, predictions: Source | None = None, *, complete: bool = False) -> Joined:
    """Brings labels and predictions together; both are held in memory, at some hundred bytes a box.

    Images join by id, where 7 and "7" are the same; ids of two images whose names differ do not count. Then they join
    by their file names without endings: whole, by as many of the last folders as both have, by the stem alone. A name
    that fits several images joins none.

    Classes join by name, whatever its case, spaces, hyphens and underscores; the spelling is that of the labels. Class
    numbers of predictions are looked up in the labels' table of classes; what stays a number is called by it.

    Images that only the labels know are audited without predictions, and reported; such that only the predictions know
    are left out, and reported. Predictions without scores count as sure, and are reported.

    Args:
        labels: what people drew.
        predictions: what a model found; None to audit labels alone.
        complete: the model saw all images; what it says nothing of, it found nothing in. Lists of results need that:
            they cannot name images without boxes.
    """
    notes = _Notes()
    labeled = list(labels)
    predicted = [] if predictions is None else list(predictions)
    partners, unclear = _partners(labeled, predicted, notes)
    class_of = _Classes(labeled, labels.categories, notes)
    images = []
    for index, label in enumerate(labeled):
        partner = predicted[partners[index]] if index in partners else None
        notes.missing(label, partner, predictions is not None, complete)
        if label.skipped and not len(label):
            continue
        if (pair := _same_frame(label, partner, notes)) is None:
            continue
        label, partner = pair
        found = None
        if partner is not None and (len(partner) or not partner.skipped):
            found = _predictions(partner, class_of.predicted, notes)
        elif partner is None and predictions is not None and complete and index not in unclear:
            found = Predictions(np.empty((0, 4)), (), np.empty(0))
        sizes = label if label.width is not None or partner is None else partner
        images.append(
            Image(
                _image_id(label, partner),
                _labels(label, class_of.labeled),
                found,
                sizes.width,
                sizes.height,
                label.file_name if label.file_name is not None or partner is None else partner.file_name,
            )
        )
    joined = set(partners.values())
    for index, partner in enumerate(predicted):
        if index not in joined:
            notes.add("predicted images have no labels, not even an empty list; correct their ids or names", partner)
    class_of.compare()
    return Joined(tuple(images), notes.mismatches())


@dataclass(frozen=True, eq=False)
class Annotated:
    """One image with what each annotator drew in it.

    Attributes:
        image_id: names it.
        labels: of each annotator by name, no boxes of one who looked and drew nothing; those of nobody known under "".
        width: in pixels; 1 where the size is not known and the boxes are parts of the image.
        height: in pixels, or 1, as the width.
        file_name: of the picture, where it is known.
        skipped: number of boxes that could not be used; with some, who has no boxes may have drawn them.
    """

    image_id: Id
    labels: Mapping[str, Labels]
    width: float | None
    height: float | None
    file_name: str | None
    skipped: int


def by_annotator(labels: Source) -> Iterator[Annotated]:
    """The labels of each image, apart by annotator, for their agreement; image by image."""
    for image in labels:
        found = placed(image, 1.0, 1.0)
        everyone = _labels(found, lambda category: _name_of(category, labels.categories))
        yield Annotated(
            _image_id(found),
            {name: _of(everyone, name) for name in dict.fromkeys((*found.seen_by, *found.annotators))},
            found.width,
            found.height,
            found.file_name,
            found.skipped,
        )


def _of(labels: Labels, annotator: str) -> Labels:
    chosen = [index for index, name in enumerate(labels.annotators) if name == annotator]
    return Labels(
        labels.boxes[chosen],
        [labels.classes[index] for index in chosen],
        [labels.ids[index] for index in chosen],
        labels.crowd[chosen],
        labels.difficult[chosen],
        [annotator] * len(chosen),
    )


class _Notes:
    """Mismatches as they are met."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, example: object, count: int = 1) -> None:
        self._counts[what] += count
        if len(self._examples[what]) < EXAMPLES:
            self._examples[what].append(str(example))

    def missing(self, label: Annotations, partner: Annotations | None, has_model: bool, complete: bool) -> None:
        """Notes what is known of an image, but could not be read, or is known to one side alone."""
        if label.skipped:
            what = "labeled images have boxes that could not be read; what lies there may pass for unlabeled"
            self.add(f"{what}, so those without any other are left out", label)
        if partner is not None and partner.skipped:
            what = "predicted images have boxes that could not be read; their labels may pass for spurious"
            self.add(f"{what}, so those without any other count as not predicted", partner)
        if has_model and partner is None:
            hint = "the model, which saw all, found nothing there" if complete else "say complete if the model saw them"
            self.add(f"labeled images have no predictions; {hint}", label)

    def mismatches(self) -> tuple[Mismatch, ...]:
        return tuple(Mismatch(what, count, tuple(self._examples[what])) for what, count in self._counts.items())


def _partners(
    labeled: Sequence[Annotations], predicted: Sequence[Annotations], notes: _Notes
) -> tuple[dict[int, int], set[int]]:
    """The predicted image of each labeled one, by their positions; and the labeled ones for which that is unclear."""
    partners: dict[int, int] = {}
    free = set(range(len(predicted)))
    label_names, predicted_names = ([_name(image) for image in images] for images in (labeled, predicted))

    def pair(
        left: Iterable[Hashable], right: Iterable[Hashable], fits: Callable[[int, int], bool] | None = None
    ) -> None:
        """Pairs those that alone have a key on both sides."""
        theirs = _positions(right)
        for key, mine in _positions(left).items():
            if len(mine) == 1 and len(theirs.get(key, ())) == 1:
                a, b = mine[0], theirs[key][0]
                if a not in partners and b in free and (fits is None or fits(a, b)):
                    partners[a] = b
                    free.discard(b)

    def same_picture(a: int, b: int) -> bool:
        mine, theirs = labeled[a], predicted[b]
        if mine.file_name is None or theirs.file_name is None or label_names[a][-1:] == predicted_names[b][-1:]:
            return True
        example = f"{mine.image_id} is {mine.file_name} and {theirs.file_name}"
        notes.add("ids name different pictures in labels and predictions; file names decide there", example)
        return False

    pair(map(_id, labeled), map(_id, predicted), same_picture)
    pair((name or None for name in label_names), (name or None for name in predicted_names))
    deepest = min(max(map(len, names), default=0) for names in (label_names, predicted_names))
    for depth in range(deepest, 0, -1):
        if len(partners) < len(labeled) and free:
            pair(_tails(label_names, depth), _tails(predicted_names, depth))
    stems = {predicted_names[index][-1:] for index in free}
    unclear = {index for index, name in enumerate(label_names) if index not in partners and name and name[-1:] in stems}
    for index in sorted(unclear):
        notes.add("names fit several images; make them unique, or keep the folders of both alike", labeled[index])
    return partners, unclear


def _positions(keys: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    found: dict[Hashable, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        if key is not None:
            found[key].append(position)
    return found


def _id(image: Annotations) -> str | None:
    return None if image.image_id is None else str(image.image_id)


def _name(image: Annotations) -> tuple[str, ...]:
    """The folders and stem of the picture; one without a file name goes by its id."""
    return parts(str(image.image_id) if image.file_name is None else image.file_name)


def _tails(names: Iterable[tuple[str, ...]], depth: int) -> Iterator[tuple[str, ...] | None]:
    return (name[-depth:] if len(name) >= depth else None for name in names)


def _same_frame(
    label: Annotations, partner: Annotations | None, notes: _Notes
) -> tuple[Annotations, Annotations | None] | None:
    """Both with boxes in one frame, pixels or the unit square; None, after a note, if there is none."""
    for found in (label, partner):
        if found is not None and len(found) and not found.relative and found.boxes.max() <= 1:
            notes.add("images have all boxes within one pixel; say that they are relative, if they are", found)
    if partner is None:
        return placed(label, 1.0, 1.0), None
    sizes = [(found.width, found.height) for found in (label, partner) if found.width is not None]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        example = "{} has {:g} x {:g} and {:g} x {:g}".format(label, *sizes[0], *sizes[1])
        notes.add("images have other sizes in labels than in predictions; give both for the same picture", example)
    if sizes:
        label, partner = placed(label, *sizes[0]), placed(partner, *sizes[0])
    if label.relative != partner.relative and len(label) and len(partner):
        what = "images are left out: one side has pixels, the other parts of the image, and neither knows its size"
        notes.add(f"{what}; read one of them from a format with sizes", label)
        return None
    return placed(label, 1.0, 1.0), placed(partner, 1.0, 1.0)


class _Classes:
    """What classes are called in the audit."""

    def __init__(self, labeled: Iterable[Annotations], table: Mapping[Class, str], notes: _Notes) -> None:
        self._table, self._notes = table, notes
        self._used = {self.labeled(category) for image in labeled for category in image.classes}
        self._spellings: dict[str, set[str]] = defaultdict(set)
        for name in self._used | set(table.values()):
            self._spellings[_normal(name)].add(name)
        self._known: dict[Class, str] = {}

    def labeled(self, category: Class) -> str:
        return _name_of(category, self._table)

    def predicted(self, category: Class) -> str:
        if category not in self._known:
            self._known[category] = self._resolved(category)
        return self._known[category]

    def compare(self) -> None:
        """Notes the classes that only the labels have."""
        for name in sorted(self._used - set(self._known.values())) if self._known else ():
            self._notes.add("classes of the labels are never predicted; their labels will look wrong", name)

    def _resolved(self, category: Class) -> str:
        if not isinstance(category, str) and category in self._table:
            name = self._table[category]
            what = (
                "class numbers of predictions were looked up among the labels' classes; name them if these are others"
            )
            self._notes.add(what, f"{category} is {name}")
            return name
        name = str(category)
        spellings = self._spellings.get(_normal(name), set())
        if name in spellings:
            return name
        if len(spellings) == 1:
            (spelling,) = spellings
            self._notes.add("classes are spelled as in the labels", f"{name} as {spelling}")
            return spelling
        if spellings:
            what = "classes of the predictions fit several of the labels; spell them alike"
            self._notes.add(what, f"{name}: {' or '.join(sorted(spellings))}")
        else:
            self._notes.add(
                "classes of the predictions are not among the labels'; rename them or give their names", name
            )
        return name


def _name_of(category: Class, table: Mapping[Class, str]) -> str:
    return category if isinstance(category, str) else table.get(category, str(category))


def _normal(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in " \t_-")


def _image_id(image: Annotations, partner: Annotations | None = None) -> Id:
    """The id of an image, or its file name where it has none; the labels' before the predictions'."""
    for known in (image, partner):
        if known is not None and known.image_id is not None:
            return known.image_id
        if known is not None and known.file_name is not None:
            return known.file_name
    return ""


def _labels(found: Annotations, name_of: Callable[[Class], str]) -> Labels:
    classes = [name_of(category) for category in found.classes]
    return Labels(found.boxes, classes, found.ids, found.crowd, found.difficult, found.annotators)


def _predictions(found: Annotations, name_of: Callable[[Class], str], notes: _Notes) -> Predictions:
    scores = np.full(len(found), np.nan) if found.scores is None else found.scores
    if lacking := int(np.isnan(scores).sum()):
        notes.add("predictions have no score and count as sure; give one each", found, lacking)
    classes = [name_of(category) for category in found.classes]
    return Predictions(found.boxes, classes, np.nan_to_num(scores, nan=1.0), found.rows)
