"""Measurements of the server in Prometheus' text format.

The metrics have vLLM's names, so dashboards made for it work here too.
"""

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence

from seq2chat.generation.engine import Engine
from seq2chat.generation.tokens import Token
from seq2chat.serving.served_model import ServedModel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# Metrics that are read from an engine: name, type, help text and value.
ENGINE_METRICS: tuple[tuple[str, str, str, Callable[[Engine], int]], ...] = (
    (
        "vllm:num_requests_running",
        "gauge",
        "Samples that hold a slot.",
        lambda engine: engine.n_running,
    ),
    (
        "vllm:num_requests_waiting",
        "gauge",
        "Requests that wait for a slot.",
        lambda engine: engine.n_waiting,
    ),
    (
        "vllm:prompt_tokens_total",
        "counter",
        "Tokens of prompts read.",
        lambda engine: engine.statistics.prompt_tokens,
    ),
    (
        "vllm:generation_tokens_total",
        "counter",
        "Tokens generated.",
        lambda engine: engine.statistics.generated_tokens,
    ),
    (
        "vllm:prefix_cache_hits_total",
        "counter",
        "Tokens found cached.",
        lambda engine: engine.statistics.cached_tokens,
    ),
    (
        "vllm:prefix_cache_queries_total",
        "counter",
        "Tokens looked up.",
        lambda engine: engine.statistics.prompt_tokens + engine.statistics.cached_tokens,
    ),
)


class Histogram:
    """Counts per model of durations up to each bound of SECONDS."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0] * (len(SECONDS) + 1))
        self._sums: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def observe(self, model: str, seconds: float) -> None:
        with self._lock:
            self._counts[model][bisect_left(SECONDS, seconds)] += 1
            self._sums[model] += seconds

    def lines(self, name: str, model: str) -> list[str]:
        """Return the lines of one model's histogram."""
        with self._lock:
            counts = list(self._counts[model])
            total = self._sums[model]
        label = _label(model)
        lines = []
        cumulative = 0  # Prometheus' buckets include the smaller ones
        for bound, count in zip((*map(str, SECONDS), "+Inf"), counts, strict=True):
            cumulative += count
            lines.append(f'{name}_bucket{{{label},le="{bound}"}} {cumulative}')
        lines.append(f"{name}_sum{{{label}}} {total}")
        lines.append(f"{name}_count{{{label}}} {cumulative}")
        return lines


class Counter:
    """Counts per (model, reason)."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = defaultdict(int)
        self._lock = threading.Lock()

    def add(self, key: tuple[str, str]) -> None:
        with self._lock:
            self.counts[key] += 1


class Metrics:
    """All measurements. They contain no text of any request."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram()
        self.inter_token_latency = Histogram()
        self.request_seconds = Histogram()
        self.finished = Counter()

    def text(self, models: Sequence[ServedModel]) -> str:
        """Return the body of `GET /metrics`."""
        engines = [(model.id, model.engine) for model in models if model.engine is not None]
        lines: list[str] = []
        for name, kind, help, value in ENGINE_METRICS:
            lines += _header(name, kind, help)
            lines += [f"{name}{{{_label(id)}}} {value(engine)}" for id, engine in engines]
        for name, help, histogram in (
            (
                "vllm:time_to_first_token_seconds",
                "From request to first token.",
                self.time_to_first_token,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Between tokens of one sample.",
                self.inter_token_latency,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "From request to last token.",
                self.request_seconds,
            ),
        ):
            lines += _header(name, "histogram", help)
            for id, _ in engines:
                lines += histogram.lines(name, id)
        name = "vllm:request_success_total"
        lines += _header(name, "counter", "Samples that ended, by reason.")
        for (id, reason), count in sorted(self.finished.counts.items()):
            lines.append(f'{name}{{{_label(id)},finished_reason="{reason}"}} {count}')
        return "\n".join(lines) + "\n"


class RequestTimer:
    """Measures the latencies of one request from its creation on."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._began = time.monotonic()
        # By sample, the time of its newest token.
        self._newest: dict[int, float] = {}

    def observe(self, token: Token) -> None:
        """Measure a token that was just generated."""
        now = time.monotonic()
        metrics = self._metrics
        previous = self._newest.get(token.sample)
        if previous is None:
            metrics.time_to_first_token.observe(self._model, now - self._began)
        else:
            metrics.inter_token_latency.observe(self._model, now - previous)
        self._newest[token.sample] = now
        if token.finish is not None:
            metrics.request_seconds.observe(self._model, now - self._began)
            metrics.finished.add((self._model, token.finish))


def _header(name: str, kind: str, help: str) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]


def _label(model: str) -> str:
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'model_name="{escaped}"'
