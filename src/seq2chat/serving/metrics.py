"""What the server measures of itself, in Prometheus' text format and under vLLM's names, so that
its dashboards fit."""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from seq2chat.serving.served_model import Served

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """How often a number of seconds was at most each bound, by model."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0] * (len(SECONDS) + 1))
        self._sums: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def observe(self, model: str, seconds: float) -> None:
        with self._lock:
            self._counts[model][bisect_left(SECONDS, seconds)] += 1
            self._sums[model] += seconds

    def lines(self, name: str, model: str) -> list[str]:
        with self._lock:
            counts, total = list(self._counts[model]), self._sums[model]
        label, lines, so_far = _label(model), [], 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), counts, strict=True):
            so_far += count
            lines.append(f'{name}_bucket{{{label},le="{bound}"}} {so_far}')
        return [*lines, f"{name}_sum{{{label}}} {total}", f"{name}_count{{{label}}} {so_far}"]


class Counter:
    """How often something happened, by (model, reason)."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = defaultdict(int)
        self._lock = threading.Lock()

    def add(self, key: tuple[str, str]) -> None:
        with self._lock:
            self.counts[key] += 1


class Metrics:
    """Everything measured; it knows no text."""

    def __init__(self) -> None:
        self.time_to_first_token, self.inter_token_latency, self.request_seconds = (
            Histogram() for _ in range(3)
        )
        self.finished = Counter()

    def text(self, served: Sequence[Served]) -> str:
        """Return all of it as `GET /metrics` does."""
        lines: list[str] = []

        def add(name: str, kind: str, help: str, values: list[str]) -> None:
            lines.extend([f"# HELP {name} {help}", f"# TYPE {name} {kind}", *values])

        engines = [(_label(s.id), s.engine) for s in served if s.engine is not None]
        for name, kind, help, read in (
            (
                "vllm:num_requests_running",
                "gauge",
                "Samples that hold a slot.",
                lambda e: e.n_running,
            ),
            (
                "vllm:num_requests_waiting",
                "gauge",
                "Requests that wait for a slot.",
                lambda e: e.n_waiting,
            ),
            (
                "vllm:prompt_tokens_total",
                "counter",
                "Tokens of prompts read.",
                lambda e: e.statistics.prompt_tokens,
            ),
            (
                "vllm:generation_tokens_total",
                "counter",
                "Tokens made.",
                lambda e: e.statistics.generated_tokens,
            ),
            (
                "vllm:prefix_cache_hits_total",
                "counter",
                "Tokens found cached.",
                lambda e: e.statistics.cached_tokens,
            ),
            (
                "vllm:prefix_cache_queries_total",
                "counter",
                "Tokens looked up.",
                lambda e: e.statistics.prompt_tokens + e.statistics.cached_tokens,
            ),
        ):
            add(
                name, kind, help, [f"{name}{{{label}}} {read(engine)}" for label, engine in engines]
            )
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
            values = [
                line for s in served if s.engine is not None for line in histogram.lines(name, s.id)
            ]
            add(name, "histogram", help, values)
        finished = [
            f'vllm:request_success_total{{{_label(model)},finished_reason="{reason}"}} {count}'
            for (model, reason), count in sorted(self.finished.counts.items())
        ]
        add("vllm:request_success_total", "counter", "Samples that ended, by reason.", finished)
        return "\n".join(lines) + "\n"


def _label(model: str) -> str:
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'model_name="{escaped}"'
