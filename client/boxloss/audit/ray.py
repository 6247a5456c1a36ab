"""The same audit on a Ray cluster, for many images. Ray comes with the extra: pip install 'boxloss[ray]'.

Nothing here imports Ray until it is asked for: it is large, and what it listens on is decided while it is imported.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from boxloss.audit.dataset import Audit
from boxloss.audit.image import Image
from boxloss.audit.rules import ImageAudit, Rules, audit_image
from boxloss.audit.summary import Summary, Tally
from boxloss.errors import BoxlossError, InvalidInputError, ServerError, ServerUnavailableError, Violation

_BLOCK = 256
"""Images of a task."""
_WINDOW = 64 * _BLOCK
"""Images that are under way at a time, which bounds the memory of all."""
_STORE = 2**28
"""Bytes of shared memory of a cluster on this machine. A window of COCO takes 10 MiB; what is too much, a disk."""
_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 10.0


def audit_on_ray(
    images: Iterable[Image], rules: Rules | None = None, *, address: str | None = None, worst: int = 100
) -> Audit:
    """Audits images on Ray Data. What is found is what `audit` finds, image by image in the same order.

    Images are read here, sent to the cluster some thousands at a time, and audited there side by side. A process that
    has called `ray.init` stays with that cluster; otherwise the connection, and a cluster on this machine, end with the
    audit. A cluster on this machine listens on no other interface than loopback, and Ray's usage statistics are off.
    A cluster that asks for a token takes it from RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, as with any program for Ray.

    Args:
        images: read while the audit goes on.
        rules: the default ones unless given.
        address: HOST:PORT of the head of a cluster, all nodes of which have this version of boxloss; by default a
            cluster on this machine, with all its cores, starts and ends with the audit.
        worst: how many of the worst images and findings the summary names.

    Raises:
        InvalidInputError: the address is no HOST:PORT, or the process has called `ray.init` already.
        ServerUnavailableError: no cluster answers there; or it does not let this process in, once images are asked for.
        BoxlossError: Ray is not installed, or was imported before in a way that does not suit the address.
        ServerError: while images are asked for: the cluster failed.
    """
    _import_ray(address)
    return Audit(_audited(images, rules or Rules(), Tally(worst), address))


def _audited(
    images: Iterable[Image], rules: Rules, tally: Tally, address: str | None
) -> Iterator[ImageAudit | Summary]:
    waiting = iter(images)
    with _cluster(address):
        # A dataset for each window, whose blocks this process holds: a task whose worker dies runs again. A single
        # dataset that is fed while it runs could not repeat what it has read.
        while window := list(islice(waiting, _WINDOW)):
            for image, each in zip(window, _found(window, rules), strict=True):
                tally.add(image, each)
                yield each
    yield tally.summary()


def _found(window: Sequence[Image], rules: Rules) -> Iterator[ImageAudit]:
    import pyarrow as pa
    import ray.data

    blocks = [
        pa.table({"images": pa.array([pickle.dumps(window[start : start + _BLOCK])], pa.large_binary())})
        for start in range(0, len(window), _BLOCK)
    ]
    data = ray.data.from_arrow(blocks)
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.execution_options.preserve_order = True
    audited = data.map_batches(_audit_blocks, batch_size=1, batch_format="pyarrow", fn_kwargs={"rules": rules})
    for row in audited.iter_rows():
        yield from pickle.loads(row["audited"])


def _audit_blocks(blocks: Any, rules: Rules) -> Any:
    """What a worker does with blocks of images, one to a row."""
    import pyarrow as pa

    audited = [
        pickle.dumps([audit_image(image, rules) for image in pickle.loads(block)])
        for block in blocks["images"].to_pylist()
    ]
    return pa.table({"audited": pa.array(audited, pa.large_binary())})


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connected to a cluster. What fails there raises ServerError."""
    import ray

    own = not ray.is_initialized()
    if own:
        local: dict[str, Any] = {"object_store_memory": _STORE, "include_dashboard": False}
        try:
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **({} if address else local),
            )
        except (Exception, SystemExit) as error:  # Ray exits where it is not let in.
            message = f"no Ray cluster at {address}, or RAY_AUTH_TOKEN is not its" if address else "Ray does not start"
            raise ServerUnavailableError(f"{message}: {error}") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # It tells of every window.
    try:
        yield
    except ray.exceptions.RayError as error:
        raise ServerError(f"the Ray cluster failed: {error}") from error
    finally:
        if own:
            ray.shutdown()


def _import_ray(address: str | None) -> None:
    """Imports Ray, set up for the address, and makes sure that something is there: Ray would wait for minutes."""
    here = True
    if address is not None:
        host, port = _host_and_port(address)
        try:
            with socket.create_connection((host, port), _CONNECT_SECONDS) as connection:
                here = connection.getsockname()[0] == _LOOPBACK
        except OSError as error:
            message = f"no Ray cluster answers at {address} ({error}); start one with ray start --head, or correct that"
            raise ServerUnavailableError(message) from error
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if here:
        # Ray listens on all interfaces, whatever it is told, unless its makers do not support clusters on the system.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray.data
        import ray.util
    except ImportError as error:
        raise BoxlossError(f"this needs Ray ({error}): pip install 'boxloss[ray]'") from error
    if ray.is_initialized():
        if address is not None:
            what = "is given, but this process has called ray.init already; leave it out, or call ray.shutdown first"
            raise InvalidInputError([Violation("address", what)])
    elif here != (ray.util.get_node_ip_address() == _LOOPBACK):
        where = "this machine alone" if here else "a cluster elsewhere"
        raise BoxlossError(f"Ray was imported before, and not for {where}; call ray.init, or do this in a new process")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidInputError([Violation("address", f"is {address!r}; give HOST:PORT of the head of a Ray cluster")])
    return host.strip("[]"), int(port)
