"""The server's settings, from flags and BOXLOSS_* environment variables."""

from __future__ import annotations

from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from platformdirs import user_cache_path
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Serve bounding-box regression losses over gRPC.

    Every flag is also an environment variable: --max-waiting-pairs is BOXLOSS_MAX_WAITING_PAIRS. Flags win.
    """

    model_config = SettingsConfigDict(
        env_prefix="BOXLOSS_",
        cli_prog_name="boxloss-server",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all, :: for all with IPv6.")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    tls_certificate: Path | None = Field(
        None, description="PEM file with the server's certificate and those above it; callers must use TLS then."
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with authorities; callers must show a certificate of one of them then (mutual TLS)."
    )
    tokens_file: Path | None = Field(
        None, description="File with lines of a client's name and its token; callers must send one of the tokens then."
    )
    client_pairs_per_second: int = Field(
        0, ge=0, description="Most pairs per second that a client may ask for; 0 for no limit."
    )
    client_waiting_pairs: int = Field(
        0, ge=0, description="Most pairs of a client that may wait or be computed at once; 0 for no limit."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the Prometheus metrics.")
    metrics_port: int = Field(9464, ge=0, le=65535, description="Port of the Prometheus metrics; 0 takes a free one.")
    processes: int = Field(
        1, ge=1, description="Server processes that share the port and, where --threads is 0, the cores."
    )
    device: str = Field("auto", description="What computes: auto (a GPU where there is one), cpu, cuda or cuda:N.")
    threads: int = Field(
        1,
        ge=0,
        description="CPU threads of a torch call of a loss that is not compiled; 0 leaves the choice to torch. More "
        "than one are slower where calls are small or others compute.",
    )
    max_message_bytes: int = Field(64 * 2**20, ge=2**10, description="Largest request message, in bytes.")
    max_request_pairs: int = Field(
        2**20, ge=1, description="Most pairs in a request; a pair under two losses counts twice."
    )
    max_batch_pairs: int = Field(2**18, ge=1, description="A batch is computed when it has so many pairs.")
    max_waiting_pairs: int = Field(
        2**22, ge=1, description="While so many pairs wait or are computed, more are turned away."
    )
    batch_window_ms: float = Field(
        8.0, ge=0, le=1000, description="Longest time that small calls wait for others to share a batch, in ms."
    )
    compile: Literal["background", "ahead", "off"] = Field(
        "background",
        description="When losses are compiled: background (those often asked for, while others are served), "
        "ahead (common ones before serving, too) or off.",
    )
    kernel_cache: Path = Field(
        user_cache_path("boxloss") / "kernels",
        description="Folder that keeps compiled losses; their code is run, so one that others may write to is refused.",
    )
    max_kernels: int = Field(64, ge=0, description="Most losses and combinations that are compiled.")
    shutdown_grace_s: float = Field(
        30.0, ge=0, description="After SIGTERM, time for accepted requests to be answered, in seconds."
    )
    tracing: bool = Field(
        False, description="Send traces to the OTLP receiver that OTEL_EXPORTER_OTLP_ENDPOINT names, over gRPC."
    )
    hang_timeout_s: float = Field(
        60.0,
        ge=0,
        description="Time without progress, in seconds, after which a process counts as hanging and ends with status "
        "70, to be replaced; 0 to let it hang.",
    )
    keepalive_s: float = Field(
        20.0,
        ge=0,
        description="A client that is silent for so long is asked whether it is still there, and has as long to answer "
        "before its connection is closed, in seconds; 0 never asks.",
    )
    max_connection_age_s: float = Field(
        0.0,
        ge=0,
        description="Age at which clients are asked to connect anew, so that they spread over new servers, in seconds; "
        "0: none. What is under way has --shutdown-grace-s to end.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Form of the log lines; auto: console on a terminal, else json."
    )

    @field_validator("host", "metrics_host")
    @classmethod
    def _with_brackets(cls, host: str) -> str:
        """The host as it stands before a port: an IPv6 address in brackets."""
        if not host:
            raise ValueError("is empty; give an address, 127.0.0.1 for this computer or 0.0.0.0 for all")
        try:
            address = ip_address(host.removeprefix("[").removesuffix("]"))
        except ValueError:
            return host
        return f"[{address}]" if address.version == 6 else str(address)

    @field_validator("tracing")
    @classmethod
    def _can_be_traced(cls, tracing: bool) -> bool:
        if tracing:
            try:
                find_spec("opentelemetry.sdk.trace")
                find_spec("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
            except ImportError as error:
                raise ValueError(f"needs OpenTelemetry ({error}): pip install 'boxloss-server[tracing]'") from None
        return tracing

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_waiting_pairs < self.max_request_pairs:
            raise ValueError("max_waiting_pairs must be at least max_request_pairs, or large requests never fit")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key belong together; give both or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("--tls-client-ca needs TLS; give --tls-certificate and --tls-key")
        return self


def explain(error: ValidationError) -> str:
    """Says what is wrong with settings, naming the flags."""
    faults = []
    for fault in error.errors():
        flag = "-".join(map(str, fault["loc"])).replace("_", "-")
        faults.append(f"--{flag}: {fault['msg']}" if flag else fault["msg"])
    return "; ".join(faults)
