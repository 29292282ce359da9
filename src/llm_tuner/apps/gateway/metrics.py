"""What the gateway counts, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llm_tuner.models.resources import snapshot
from llm_tuner.serving.service import Outcome

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 300)


class Metrics:
    """Counters of one gateway, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        self._requests = Counter(
            "llm_tuner_requests",
            "Requests by API, role and HTTP status.",
            ("api", "role", "status"),
            registry=self._all,
        )
        self._seconds = Histogram(
            "llm_tuner_request_seconds", "From request to end.", ("role",), buckets=_SECONDS, registry=self._all
        )
        self._first = Histogram(
            "llm_tuner_first_piece_seconds", "To the first piece of the answer.", ("role",), buckets=_SECONDS,
            registry=self._all,
        )  # fmt: skip
        self._tokens = Counter("llm_tuner_tokens", "As runtimes count.", ("role", "kind"), registry=self._all)
        self._repairs = Counter("llm_tuner_repairs", "Changes of what models wrote.", ("kind",), registry=self._all)
        self._calls = Counter("llm_tuner_tool_calls", "Calls handed out.", ("role",), registry=self._all)
        self.running = Gauge("llm_tuner_running", "Requests being answered.", registry=self._all)
        self._machine = Gauge(
            "llm_tuner_machine", "CPU in percent, memory and disk in bytes.", ("what",), registry=self._all
        )
        self._gpu = Gauge(
            "llm_tuner_gpu", "Utilisation in percent, memory in bytes.", ("gpu", "what"), registry=self._all
        )
        self._served = Gauge(
            "llm_tuner_served_bytes", "Memory of processes that serve models.", ("runtime", "pid"), registry=self._all
        )
        self._read = 0.0
        self.lost = Gauge("llm_tuner_records_lost", "Exchanges that could not be recorded.", registry=self._all)

    def count(self, api: str, outcome: Outcome, status: int) -> None:
        """One request that is over."""
        role = outcome.role or "none"
        self._requests.labels(api, role, str(status)).inc()
        self._seconds.labels(role).observe(outcome.total_ms / 1000)
        if outcome.first_ms is not None:
            self._first.labels(role).observe(outcome.first_ms / 1000)
        usage = outcome.end.usage
        for kind in ("prompt", "cached", "completion"):
            self._tokens.labels(role, kind).inc(getattr(usage, f"{kind}_tokens"))
        for repair in outcome.repairs:
            self._repairs.labels(repair.kind).inc()
        self._calls.labels(role).inc(len(outcome.calls))

    def text(self) -> bytes:
        self._read_machine()
        return generate_latest(self._all)

    def _read_machine(self) -> None:
        """At most once a second: whoever scrapes often pays for one reading."""
        if time.monotonic() - self._read < 1:
            return
        self._read = time.monotonic()
        now = snapshot(seconds=0)
        for what in ("cpu", "memory_used", "memory_total", "swap_used", "disk_free"):
            self._machine.labels(what).set(getattr(now, what))
        for number, card in enumerate(now.gpus):
            for what in ("utilisation", "memory_used", "memory_total", "celsius", "watts"):
                if (value := getattr(card, what)) is not None:
                    self._gpu.labels(str(number), what).set(value)
        self._served.clear()
        for one in now.served:
            self._served.labels(one.runtime, str(one.pid)).set(one.memory)
