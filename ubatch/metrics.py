"""What batchers do, for Prometheus and OpenTelemetry. One line switches it on, for all batchers or for one.

    ubatch.metrics.prometheus()         # then scrape prometheus_client's registry as ever
    ubatch.metrics.opentelemetry()      # metrics
    ubatch.metrics.traces()             # a span for each batch, linked to those of its callers

All times are seconds, all counts are of items or batches, and every series says which batcher it is of; batchers of one
name, as those of a method's instances, are one series. What a batcher has done is kept when it is forgotten.

Nothing in the package imports this room, and it imports the clients where it uses them.
"""

from ._opentelemetry import opentelemetry, traces
from ._prometheus import prometheus

__all__ = ["opentelemetry", "prometheus", "traces"]
