"""Loss specifications and catalogue entries to and from messages of the contract.

The mapping follows names: a specification's `name` is its field in `Loss.kind`, a parameter's name its field there,
and a choice "log" of the parameter `form` of `Iou` is the enum value IOU_FORM_LOG.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from boxloss.errors import InvalidInputError, UnsupportedError, Violation
from boxloss.losses import CATALOGUE, Base, IoU, Loss
from boxloss.losses.parameters import Choice, Integer, Number
from boxloss.v1 import catalogue_pb2, loss_pb2


def loss_to_message(loss: Loss) -> loss_pb2.Loss:
    """Writes a specification as the contract's message."""
    message = loss_pb2.Loss()
    kind = getattr(message, loss.name)
    kind.SetInParent()
    for each in fields(loss):
        value = getattr(loss, each.name)
        if isinstance(value, Loss):
            getattr(kind, each.name).CopyFrom(loss_to_message(value))
        elif isinstance(value, str):
            setattr(kind, each.name, _choices(kind, each.name)[value])
        else:
            setattr(kind, each.name, value)
    return message


def loss_from_message(message: loss_pb2.Loss) -> Loss:
    """Reads a specification from the contract's message.

    Raises:
        InvalidInputError: no loss is set, a parameter is out of range or a required one is missing.
        UnsupportedError: the message holds a loss, a parameter or a choice that this version does not know.
    """
    refuse_unknown_fields(message)
    name = message.WhichOneof("kind")
    if name is None:
        raise InvalidInputError([Violation("kind", f"is not set; set one of {', '.join(CATALOGUE)}")])
    kind = getattr(message, name)
    specification = CATALOGUE[name]
    values: dict[str, Any] = {}
    try:
        refuse_unknown_fields(kind)
        for each in fields(specification):
            value = _parameter_from_message(kind, each.name)
            if value is not None:
                values[each.name] = value
            elif each.default is MISSING:
                raise InvalidInputError([Violation(each.name, "is not set; it has no default")])
        return specification(**values)
    except (InvalidInputError, UnsupportedError) as error:
        raise error.within(name) from None


def _parameter_from_message(kind: Message, name: str) -> Any:
    """The parameter's value, or None where it is not set."""
    descriptor = kind.DESCRIPTOR.fields_by_name[name]
    value = getattr(kind, name)
    if descriptor.enum_type is not None:
        if value == 0:
            return None
        for choice, number in _choices(kind, name).items():
            if number == value:
                return choice
        raise UnsupportedError([Violation(name, f"{value} is not known to this version; upgrade the server")])
    if not kind.HasField(name):
        return None
    if isinstance(value, loss_pb2.Loss):
        try:
            return loss_from_message(value)
        except (InvalidInputError, UnsupportedError) as error:
            raise error.within(name) from None
    return value


def _choices(kind: Message, name: str) -> dict[str, int]:
    """The choices of an enum field and their numbers, without prefix and without the unspecified one."""
    return enum_choices(kind.DESCRIPTOR.fields_by_name[name].enum_type)


def enum_choices(enum: Any) -> dict[str, int]:
    """An enum's words and numbers: {"log": 2} for IOU_FORM_LOG = 2; the unspecified value is left out."""
    unspecified = enum.values_by_number[0].name
    prefix = unspecified.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.number for value in enum.values if value.number}


def refuse_unknown_fields(message: Message) -> None:
    """Raises `UnsupportedError` where a newer peer has set a field that this version does not know.

    Ignoring it could answer another question than the one asked.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        number = unknown[0].field_number
        raise UnsupportedError(
            [
                Violation(
                    f"field {number}", f"is not known to this version of {message.DESCRIPTOR.name}; upgrade the server"
                )
            ]
        )


def describe(loss: type[Loss]) -> catalogue_pb2.LossDescription:
    """Writes a loss as an entry of the catalogue."""
    example = loss(**{each.name: IoU() for each in fields(loss) if each.default is MISSING})
    return catalogue_pb2.LossDescription(
        name=loss.name,
        title=loss.title,
        summary=loss.summary,
        formula=loss.formula,
        paper=loss.paper,
        parameters=[_describe_parameter(each) for each in fields(loss)],
        needs=loss.needs,
        blind_spots=loss.blind_spots,
        aliases=loss.aliases,
        axis_aligned=example.axis_aligned,
        oriented=example.oriented,
    )


def _describe_parameter(parameter: Any) -> catalogue_pb2.ParameterDescription:
    kind = parameter.metadata["kind"]
    description = catalogue_pb2.ParameterDescription(name=parameter.name, summary=kind.summary)
    match parameter.default:
        case bool(switch):
            description.default_switch = switch
        case int() | float() as number:
            description.default_number = number
        case str(choice):
            description.default_choice = choice
    match kind:
        case Number():
            description.range.CopyFrom(
                catalogue_pb2.Range(
                    minimum=kind.above if kind.minimum is None else kind.minimum,
                    maximum=kind.below if kind.maximum is None else kind.maximum,
                    minimum_excluded=kind.above is not None,
                    maximum_excluded=kind.below is not None,
                )
            )
        case Integer():
            description.range.CopyFrom(catalogue_pb2.Range(minimum=kind.minimum, maximum=kind.maximum))
        case Choice():
            description.choices.extend(kind.choices)
        case Base():
            description.choices.extend(kind.names)
    return description
