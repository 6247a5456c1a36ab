"""An audit of many images: findings one image after the other, and a summary at the end."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Self

from boxloss.audit.image import Image
from boxloss.audit.rules import ImageAudit, Rules, audit_image
from boxloss.audit.summary import Summary, Tally


class Audit(Iterator[ImageAudit]):
    """Goes over images once and gives what was found in each; afterwards, or when asked, a summary of all.

    Args:
        audited: what was found in each image, and at last the summary.
    """

    def __init__(self, audited: Iterable[ImageAudit | Summary]) -> None:
        self._audited = iter(audited)
        self._summary: Summary | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ImageAudit:
        if self._summary is None:
            each = next(self._audited)
            if isinstance(each, ImageAudit):
                return each
            self._summary = each
        raise StopIteration

    def summary(self) -> Summary:
        """All images together. Audits those first that have not been asked for."""
        for _ in self:
            pass
        assert self._summary is not None
        return self._summary


class AsyncAudit(AsyncIterator[ImageAudit]):
    """The same for asyncio.

    Args:
        audited: what was found in each image, and at last the summary.
    """

    def __init__(self, audited: AsyncIterable[ImageAudit | Summary]) -> None:
        self._audited = aiter(audited)
        self._summary: Summary | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ImageAudit:
        if self._summary is None:
            each = await anext(self._audited)
            if isinstance(each, ImageAudit):
                return each
            self._summary = each
        raise StopAsyncIteration

    async def summary(self) -> Summary:
        """All images together. Audits those first that have not been asked for."""
        async for _ in self:
            pass
        assert self._summary is not None
        return self._summary


def audit(images: Iterable[Image], rules: Rules | None = None, *, worst: int = 100) -> Audit:
    """Audits images in this process, without a server.

    >>> found = audit(images)
    >>> for each in found:
    ...     print(each.image_id, [finding.message for finding in each.findings])
    >>> found.summary().findings

    Args:
        images: read while the audit goes on, one at a time.
        rules: the default ones unless given.
        worst: how many of the worst images and findings the summary names.
    """
    return Audit(_audited(images, rules or Rules(), Tally(worst)))


def _audited(images: Iterable[Image], rules: Rules, tally: Tally) -> Iterator[ImageAudit | Summary]:
    for image in images:
        each = audit_image(image, rules)
        tally.add(image, each)
        yield each
    yield tally.summary()
