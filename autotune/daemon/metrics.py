"""The daemon's numbers as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from autotune.daemon.endpoint import App
from autotune.daemon.tally import LoopState
from autotune.values.errors import DatabaseError


def metrics_app(tallies: Sequence[LoopState], queue: Callable[[], Mapping[str, int]]) -> App:
    """The WSGI application of /metrics; `queue` gives the number of jobs in each state."""
    registry = CollectorRegistry()
    registry.register(_Numbers(tallies, queue))
    app: App = make_wsgi_app(registry)
    return app


class _Numbers(Collector):
    def __init__(self, tallies: Sequence[LoopState], queue: Callable[[], Mapping[str, int]]) -> None:
        self._tallies, self._queue = tallies, queue

    def describe(self) -> list[Metric]:
        """Nothing: the registry would ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The numbers as of now; without those of the queue while the database is away."""
        device = ["device"]
        jobs = CounterMetricFamily("autotune_jobs", "Jobs by how they ended.", labels=["device", "outcome"])
        tuning = CounterMetricFamily("autotune_tuning_seconds", "Time spent tuning.", labels=device)
        rechecks = CounterMetricFamily(
            "autotune_rechecks",
            "Records measured again, by verdict.",
            labels=["device", "verdict"],
        )
        changes = CounterMetricFamily(
            "autotune_changes", "Records whose time a recheck found changed beyond noise.", labels=device
        )
        waiting = GaugeMetricFamily(
            "autotune_waiting", "1 while the device or budget is waited for.", labels=device
        )
        success = GaugeMetricFamily(
            "autotune_last_success_timestamp_seconds", "When a job was last done.", labels=device
        )
        for tally in self._tallies:
            for outcome, count in tally.jobs.items():
                jobs.add_metric([tally.device, outcome], count)
            for verdict, count in tally.rechecks.items():
                rechecks.add_metric([tally.device, verdict], count)
            changes.add_metric([tally.device], tally.changes)
            tuning.add_metric([tally.device], tally.tuning_s)
            waiting.add_metric([tally.device], tally.state == "waiting")
            if tally.succeeded_at is not None:
                success.add_metric([tally.device], tally.succeeded_at)
        yield from (jobs, tuning, rechecks, changes, waiting, success)
        size = GaugeMetricFamily("autotune_queue_jobs", "Jobs of the database by state.", labels=["state"])
        try:
            for state, count in self._queue().items():
                size.add_metric([state], count)
        except DatabaseError:
            return
        yield size
