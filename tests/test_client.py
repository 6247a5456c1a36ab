"""The SDK, blocking and asyncio, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import boxloss
from boxloss import AlphaIoU, BoxlossError, CIoU, GIoU, InvalidInputError, IoU, SmoothL1
from boxloss_server.losses.polygons import rectangle_corners
from tests.boxes import FORMATS, corner_slopes, from_corners, random_boxes
from tests.catalogue import LOSSES
from tests.reference import Pair
from tests.servers import ServerProcess

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]


@pytest.fixture(scope="module")
def thousand() -> tuple[NDArray[Any], NDArray[Any], dict[boxloss.Loss, list[Any]]]:
    """A thousand random pairs with the reference's losses."""
    rng = np.random.default_rng(40)
    predictions, targets = random_boxes(rng, 1000).astype("<f4"), random_boxes(rng, 1000).astype("<f4")
    pairs = [Pair(p, t) for p, t in zip(predictions.tolist(), targets.tolist(), strict=True)]
    return predictions, targets, {loss: [reference(pair) for pair in pairs] for loss, reference in LOSSES.items()}


@pytest.mark.parametrize("box_format", FORMATS)
@pytest.mark.parametrize(("dtype", "value_tolerance", "gradient_tolerance"), [("f4", 1e-5, 1e-4), ("f8", 1e-10, 1e-10)])
def test_a_thousand_pairs_agree_with_an_independent_computation(
    client: boxloss.Client,
    thousand: tuple[NDArray[Any], NDArray[Any], dict[boxloss.Loss, list[Any]]],
    box_format: Any,
    dtype: str,
    value_tolerance: float,
    gradient_tolerance: float,
) -> None:
    predictions, targets, expected = thousand
    results = client.compare(
        from_corners(predictions.astype("f8"), box_format).astype(dtype),
        from_corners(targets.astype("f8"), box_format).astype(dtype),
        list(LOSSES),
        gradients=True,
        target_gradients=True,
        box_format=box_format,
        image_size=(640, 480),
        running_mean=Pair.running_mean,
    )
    slopes = corner_slopes(box_format)
    for result in results:
        reference = expected[result.spec]
        gradients = np.array([dual.slopes for dual in reference])
        assert result.loss.dtype == dtype
        assert result.gradient is not None
        assert result.target_gradient is not None
        np.testing.assert_allclose(
            result.loss, [dual.value for dual in reference], rtol=value_tolerance, atol=value_tolerance
        )
        for gradient, corners in ((result.gradient, gradients[:, :4]), (result.target_gradient, gradients[:, 4:])):
            np.testing.assert_allclose(
                gradient, corners @ slopes, rtol=gradient_tolerance, atol=gradient_tolerance * np.abs(corners).max()
            )


def test_evaluate_returns_loss_gradients_and_iou(client: boxloss.Client) -> None:
    result = client.evaluate(A, B, CIoU(), gradients=True, target_gradients=True)
    assert result.spec == CIoU()
    assert result.loss == pytest.approx([0.9361860890731847])
    assert result.gradient is not None
    assert result.gradient.shape == (1, 4)
    assert result.target_gradient is not None
    assert result.iou == pytest.approx([3 / 17])
    assert result.valid.tolist() == [True]
    assert result.executions[0].batch_pairs >= 1


def test_results_are_the_callers_own(client: boxloss.Client) -> None:
    result = client.evaluate(A, B, CIoU(), gradients=True)
    result.loss[:] = 0
    assert result.gradient is not None
    result.gradient[:] = 0


@pytest.mark.parametrize(
    ("boxes", "dtype"),
    [
        (A, "float64"),
        ([[0, 0, 4, 4]], "float64"),
        (np.array(A), "float64"),
        (np.array(A, ">f4"), "float32"),
        (np.asfortranarray(np.array(A * 3, "f4")), "float32"),
        (np.array(A, "f2"), "float32"),
        (torch.tensor(A, requires_grad=True), "float32"),
        (torch.tensor(A, dtype=torch.float64), "float64"),
        (torch.tensor(A, dtype=torch.bfloat16), "float32"),
        (torch.tensor(A, dtype=torch.float16), "float32"),
    ],
    ids=["list", "integers", "numpy", "big endian", "column major", "half", "torch", "torch double", "bf16", "fp16"],
)
def test_takes_lists_arrays_and_tensors(client: boxloss.Client, boxes: Any, dtype: str) -> None:
    result = client.evaluate(boxes, boxes, SmoothL1())
    assert result.loss.dtype == dtype
    assert not result.loss.any()


def test_mixed_types_are_computed_in_the_wider(client: boxloss.Client) -> None:
    assert client.evaluate(np.array(A, "f4"), B, CIoU()).loss.dtype == "float64"


def test_weights_and_reductions(client: boxloss.Client) -> None:
    rng = np.random.default_rng(41)
    predictions, targets, weights = random_boxes(rng, 20), random_boxes(rng, 20), rng.uniform(0, 2, 20)
    loss = client.evaluate(predictions, targets, GIoU()).loss
    weighted = client.evaluate(predictions, targets, GIoU(), weights=weights)
    mean = client.evaluate(predictions, targets, GIoU(), weights=weights.tolist(), reduction="mean")
    total = client.evaluate(predictions, targets, GIoU(), reduction="sum")
    np.testing.assert_allclose(weighted.loss, loss * weights)
    assert mean.loss == pytest.approx((loss * weights).mean())
    assert total.loss == pytest.approx(loss.sum())
    assert total.loss.shape == ()


def test_similarities_are_1_minus_the_loss(client: boxloss.Client) -> None:
    rng = np.random.default_rng(49)
    predictions, targets = random_boxes(rng, 20), random_boxes(rng, 20)
    losses = [loss for loss in LOSSES if loss.has_similarity]
    options: dict[str, Any] = {"gradients": True, "image_size": (640, 480)}
    for loss, similarity in zip(
        client.compare(predictions, targets, losses, **options),
        client.compare(predictions, targets, losses, similarity=True, **options),
        strict=True,
    ):
        assert loss.gradient is not None
        np.testing.assert_allclose(similarity.loss, 1 - loss.loss, atol=1e-12)
        np.testing.assert_allclose(similarity.gradient, -loss.gradient, atol=1e-12)  # type: ignore[arg-type]


def test_the_running_mean_is_handed_back(client: boxloss.Client, narrow: boxloss.Client) -> None:
    rng = np.random.default_rng(50)
    predictions, targets = random_boxes(rng, 333), random_boxes(rng, 333)
    loss = boxloss.WIoU(version=3, momentum=0.1)
    expected = 0.5 + 0.1 * ((1 - client.evaluate(predictions, targets, IoU()).iou).mean() - 0.5)
    for each in (client, narrow):
        result = each.evaluate(predictions, targets, loss, running_mean=0.5)
        assert result.running_mean == pytest.approx(expected)
    assert client.evaluate([], [], loss, running_mean=0.5).running_mean == 0.5
    assert client.evaluate(predictions, targets, CIoU(), running_mean=0.5).running_mean is None


def test_requests_with_different_contexts_share_a_batch_and_keep_their_own(client: boxloss.Client) -> None:
    means = [0.1 + i / 40 for i in range(32)]
    alone = [client.evaluate(A, B, boxloss.WIoU(version=2), running_mean=mean).loss for mean in means]
    with ThreadPoolExecutor(32) as threads:
        together = threads.map(
            lambda mean: client.evaluate(A, B, boxloss.WIoU(version=2), running_mean=mean).loss, means
        )
    assert len({float(loss[0]) for loss in alone}) == 32
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first, second)


def test_masked_pairs_are_marked(client: boxloss.Client) -> None:
    result = client.evaluate([[4, 0, 0, 4], *A], B * 2, CIoU(), gradients=True, invalid="mask")
    assert result.valid.tolist() == [False, True]
    assert np.isnan(result.loss).tolist() == [True, False]
    assert result.gradient is not None
    assert not result.gradient[0].any()


def test_zero_pairs_are_fine(client: boxloss.Client) -> None:
    empties: list[Any] = [[], np.empty((0, 4), "f4")]
    for empty in empties:
        result = client.evaluate(empty, empty, CIoU(), gradients=True, reduction="mean")
        assert result.loss == 0
        assert result.gradient is not None
        assert result.gradient.shape == (0, 4)
    assert client.pairwise_iou([], B).shape == (0, 1)


def test_compare_answers_in_the_order_asked(client: boxloss.Client) -> None:
    losses = [GIoU(), AlphaIoU(CIoU(), alpha=3.0), IoU(form="log")]
    results = client.compare(A, B, losses)
    assert [result.spec for result in results] == losses
    assert [result.loss[0] for result in results] == [client.evaluate(A, B, loss).loss[0] for loss in losses]


@pytest.mark.parametrize("metric", ["iou", "giou", "diou", "ciou", "eiou"])
def test_matrices_hold_every_metric(client: boxloss.Client, metric: Any) -> None:
    rng = np.random.default_rng(42)
    rows, columns = random_boxes(rng, 5), random_boxes(rng, 7)
    matrix = client.pairwise_iou(rows, columns, metric=metric)
    loss = boxloss.losses.CATALOGUE[metric]()
    for i, j in np.ndindex(5, 7):
        pair = client.evaluate(rows[[i]], columns[[j]], loss)
        assert matrix[i, j] == pytest.approx(1 - pair.loss[0])
    assert client.pairwise_iou([[1, 0, 0, 1]], A, invalid="mask").tolist() == [[pytest.approx(np.nan, nan_ok=True)]]


def test_any_similarity_can_be_a_metric(client: boxloss.Client) -> None:
    rng = np.random.default_rng(51)
    rows, columns = random_boxes(rng, 4), random_boxes(rng, 5)
    for loss in (boxloss.SIoU(), AlphaIoU(GIoU()), boxloss.MPDIoU(), boxloss.NWD()):
        matrix = client.pairwise_iou(rows, columns, metric=loss, image_size=(640, 480))
        pairs = client.evaluate(np.repeat(rows, 5, 0), np.tile(columns, (4, 1)), loss, image_size=(640, 480))
        np.testing.assert_allclose(matrix.ravel(), 1 - pairs.loss, atol=1e-12)


def test_crowds_are_compared_by_cocos_rule(client: boxloss.Client, narrow: boxloss.Client) -> None:
    for each in (client, narrow):
        detections = [[0, 0, 2, 2], [1, 1, 3, 3]] * 30
        matrix = each.pairwise_iou(
            detections, [[0, 0, 10, 10], [0, 0, 10, 10], [2, 2, 9, 9]], crowd=[True, False, True]
        )
        assert matrix[:2].tolist() == [[1.0, 0.04, 0.0], [1.0, 0.04, 0.25]]
        pairs = each.evaluate(detections[:2] * 40, [[2, 2, 9, 9]] * 80, CIoU(), crowd=[True, True, False, False] * 20)
        assert pairs.iou[:4] == pytest.approx([0.0, 0.25, 0.0, 1 / 52])
        np.testing.assert_array_equal(pairs.loss[:2], pairs.loss[2:4])
    with pytest.raises(InvalidInputError, match=r"crowd: has shape \(2,\) for 1 predictions; give one each"):
        client.evaluate(A, B, CIoU(), crowd=[True, False])
    with pytest.raises(InvalidInputError, match="crowd: does not go with a loss that needs a running mean"):
        client.evaluate(A, B, boxloss.WIoU(version=2), running_mean=0.5, crowd=[True])
    with pytest.raises(InvalidInputError, match="crowd: goes with the plain IoU only"):
        client.pairwise_iou(A, B, metric="giou", crowd=[True])
    with pytest.raises(InvalidInputError, match=r"crowd: has shape \(2,\) for 1 boxes in b"):
        client.pairwise_iou(A, B, crowd=[True, False])


def oriented_boxes(rng: np.random.Generator, count: int) -> NDArray[Any]:
    return np.hstack([rng.uniform(0, 50, (count, 2)), rng.uniform(5, 60, (count, 2)), rng.uniform(-4, 4, (count, 1))])


ORIENTED: list[boxloss.Loss] = [
    IoU(),
    IoU(form="log"),
    GIoU(),
    boxloss.DIoU(),
    AlphaIoU(GIoU()),
    boxloss.Focal(IoU()),
    boxloss.Focaler(IoU()),
    boxloss.ProbIoU(),
    boxloss.GWD(),
    boxloss.KLD(form="jeffreys"),
    boxloss.BCD(transform="sqrt"),
    boxloss.KFIoU(),
]


def test_oriented_boxes_have_one_loss_in_degrees_radians_and_as_quads(client: boxloss.Client) -> None:
    rng = np.random.default_rng(52)
    radians = [oriented_boxes(rng, 40) for _ in range(2)]
    degrees = [np.hstack([boxes[:, :4], np.rad2deg(boxes[:, 4:])]) for boxes in radians]
    quads = [rectangle_corners(torch.tensor(boxes).T).T.numpy() for boxes in radians]
    formats: dict[Any, list[NDArray[Any]]] = {"cxcywha_radians": radians, "cxcywha_degrees": degrees, "quad": quads}
    answers = {
        name: client.compare(boxes[0], boxes[1], ORIENTED, box_format=name, gradients=True, target_gradients=True)
        for name, boxes in formats.items()
    }
    for in_radians, in_degrees, as_quads in zip(*answers.values(), strict=True):
        np.testing.assert_allclose(in_degrees.loss, in_radians.loss, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(as_quads.loss, in_radians.loss, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(as_quads.iou, in_radians.iou, rtol=1e-9, atol=1e-9)
        assert in_radians.gradient is not None
        assert in_degrees.gradient is not None
        assert as_quads.gradient is not None
        assert as_quads.gradient.shape == (40, 8)
        np.testing.assert_allclose(
            in_degrees.gradient * [1, 1, 1, 1, 180 / np.pi], in_radians.gradient, rtol=1e-7, atol=1e-9
        )
        # Moving the center moves all corners.
        moved = as_quads.gradient.reshape(-1, 4, 2).sum(1)
        np.testing.assert_allclose(moved, in_radians.gradient[:, :2], rtol=1e-7, atol=1e-9)


def test_oriented_boxes_at_angle_0_score_as_axis_aligned_ones(client: boxloss.Client) -> None:
    rng = np.random.default_rng(53)
    boxes = [random_boxes(rng, 30) for _ in range(2)]
    upright = [np.hstack([from_corners(each, "cxcywh"), np.zeros((30, 1))]) for each in boxes]
    losses: list[boxloss.Loss] = [IoU(), GIoU(), boxloss.DIoU()]
    for aligned, oriented in zip(
        client.compare(boxes[0], boxes[1], losses),
        client.compare(upright[0], upright[1], losses, box_format="cxcywha_degrees"),
        strict=True,
    ):
        np.testing.assert_allclose(oriented.loss, aligned.loss, rtol=1e-9, atol=1e-9)


def test_oriented_matrices_and_masks(client: boxloss.Client) -> None:
    rng = np.random.default_rng(54)
    rows, columns = oriented_boxes(rng, 4), oriented_boxes(rng, 6)
    columns[2, 3] = 0
    matrix = client.pairwise_iou(rows, columns, box_format="cxcywha_radians", invalid="mask")
    assert np.isnan(matrix[:, 2]).all()
    pairs = client.evaluate(
        np.repeat(rows, 6, 0), np.tile(columns, (4, 1)), IoU(), box_format="cxcywha_radians", invalid="mask"
    )
    np.testing.assert_allclose(matrix.ravel(), pairs.iou, atol=1e-12)
    assert pairs.valid.reshape(4, 6)[:, 2].tolist() == [False] * 4


def test_losses_shows_what_the_server_offers(client: boxloss.Client) -> None:
    losses = {loss.name: loss for loss in client.losses()}
    assert losses["alpha_iou"].parameters[0].default is None
    assert {"iou", "ciou", "siou"} <= set(losses["alpha_iou"].parameters[0].choices)
    assert losses["smooth_l1"].parameters[0].default == 1.0
    assert losses["iou"].parameters[0].choices == ("linear", "log", "square")
    info = client.info()
    assert (info.device, info.version, info.request_pairs) == ("cpu", "0.1.0", 2**20)


def _wrong(value: Any) -> Any:
    """Hides a value of the wrong type from the type checker."""
    return value


BAD_CALLS: dict[str, tuple[Callable[[boxloss.Client], Any], str]] = {
    "a single box": (lambda c: c.evaluate(A[0], B, CIoU()), r"predictions: has shape \(4,\); give \(N, 4\)"),  # type: ignore[arg-type]
    "five columns": (lambda c: c.evaluate([[1, 2, 3, 4, 5]], B, CIoU()), r"predictions: has shape \(1, 5\)"),
    "ragged rows": (lambda c: c.evaluate([[1, 2], [3]], B, CIoU()), r"predictions: cannot be read as an array"),
    "words": (lambda c: c.evaluate(A, [["a", "b", "c", "d"]], CIoU()), r"targets: cannot be read as an array"),  # type: ignore[list-item]
    "complex numbers": (lambda c: c.evaluate(A, [[1j] * 4], CIoU()), r"targets: cannot be read as an array"),  # type: ignore[list-item]
    "more targets": (lambda c: c.evaluate(A, B * 2, CIoU()), r"targets: has 2 rows for 1 predictions; give one"),
    "fewer weights": (lambda c: c.evaluate(A, B, CIoU(), weights=[]), r"weights: has 0 rows for 1 predictions"),
    "weights in rows": (lambda c: c.evaluate(A, B, CIoU(), weights=[[1]]), r"weights: has shape \(1, 1\); give \(N,\)"),
    "no loss": (lambda c: c.compare(A, B, []), r"losses: is empty"),
    "a class for a loss": (lambda c: c.evaluate(A, B, _wrong(CIoU)), r"loss: is the class CIoU; give an instance"),
    "a format": (
        lambda c: c.evaluate(A, B, CIoU(), box_format=_wrong("yolo")),
        r"box_format: 'yolo' is not known; choose one of xyxy, xywh, cxcywh, ",
    ),
    "a reduction": (
        lambda c: c.evaluate(A, B, CIoU(), reduction=_wrong("average")),
        r"reduction: 'average' is not known; choose one of none, mean, sum",
    ),
    "a metric": (
        lambda c: c.pairwise_iou(A, B, metric=_wrong("l2")),
        r"metric: 'l2' is not known; choose one of iou",
    ),
    "an inverted box": (lambda c: c.evaluate(A, [[5, 2, 1, 8]], CIoU()), r"targets: row 0 is inverted; xyxy needs"),
    "a negative weight": (lambda c: c.evaluate(A, B, CIoU(), weights=[-1]), r"weights: row 0 is negative"),
    "nan": (lambda c: c.pairwise_iou(A, [[0, 0, float("nan"), 1]]), r"b: row 0 is not finite"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_raises_one_clear_error(client: boxloss.Client, name: str) -> None:
    call, complaint = BAD_CALLS[name]
    with pytest.raises(InvalidInputError, match=complaint) as raised:
        call(client)
    assert isinstance(raised.value, ValueError)
    assert raised.value.violations


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SmoothL1(beta=0), r"beta: 0 is out of range; it must be above 0"),
        (lambda: AlphaIoU(CIoU(), alpha=float("inf")), r"alpha: inf is out of range"),
        (lambda: AlphaIoU(SmoothL1()), r"base: SmoothL1\(.*\) cannot be modified; take a linear iou, giou"),
        (lambda: AlphaIoU(IoU(form="log")), r"base: .* cannot be modified"),
        (lambda: AlphaIoU(_wrong("ciou")), r"base: 'ciou' cannot be modified"),
        (lambda: IoU(form=_wrong("cubic")), r"form: 'cubic' is not known; choose one of linear, log, square"),
        (lambda: boxloss.FocalEIoU(gamma=_wrong("a")), r"gamma: 'a' is not a number"),
        (lambda: boxloss.FocalEIoU(detach_weight=_wrong(1)), r"detach_weight: 1 is neither True nor False"),
    ],
)
def test_a_wrong_parameter_is_refused_at_once(make: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        make()


def test_threads_may_share_a_client(client: boxloss.Client) -> None:
    rng = np.random.default_rng(43)
    inputs = [(random_boxes(rng, n), random_boxes(rng, n)) for n in rng.integers(1, 50, 64)]
    alone = [client.evaluate(p, t, CIoU(), gradients=True) for p, t in inputs]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda pair: client.evaluate(pair[0], pair[1], CIoU(), gradients=True), inputs))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first.loss, second.loss)
        np.testing.assert_array_equal(first.gradient, second.gradient)


async def test_64_clients_at_once_share_batches_and_each_gets_the_answer_of_a_lone_one(
    server: ServerProcess, client: boxloss.Client
) -> None:
    rng = np.random.default_rng(44)
    inputs = [(random_boxes(rng, n).astype("f4"), random_boxes(rng, n).astype("f4")) for n in rng.integers(1, 99, 64)]
    alone = [client.evaluate(predictions, targets, CIoU(), gradients=True) for predictions, targets in inputs]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(boxloss.AsyncClient(server.address)) for _ in inputs]
        for _ in range(100):  # How many meet at a time depends on how busy the machine is; that they meet does not.
            results = await asyncio.gather(
                *(each.evaluate(*pair, CIoU(), gradients=True) for each, pair in zip(clients, inputs, strict=True))
            )
            for expected, result in zip(alone, results, strict=True):
                np.testing.assert_array_equal(result.loss, expected.loss)
                np.testing.assert_array_equal(result.gradient, expected.gradient)
                np.testing.assert_array_equal(result.iou, expected.iou)
            batches = sum(1 / result.executions[0].batch_requests for result in results)
            if batches < 64 / 8:
                return
    pytest.fail("in no round had a mean batch more than 8 requests")


async def test_the_asyncio_client_does_what_the_blocking_one_does(
    server: ServerProcess, client: boxloss.Client
) -> None:
    async with boxloss.AsyncClient(server.address) as connected:
        assert await connected.losses() == client.losses()
        result = await connected.evaluate(A, B, CIoU(), gradients=True)
        np.testing.assert_array_equal(result.gradient, client.evaluate(A, B, CIoU(), gradients=True).gradient)
        results = await connected.compare(A, B, [GIoU(), IoU()], reduction="sum")
        assert [each.loss for each in results] == [
            each.loss for each in client.compare(A, B, [GIoU(), IoU()], reduction="sum")
        ]
        assert await connected.pairwise_iou(A, B) == client.pairwise_iou(A, B)
        with pytest.raises(InvalidInputError, match="targets: row 0 is inverted"):
            await connected.evaluate(A, [[5, 2, 1, 8]], CIoU())


@pytest.fixture(scope="module")
def narrow() -> Iterator[boxloss.Client]:
    """A client of a server that takes little at once."""
    with (
        ServerProcess("--max-request-pairs=100", "--max-message-bytes=4096") as server,
        boxloss.Client(server.address) as client,
    ):
        yield client


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_inputs_over_the_limits_are_split_and_joined(
    client: boxloss.Client, narrow: boxloss.Client, reduction: Any, dtype: str
) -> None:
    rng = np.random.default_rng(46)
    predictions, targets = random_boxes(rng, 777).astype(dtype), random_boxes(rng, 777).astype(dtype)
    predictions[[5, 500]] = np.nan
    options: dict[str, Any] = {
        "gradients": True,
        "target_gradients": True,
        "weights": rng.uniform(0, 2, 777),
        "reduction": reduction,
        "invalid": "mask",
    }
    whole = client.compare(predictions, targets, [CIoU(), GIoU()], **options)
    parts = narrow.compare(predictions, targets, [CIoU(), GIoU()], **options)
    for first, second in zip(whole, parts, strict=True):
        assert len(first.executions) == 1
        assert len(second.executions) >= 16
        tolerance = 1e-5 if dtype == "f4" else 1e-12
        np.testing.assert_allclose(first.loss, second.loss, rtol=tolerance)
        for one, other in ((first.gradient, second.gradient), (first.target_gradient, second.target_gradient)):
            assert one is not None
            assert other is not None
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(one).max())
        np.testing.assert_array_equal(first.iou, second.iou)
        np.testing.assert_array_equal(first.valid, second.valid)
    assert np.flatnonzero(~parts[0].valid).tolist() == [5, 500]


def test_errors_of_a_part_say_which_part(narrow: boxloss.Client) -> None:
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (250, 1))
    boxes[207] = [1, 0, 0, 1]
    with pytest.raises(InvalidInputError, match=r"^predictions\[\d+:\d+\]: row \d+ is inverted") as refused:
        narrow.evaluate(boxes, boxes[:, [2, 1, 0, 3]][::-1] * 0, CIoU())
    part, row = refused.value.violations[0].field, refused.value.violations[0].description
    assert int(part.split("[")[1].split(":")[0]) + int(row.split()[1]) == 207
    with pytest.raises(InvalidInputError, match=r"^b\[\d+:\d+\]: row \d+ is inverted"):
        narrow.pairwise_iou(boxes[:5], boxes)


def test_matrices_over_the_limits_are_split_and_joined(client: boxloss.Client, narrow: boxloss.Client) -> None:
    rng = np.random.default_rng(47)
    for rows, columns in ((30, 40), (3, 300), (300, 3), (0, 5), (5, 0)):
        a, b = random_boxes(rng, rows), random_boxes(rng, columns)
        np.testing.assert_array_equal(narrow.pairwise_iou(a, b), client.pairwise_iou(a, b))


def test_a_closed_client_says_so(server: ServerProcess) -> None:
    client = boxloss.Client(server.address)
    client.close()
    with pytest.raises(BoxlossError, match="this client is closed"):
        client.evaluate(A, B, CIoU())


def test_a_client_does_not_pickle(server: ServerProcess) -> None:
    with boxloss.Client(server.address) as client, pytest.raises(TypeError, match="create one in each process"):
        pickle.dumps(client)


@pytest.mark.parametrize(
    ("method", "ask"),
    [
        ("Evaluate", lambda client: client.evaluate(A, B, CIoU())),
        ("EvaluateStream", lambda client: list(client.evaluate_stream([(A, B)], CIoU()))),
    ],
)
def test_a_client_that_another_thread_closes_as_a_call_begins_says_so(
    server: ServerProcess, method: str, ask: Callable[[boxloss.Client], object]
) -> None:
    client = boxloss.Client(server.address)
    client.info()
    stub = client._transport.stub
    begin = getattr(stub, method)

    def begin_too_late(*arguments: Any, **options: Any) -> Any:
        client.close()
        return begin(*arguments, **options)

    setattr(stub, method, begin_too_late)
    with pytest.raises(BoxlossError, match="this client is closed"):
        ask(client)


def test_an_embedded_server_lives_as_long_as_its_client() -> None:
    with boxloss.embedded(device="cpu") as client:
        assert client.evaluate(A, B, CIoU()).loss == pytest.approx([0.9361860890731847])
        address = client.address
    client.close()
    with (
        boxloss.Client(address, timeout=0.5) as late,
        pytest.raises(boxloss.ServerUnavailableError, match="no boxloss server answers at unix:"),
    ):
        late.evaluate(A, B, CIoU())


def test_an_embedded_server_names_wrong_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXLOSS_THREADS", "many")
    with pytest.raises(ValueError, match=r"wrong BOXLOSS_ settings: --threads: Input should be a valid integer"):
        boxloss.embedded()


def test_an_embedded_server_refuses_a_device_that_is_not_here() -> None:
    with pytest.raises(ValueError, match="cuda:99"):
        boxloss.embedded(device="cuda:99")
