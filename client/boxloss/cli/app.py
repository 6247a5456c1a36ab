"""The commands."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.progress
import typer
from rich.console import Console

import boxloss
from boxloss.calls.catalogue import loss_info
from boxloss.cli.audit import audit
from boxloss.cli.catalogue import catalogue
from boxloss.cli.compare import compare
from boxloss.cli.consoles import err, out
from boxloss.cli.correct import correct
from boxloss.cli.credentials import ADDRESS, TLS, TLS_CA, TLS_CERTIFICATE, TLS_KEY, TOKEN_FILE, Credentials
from boxloss.cli.server import connected
from boxloss.cli.tables import ENDINGS, assemble, show, summary, write, write_csv
from boxloss.compare.matching import match_coco, match_rows
from boxloss.compare.scoring import score, valid_rows
from boxloss.contract.wire import describe
from boxloss.contract.words import BoxFormat, Invalid
from boxloss.errors import (
    BoxlossError,
    DeadlineExceededError,
    InvalidInputError,
    RequestTooLargeError,
    ServerBusyError,
    ServerUnavailableError,
    UnsupportedError,
    fault,
)
from boxloss.files.boxes import read
from boxloss.losses import CATALOGUE
from boxloss.losses.notation import label, parse

_PINGS = 5
_PIPE_WIDTH = 1000
"""Of a table in a pipe, where lines need not be broken."""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

app.command()(audit)
app.command()(correct)
app.command()(compare)


def run(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits; its errors become one line on standard error, and the exit code."""
    try:
        app(arguments, prog_name="boxloss")
    except BoxlossError as error:
        _fail(error, _exit_code(error))
    except OSError as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    print("boxloss:", *str(error).split(), file=sys.stderr)
    sys.exit(code)


def _exit_code(error: BoxlossError) -> int:
    match error:
        case InvalidInputError() | RequestTooLargeError() | UnsupportedError():
            return 2
        case ServerUnavailableError() | ServerBusyError() | DeadlineExceededError():
            return 3
        case _:
            return 1


def _version(asked: bool) -> None:
    if asked:
        out.print(f"boxloss {boxloss.__version__}")
        raise typer.Exit


@app.callback()
def _boxloss(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Bounding-box regression losses of files of boxes, and audits of labels."""


@app.command()
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", exists=True, dir_okay=False, readable=True, help="File of boxes.")
    ],
    targets: Annotated[
        Path, typer.Argument(metavar="TARGETS", exists=True, dir_okay=False, readable=True, help="File of boxes.")
    ],
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOSS",
            help="What to compute, with parameters after a colon: smooth_l1:beta=0.5, "
            "'alpha_iou:base=ciou(gate=0.5),alpha=2'. Repeat it for more. `boxloss losses` lists all.",
            show_default="ciou",
        ),
    ] = None,
    box_format: Annotated[
        BoxFormat | None,
        typer.Option(help="Of the boxes; COCO's are always xywh.", show_default="xyxy"),
    ] = None,
    image_size: Annotated[
        tuple[float, float] | None, typer.Option(metavar="WIDTH HEIGHT", help="Of the image; mpdiou needs it.")
    ] = None,
    running_mean: Annotated[
        float | None, typer.Option(help="Of 1 - IoU over past pairs; wiou needs it for versions 2 and 3.")
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients/--no-gradients", help="Add the gradients with respect to the predictions.")
    ] = False,
    invalid: Annotated[
        Invalid, typer.Option(help="Reject files with inverted or non-finite boxes, or leave such boxes out.")
    ] = "reject",
    min_iou: Annotated[float, typer.Option(min=0, max=1, help="COCO: least IoU of a prediction with its label.")] = 0.5,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, writable=True, help="Write the table to a .csv, .json or .parquet file."
        ),
    ] = None,
    address: Annotated[list[str] | None, ADDRESS] = None,
    tls: Annotated[bool, TLS] = False,
    tls_ca: Annotated[Path | None, TLS_CA] = None,
    tls_certificate: Annotated[Path | None, TLS_CERTIFICATE] = None,
    tls_key: Annotated[Path | None, TLS_KEY] = None,
    token_file: Annotated[Path | None, TOKEN_FILE] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where to compute without a server: auto, cpu, cuda or cuda:N.", show_default="auto"),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that each call to the server may take.")] = 30.0,
) -> None:
    """Compares two files of boxes: the IoU and the losses of each pair, and their means.

    The files are .csv, .json or .npy; row i of one is compared with row i of the other. Of two COCO files (results or
    datasets), the predictions of each image are matched with the labels of their category by IoU, best score first;
    what finds no counterpart is listed as missed or spurious.

    Prints a table on a terminal and CSV into a pipe. Without an address, computes in this process, which needs
    boxloss-server.
    """
    asked = {label(each): each for each in map(parse, loss or ["ciou"])}
    if output:
        _check_output(output)
    first, second = read(predictions, box_format), read(targets, box_format)
    coco = first.coco is not None and second.coco is not None
    for file in () if coco else (first, second):
        if file.coco and len(file):
            raise fault(file.path, "is COCO and the other file is not; give two of a kind")
    credentials = Credentials(tls, tls_ca, tls_certificate, tls_key, token_file)
    with connected(address, device, timeout, credentials) as client:
        valid = [valid_rows(client, file, mask=invalid == "mask", track=_track) for file in (first, second)]
        if coco:
            matching = match_coco(client, first, second, *valid, min_iou=min_iou, track=_track)
        else:
            matching = match_rows(first, second, *valid)
        paired = matching.paired
        scores = score(
            client,
            first.boxes[matching.predictions[paired]],
            second.boxes[matching.targets[paired]],
            asked,
            gradients=gradients,
            box_format=first.box_format,
            image_size=image_size,
            running_mean=running_mean,
            track=_track,
        )
    table = assemble(first, second, matching, scores)
    means = ["iou", *(f"loss_{name}" for name in asked)]
    line = summary(table, means)
    if output:
        write(table, output)
        out.print(line)
        out.print(f"{table.num_rows} rows written to {output}")
    elif sys.stdout.isatty():
        show(table, means, out)
        out.print(line)
    else:
        write_csv(table, sys.stdout.buffer)
        err.print(line)


@app.command()
def losses(
    form: Annotated[Literal["table", "json"], typer.Option("--format", help="How to print them.")] = "table",
    address: Annotated[list[str] | None, ADDRESS] = None,
    tls: Annotated[bool, TLS] = False,
    tls_ca: Annotated[Path | None, TLS_CA] = None,
    tls_certificate: Annotated[Path | None, TLS_CERTIFICATE] = None,
    tls_key: Annotated[Path | None, TLS_KEY] = None,
    token_file: Annotated[Path | None, TOKEN_FILE] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that the server may take.")] = 5.0,
) -> None:
    """Lists the losses with formula, parameters (default and range) and paper: this version's, or a server's."""
    credentials = Credentials(tls, tls_ca, tls_certificate, tls_key, token_file)
    if address:
        with credentials.client(address, timeout) as client:
            offered = client.losses()
    else:
        credentials.refuse_unused()
        offered = tuple(loss_info(describe(each)) for each in CATALOGUE.values())
    if form == "json":
        print(json.dumps([dataclasses.asdict(each) for each in offered], indent=2))
    else:
        console = out if out.is_terminal else Console(markup=False, highlight=False, width=_PIPE_WIDTH)
        console.print(catalogue(offered, plain=not console.is_terminal))


@app.command()
def ping(
    address: Annotated[list[str], ADDRESS] = ["localhost:50051"],  # noqa: B006
    tls: Annotated[bool, TLS] = False,
    tls_ca: Annotated[Path | None, TLS_CA] = None,
    tls_certificate: Annotated[Path | None, TLS_CERTIFICATE] = None,
    tls_key: Annotated[Path | None, TLS_KEY] = None,
    token_file: Annotated[Path | None, TOKEN_FILE] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that each call to the server may take.")] = 5.0,
) -> None:
    """Has a server compute a loss, and prints its version, device and latency; of several, of whichever answers.

    Exits 0 where it does and 1 where it does not, as health checks want it.
    """
    times = []
    credentials = Credentials(tls, tls_ca, tls_certificate, tls_key, token_file)
    try:
        with credentials.client(address, timeout) as client:
            server = client.info()
            for _ in range(_PINGS):
                start = time.perf_counter()
                client.evaluate([[0, 0, 1, 1]], [[0, 0, 1, 1]], boxloss.CIoU())
                times.append(time.perf_counter() - start)
    except BoxlossError as error:
        _fail(error, 1)
    latency = statistics.median(times) * 1000
    out.print(
        f"{client.address} is healthy: boxloss {server.version} on {server.device}, "
        f"{latency:.1f} ms a call (median of {_PINGS})"
    )


def _track(work: Sequence[Any], description: str) -> Iterable[Any]:
    """A progress bar, on a terminal and while there is more than one step."""
    return rich.progress.track(
        work, description, console=err, transient=True, disable=len(work) < 2 or not err.is_terminal
    )


def _check_output(path: Path) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise fault(f"--output {path}", f"ends in {path.suffix!r}; give a .csv, .json or .parquet file")
    if not path.parent.is_dir():
        raise fault(f"--output {path}", f"there is no folder {path.parent}")
