"""Metrics of both sides: what a client counts in a registry of yours, and what a server shows to Prometheus.

Run `make serve`, and in another terminal `python examples/prometheus_metrics.py [HOST:PORT [METRICS_URL]]`.
"""

import sys
from urllib.request import urlopen

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

import boxloss
from boxloss.metrics import ClientMetrics


def p99_ms(histogram: Metric, **labels: str) -> float:
    """Milliseconds within which 99 of 100 observations were, as finely as the histogram's buckets tell."""
    samples = [sample for sample in histogram.samples if labels.items() <= sample.labels.items()]
    counts = {float(sample.labels["le"]): sample.value for sample in samples if "le" in sample.labels}
    return 1000 * min(bound for bound, count in counts.items() if count >= 0.99 * counts[float("inf")])


address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:9464/metrics"

registry = CollectorRegistry()
with boxloss.Client(address, metrics=ClientMetrics(registry)) as client:
    for side in range(1, 501):
        client.evaluate([[0, 0, 4, 4]], [[0, 0, 4, side]], boxloss.GIoU())
mine = {metric.name: metric for metric in registry.collect()}
with urlopen(url) as page:
    server = {metric.name: metric for metric in text_string_to_metric_families(page.read().decode())}

calls = registry.get_sample_value("boxloss_client_calls_total", {"method": "Evaluate", "code": "OK"})
batches = sum(sample.value for sample in server["boxloss_batches"].samples)  # Since the server's start.
asked, handled = mine["boxloss_client_seconds"], server["grpc_server_handling_seconds"]
print(f"client: {calls:.0f} calls, 99 % of them within {p99_ms(asked, method='Evaluate'):.1f} ms")
print(f"server: {batches:.0f} batches, 99 % of calls within {p99_ms(handled, grpc_method='Evaluate'):.1f} ms")
