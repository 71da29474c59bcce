"""Prometheus metrics of the endpoint, under OpenTelemetry's names for generative AI where these exist."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .gate import Gate
from .trace import Trace

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
LABELS = ("gen_ai_operation_name", "gen_ai_request_model")


class EndpointMetrics:
    """The metrics of one endpoint; `registry` is its own."""

    def __init__(self, gate: Gate) -> None:
        self.registry = CollectorRegistry()
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds", "Time of a request, without its wait in the queue.",
            (*LABELS, "error_type"), buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Time to the first token, without the wait in the queue.",
            LABELS, buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Time per token after the first, of one request.",
            LABELS, buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._tokens = Histogram(
            "gen_ai_client_token_usage", "Tokens of one request.",
            (*LABELS, "gen_ai_token_type"), buckets=TOKENS, registry=self.registry,
        )  # fmt: skip
        self._queue = Histogram(
            "blockswarm_endpoint_queue_seconds", "Wait of a request in the queue.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._repairs = Counter(
            "blockswarm_endpoint_repairs", "Repairs of chains during requests, by kind.",
            ("kind",), registry=self.registry,
        )  # fmt: skip
        self._trips = Counter(
            "blockswarm_endpoint_trips", "Steps along chains that carried a token of a text.", registry=self.registry
        )
        self._guesses = Counter(
            "blockswarm_endpoint_guesses", "Tokens that were guessed ahead, by drafter and outcome.",
            ("drafter", "outcome"), registry=self.registry,
        )  # fmt: skip
        self._refused = Counter(
            "blockswarm_endpoint_refused", "Requests that were refused or failed, by HTTP status.",
            ("status",), registry=self.registry,
        )  # fmt: skip
        running = Gauge("blockswarm_endpoint_running", "Requests that are being answered.", registry=self.registry)
        running.set_function(lambda: gate.running)
        queued = Gauge("blockswarm_endpoint_queued", "Requests that wait in the queue.", registry=self.registry)
        queued.set_function(lambda: gate.queued)

    def note_answer(self, operation: str, model: str, prompt_tokens: int, trace: Trace) -> None:
        """Record a complete answer; `operation`: "chat" or "text_completion"."""
        labels = (operation, model)
        self._duration.labels(*labels, "").observe(trace.timings.total)
        self._first_token.labels(*labels).observe(trace.timings.first_token)
        if trace.tokens > 1:
            rest = trace.timings.total - trace.timings.first_token
            self._per_token.labels(*labels).observe(rest / (trace.tokens - 1))
        self._tokens.labels(*labels, "input").observe(prompt_tokens)
        self._tokens.labels(*labels, "output").observe(trace.tokens)
        self._queue.observe(trace.timings.queue)
        for event in trace.repairs:
            self._repairs.labels(event.kind).inc()
        self._trips.inc(trace.guesses.trips)
        for each in trace.guesses.drafts:
            self._guesses.labels(each.drafter, "right").inc(each.right)
            self._guesses.labels(each.drafter, "wrong").inc(each.guessed - each.right)

    def note_failure(self, operation: str, model: str, seconds: float, code: str) -> None:
        """Record a request that got its slot and ended with an error."""
        self._duration.labels(operation, model, code).observe(seconds)

    def note_error(self, status: int) -> None:
        """Record a response that is an error, or ended with one."""
        self._refused.labels(str(status)).inc()

    def scrape(self) -> bytes:
        return generate_latest(self.registry)
