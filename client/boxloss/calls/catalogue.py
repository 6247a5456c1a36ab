"""What a server offers, from the contract's message."""

from __future__ import annotations

from boxloss.calls.results import LossInfo, ParameterInfo, ServerInfo
from boxloss.contract.arrays import unexpected
from boxloss.contract.wire import enum_choices
from boxloss.v1 import catalogue_pb2, loss_service_pb2


def server_info(response: loss_service_pb2.ListLossesResponse) -> ServerInfo:
    """Reads what a server offers.

    Raises:
        ServerError: it states no limits.
    """
    if min(response.limits.message_bytes, response.limits.request_pairs) < 1:
        raise unexpected("a catalogue without limits")
    metrics = {number: word for word, number in enum_choices(loss_service_pb2.IouMetric.DESCRIPTOR).items()}
    return ServerInfo(
        version=response.server_version,
        device=response.device,
        message_bytes=response.limits.message_bytes,
        request_pairs=response.limits.request_pairs,
        losses=tuple(map(loss_info, response.losses)),
        metrics=tuple(metrics[number] for number in response.metrics if number in metrics),
    )


def loss_info(loss: catalogue_pb2.LossDescription) -> LossInfo:
    """Reads an entry of the catalogue."""
    return LossInfo(
        name=loss.name,
        title=loss.title,
        summary=loss.summary,
        formula=loss.formula,
        paper=loss.paper,
        parameters=tuple(_parameter_info(parameter) for parameter in loss.parameters),
        needs=tuple(loss.needs),
        blind_spots=loss.blind_spots,
        aliases=loss.aliases,
        axis_aligned=loss.axis_aligned,
        oriented=loss.oriented,
    )


def _parameter_info(parameter: catalogue_pb2.ParameterDescription) -> ParameterInfo:
    default = parameter.WhichOneof("default")
    bounds = parameter.range
    return ParameterInfo(
        name=parameter.name,
        summary=parameter.summary,
        default=getattr(parameter, default) if default else None,
        minimum=bounds.minimum if bounds.HasField("minimum") else None,
        maximum=bounds.maximum if bounds.HasField("maximum") else None,
        minimum_excluded=bounds.minimum_excluded,
        maximum_excluded=bounds.maximum_excluded,
        choices=tuple(parameter.choices),
    )
