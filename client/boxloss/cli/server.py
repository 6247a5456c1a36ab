"""The server that a command asks: one at an address, or one in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import boxloss
from boxloss.calls.client import Client
from boxloss.cli.consoles import err
from boxloss.cli.credentials import Credentials
from boxloss.connection.channel import name_of
from boxloss.errors import BoxlossError, fault


@contextmanager
def connected(
    address: Sequence[str] | None, device: str | None, timeout: float, credentials: Credentials
) -> Iterator[Client]:
    """A client of the server at the address, or of one in this process."""
    if address and device:
        raise fault("--device", f"is for computing in this process; leave it out, or the address {name_of(address)}")
    if not address:
        credentials.refuse_unused()
    with ExitStack() as stack:
        with err.status(f"waiting for {name_of(address)}" if address else "starting a server in this process"):
            client = stack.enter_context(
                credentials.client(address, timeout) if address else _embedded(device, timeout)
            )
            client.info()
        yield client


def _embedded(device: str | None, timeout: float) -> Client:
    try:
        return boxloss.embedded(device=device or "auto", timeout=timeout)
    except ValueError as error:
        raise fault("--device" if device else "the server in this process", str(error)) from None
    except BoxlossError as error:
        raise BoxlossError(f"{error}, or give the --address of a server") from None
