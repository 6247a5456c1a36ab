"""What a server counts, from its Prometheus metrics."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Counts:
    """What has happened in a server.

    Attributes:
        codes: calls by their gRPC code.
        batches: that were computed.
        batched: requests in them.
        kernels: losses that were compiled, or could not be.
    """

    codes: dict[str, int]
    batches: int
    batched: int
    kernels: int

    def since(self, earlier: Counts) -> Counts:
        """What was counted since an earlier look."""
        codes = {code: count - earlier.codes.get(code, 0) for code, count in self.codes.items()}
        return Counts(
            {code: count for code, count in codes.items() if count},
            self.batches - earlier.batches,
            self.batched - earlier.batched,
            self.kernels - earlier.kernels,
        )


def scrape(url: str) -> Counts:
    """Reads the metrics behind a URL."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return parse(response.read().decode())


def parse(text: str) -> Counts:
    """Reads metrics in Prometheus's text format."""
    codes: dict[str, int] = {}
    batches = batched = kernels = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            match sample.name:
                case "grpc_server_handled_total" if sample.value and sample.labels["grpc_method"].startswith(
                    "Evaluate"
                ):
                    code = sample.labels["grpc_code"]
                    codes[code] = codes.get(code, 0) + int(sample.value)
                case "boxloss_batch_requests_count":
                    batches += int(sample.value)
                case "boxloss_batch_requests_sum":
                    batched += int(sample.value)
                case "boxloss_kernels_total":
                    kernels += int(sample.value)
    return Counts(codes, batches, batched, kernels)
