"""Plausible mistakes in calls of the SDK: each is answered with a sentence that names the argument and the fix."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import boxloss
from boxloss import AsyncClient, CIoU, Client
from tests.servers import ServerProcess

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
BATCH = A, B
LOSS = CIoU()

SWITCHES = ["gradients", "target_gradients", "similarity"]
KEYWORDS: dict[str, list[tuple[Any, str]]] = {
    **{name: [("no", "neither True nor False"), (1, "neither True nor False"), (None, "neither")] for name in SWITCHES},
    "box_format": [("xyx", "choose one of"), (4, "choose one of"), (["xyxy"], "choose one of")],
    "reduction": [("avg", "choose one of"), (None, "choose one of"), (["mean"], "choose one of")],
    "invalid": [("drop", "choose one of"), (True, "choose one of")],
    "image_size": [
        (640, "width and a height"),
        ([640], "give width and height"),
        ("640x480", "width and a height"),
        ((640, 480, 3), "give width and height"),
        (("640", "480"), "not a number"),
        ((math.nan, 480), "not a finite number"),
    ],
    "running_mean": [("0.5", "not a number"), ([0.5, 0.6], "not a number"), (math.nan, "not a finite number")],
    "timeout": [("5", "not a number"), (-1, "0 or more"), (math.nan, "not a finite number"), (True, "not a number")],
    "weights": [("heavy", "numbers"), ([1.0, 2.0], "rows"), ([[1.0]], "shape"), ([[1], [1, 2]], "numbers")],
    "crowd": [("yes", "marks"), ([True, False], "give one each"), ([[True], [True, False]], "marks")],
    "loss": [
        (CIoU, r"give an instance: boxloss.CIoU\(\)"),
        ("ciou", "is no loss"),
        (None, "is no loss"),
        ([LOSS], "use compare for several"),
    ],
    "losses": [
        (LOSS, "give a list"),
        (CIoU, "no list of losses"),
        ("ciou", "no list of losses"),
        (None, "no list of losses"),
        ([], "is empty"),
        ([LOSS, "giou"], r"losses\[1\].*is no loss"),
        ([CIoU], r"losses\[0\].*give an instance"),
    ],
    "metric": [("jaccard", "choose one of"), (3, "choose one of"), (CIoU, "give an instance")],
    **{
        name: [
            (None, "numbers"),
            ("boxes", "numbers"),
            (b"boxes", "numbers"),
            ({"x": 1}, "numbers"),
            (5, "shape"),
            ([0, 0, 4, 4], r"a single box is"),
            ([[0, 0, 4]], "shape"),
            ([[0, 0, 4, 4], [0, 0, 4]], "numbers"),
            (np.array([[object()] * 4]), "numbers"),
        ]
        for name in ("predictions", "targets", "a", "b")
    },
    "batches": [
        (5, "cannot be iterated over"),
        (None, "cannot be iterated over"),
        ("ab", "cannot be iterated over"),
        ([None], r"batches\[0\].*tuple of predictions"),
        ([BATCH, None, BATCH], r"batches\[1\].*tuple of predictions"),
        ([(A,)], r"batches\[0\].*has 1 parts"),
        ([(A, B, [1.0], 4)], r"batches\[0\].*has 4 parts"),
        ([{"predictions": A, "targets": B}], r"batches\[0\].*tuple of predictions"),
        ([BATCH, (A, None)], r"batches\[1\].targets.*numbers"),
    ],
    "images": [
        (5, "cannot be iterated over"),
        ("ab", "cannot be iterated over"),
        ([None], r"images\[0\].*boxloss.audit.image.Image"),
        (["a.jpg"], r"images\[0\].*boxloss.audit.image.Image"),
    ],
    "rules": [("strict", "rules"), (5, "rules")],
    "worst": [("ten", "whole number"), (-1, "0 or more"), (None, "whole number")],
}
RIGHT = {
    "predictions": A,
    "targets": B,
    "a": A,
    "b": B,
    "loss": LOSS,
    "losses": [LOSS],
    "batches": [BATCH],
    "images": [],
}
"""An argument of each kind that must be given."""

METHODS = ["audit", "compare", "evaluate", "evaluate_stream", "info", "losses", "pairwise_iou"]
NOT_ASKED = {"close"}


def mistakes() -> Iterator[Any]:
    for method in METHODS:
        for name in inspect.signature(getattr(Client, method)).parameters:
            if name != "self":
                for number, (value, sentence) in enumerate(KEYWORDS[name]):
                    yield pytest.param(method, name, value, sentence, id=f"{method}-{name}-{number}")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--compile=off") as running:
        yield running


def arguments(method: str, name: str, value: Any) -> dict[str, Any]:
    required = [
        each.name
        for each in inspect.signature(getattr(Client, method)).parameters.values()
        if each.default is each.empty and each.name != "self"
    ]
    return {each: RIGHT[each] for each in required} | {name: value}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as connected:
        yield connected


@pytest.mark.parametrize(("method", "name", "value", "sentence"), list(mistakes()))
def test_a_mistake_is_answered_with_a_sentence_that_names_the_argument(
    client: Client, server: ServerProcess, method: str, name: str, value: Any, sentence: str
) -> None:
    with pytest.raises(boxloss.InvalidInputError, match=sentence) as blocking:
        list(getattr(client, method)(**arguments(method, name, value)))
    assert blocking.value.violations[0].field.startswith(name)

    async def ask() -> None:
        async with AsyncClient(server.address) as connected:
            answer = getattr(connected, method)(**arguments(method, name, value))
            if hasattr(answer, "__aiter__"):
                async for _ in answer:
                    pass
            else:
                await answer

    with pytest.raises(boxloss.InvalidInputError, match=sentence) as awaited:
        asyncio.run(ask())
    assert str(awaited.value) == str(blocking.value)


def test_every_public_method_is_asked() -> None:
    for kind in (Client, AsyncClient):
        public = {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}
        assert public == {*METHODS, *NOT_ASKED}


CONSTRUCTORS: list[tuple[Callable[[], object], str]] = [
    *(
        (lambda kind=kind, wrong=wrong: kind(**wrong), sentence)
        for kind in (Client, AsyncClient)
        for wrong, sentence in [
            ({"address": 50051}, "address: is 50051"),
            ({"address": None}, "address: is None"),
            ({"address": ""}, "address"),
            ({"address": []}, "address: is empty"),
            ({"address": ["localhost:1", 5]}, r"address\[1\]: is 5"),
            ({"address": b"localhost:1"}, "address"),
            ({"timeout": "5"}, "timeout: '5' is not a number"),
            ({"timeout": -1}, "timeout: is -1"),
            ({"timeout": None}, "timeout: None is not a number"),
            ({"tls": True}, "tls: is True; give a boxloss.Tls"),
            ({"tls": "ca.pem"}, "tls: is 'ca.pem'; give a boxloss.Tls"),
            ({"token": 5}, "token is no text"),
            ({"token": ""}, "token is empty"),
            ({"metrics": True}, "metrics: is True"),
            ({"tracing": "yes"}, "tracing: 'yes' is neither"),
        ]
    ),
    (lambda: boxloss.Tls(ca=5), "ca of Tls is 5"),  # type: ignore[arg-type]
    (lambda: boxloss.Tls(certificate="a.pem"), "belong together"),
    (lambda: boxloss.embedded(device=5), "device"),  # type: ignore[arg-type]
    (lambda: boxloss.embedded(device="gpu"), "device"),
    (lambda: boxloss.embedded(device="cpu", timeout="5"), "timeout"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "sentence"), CONSTRUCTORS)
def test_a_mistake_in_a_constructor_is_answered_with_a_sentence(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


LOSSES = [
    kind
    for name in boxloss.__all__
    if isinstance(kind := getattr(boxloss, name), type) and issubclass(kind, boxloss.Loss) and kind is not boxloss.Loss
]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(
    "value", ["much", None, [1.0], math.nan, CIoU, object()], ids=["text", "none", "list", "nan", "class", "object"]
)
def test_a_wrong_parameter_of_a_loss_is_named(kind: type[boxloss.Loss], value: Any) -> None:
    parameters = inspect.signature(kind).parameters
    base = {"base": boxloss.GIoU()} if "base" in parameters else {}
    for name in parameters:
        with pytest.raises(boxloss.InvalidInputError, match=name):
            kind(**base | {name: value})


def test_results_before_an_item_that_is_no_batch_are_given(server: ServerProcess) -> None:
    with Client(server.address) as connected:
        results = connected.evaluate_stream([BATCH, BATCH, None, BATCH], LOSS)  # type: ignore[list-item]
        assert len([next(results), next(results)]) == 2
        with pytest.raises(boxloss.InvalidInputError, match=r"batches\[2\]"):
            next(results)


def test_an_asyncio_client_made_before_its_loop_is_used_in_one_loop_after_another(server: ServerProcess) -> None:
    connected = AsyncClient(server.address)

    async def ask() -> list[float]:
        results = await asyncio.gather(*(connected.evaluate(A, B, LOSS) for _ in range(8)))
        return [float(result.loss[0]) for result in results]

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first == second == [pytest.approx(0.93618608)] * 8
    asyncio.run(connected.close())


def test_an_asyncio_client_whose_loop_ended_with_calls_under_way_goes_on_in_the_next(server: ServerProcess) -> None:
    connected = AsyncClient(server.address)

    async def leave() -> None:
        await connected.info()
        for _ in range(5):
            asyncio.ensure_future(connected.evaluate(A, B, LOSS))  # noqa: RUF006 - the loop's end cancels them.
        await asyncio.sleep(0)

    async def ask() -> float:
        async with connected:
            return float((await connected.evaluate(A, B, LOSS)).loss[0])

    asyncio.run(leave())
    assert asyncio.run(ask()) == pytest.approx(0.93618608)


def test_an_asyncio_client_in_the_loop_of_another_thread_says_what_to_do(server: ServerProcess) -> None:
    connected = AsyncClient(server.address)

    async def elsewhere() -> None:
        await connected.evaluate(A, B, LOSS)

    async def ask() -> None:
        await connected.evaluate(A, B, LOSS)
        with pytest.raises(boxloss.BoxlossError, match="create one in each event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
        await connected.close()

    asyncio.run(ask())
