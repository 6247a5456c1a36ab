"""Whom the command asks, and what it shows: address, TLS and token, from options and the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import typer

from boxloss.calls.client import Client
from boxloss.connection.channel import Address
from boxloss.connection.credentials import Tls
from boxloss.errors import fault

_TOKEN = "BOXLOSS_TOKEN"


def _file(text: str) -> Any:
    return typer.Option(metavar="FILE", exists=True, dir_okay=False, readable=True, help=text)


ADDRESS = typer.Option(
    metavar="HOST:PORT",
    envvar="BOXLOSS_ADDRESS",
    help="Of the server; or unix:/path. Of several: repeat it, or dns:///NAME:PORT for all of that name.",
)
TLS = typer.Option("--tls", help="Use TLS; the --tls options below imply it.")
TLS_CA = _file("PEM file of the authorities to trust; unless given, the public ones.")
TLS_CERTIFICATE = _file("PEM file of your certificate, for a server that asks for one.")
TLS_KEY = _file("PEM file of its private key.")
TOKEN_FILE = _file(f"File with your token, for a server that asks for one; or the variable {_TOKEN}.")


class Credentials(NamedTuple):
    """What the options say. There is none for the token itself: others on the computer can read command lines."""

    tls: bool
    ca: Path | None
    certificate: Path | None
    key: Path | None
    token_file: Path | None

    def client(self, address: Address, timeout: float) -> Client:
        """A client of the server at the address.

        Raises:
            InvalidInputError: the options, or the files that they name, do not go together.
        """
        try:
            token = self.token_file.read_text().strip() if self.token_file else os.environ.get(_TOKEN) or None
            tls = Tls(self.ca, self.certificate, self.key) if any(self[:4]) else None
            return Client(address, timeout=timeout, tls=tls, token=token)
        except ValueError as error:
            raise fault("TLS and token", str(error)) from None

    def refuse_unused(self) -> None:
        """Raises where there are options and no server to use them with."""
        if any(self):
            raise fault("TLS and token", "are for a server; give its --address, or leave them out")
