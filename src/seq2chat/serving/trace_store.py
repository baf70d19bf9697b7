"""Traces by their id, bounded in bytes. One that was evicted is computed again from its spec."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from seq2chat.interpret.patch import Intervention, ablate, mean_ablate, patch, scale
from seq2chat.interpret.summary import summary
from seq2chat.interpret.trace import Trace, trace
from seq2chat.serving.served_model import ServedModel
from seq2chat.serving.sse import to_json

MAX_TRACE_BYTES = 256_000_000  # of tensors; the newest trace stays, whatever its size
MAX_SPEC_BYTES = 16_000_000
MAX_SUMMARY_BYTES = 8_000_000  # as JSON

T = TypeVar("T")
Texts = list[list[int]]


@dataclass(frozen=True)
class Change:
    """An intervention in terms of token ids. `source` holds the texts of a patch."""

    site: str
    op: str
    factor: float
    head: int | None
    at: list[int] | None
    source: Texts | None


@dataclass(frozen=True)
class Spec:
    """Everything that a trace depends on. `owner` is the API key that may read it."""

    owner: str
    model: str
    fingerprint: str
    texts: Texts
    changes: list[Change]

    @property
    def content(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @property
    def id(self) -> str:
        """The hash of the spec, which nobody without the key can guess."""
        return hashlib.blake2b(self.content, digest_size=16).hexdigest()


class ByteLRU(Generic[T]):
    """Values by key. The least recently used ones are dropped when their sizes exceed the limit."""

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self._limit = limit
        self._size = size
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> T | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: str, value: T) -> None:
        with self._lock:
            self._drop(key)
            size = self._size(value)
            self._values[key] = value, size
            self.nbytes += size
            while self.nbytes > self._limit and len(self._values) > 1:
                self._drop(next(iter(self._values)))

    def _drop(self, key: str) -> None:
        _, size = self._values.pop(key, (None, 0))
        self.nbytes -= size


class TraceStore:
    """The specs of all traces, and the newest traces themselves with their summaries."""

    def __init__(
        self, trace_bytes: int = MAX_TRACE_BYTES, spec_bytes: int = MAX_SPEC_BYTES
    ) -> None:
        self.traces: ByteLRU[Trace] = ByteLRU(trace_bytes, lambda one: one.nbytes)
        self.specs: ByteLRU[Spec] = ByteLRU(spec_bytes, lambda spec: len(spec.content))
        self._summaries: ByteLRU[dict[str, Any]] = ByteLRU(
            MAX_SUMMARY_BYTES, lambda content: len(to_json(content))
        )

    def summary(
        self, spec: Spec, model: ServedModel, position: int, target: int | None, top: int
    ) -> dict[str, Any]:
        """Return the summary of the trace of `spec`, computed once: its lens and its attribution
        are large products. Runs in the engine's thread."""
        key = f"{spec.id} {position} {target} {top}"
        content = self._summaries.get(key)
        if content is None:
            one = self.compute(spec, model)
            content = summary(one, model.tokenizer, position, target, top)
            self._summaries.put(key, content)
        return content

    def compute(self, spec: Spec, model: ServedModel) -> Trace:
        """Return the trace of `spec`, from the store or computed. Runs in the engine's thread."""
        one = self.traces.get(spec.id)
        if one is None:
            module = model.module
            changes = [_intervention(change, model) for change in spec.changes]
            one = trace(module, *spec.texts, interventions=changes)
            self.traces.put(spec.id, one)
        # Also if the trace was kept longer than its spec, which clients need for its tensors.
        self.specs.put(spec.id, spec)
        return one


def _intervention(change: Change, model: ServedModel) -> Intervention:
    match change.op:
        case "ablate":
            return ablate(change.site, change.head, change.at)
        case "scale":
            return scale(change.site, change.factor, change.head, change.at)
        case "mean":
            return mean_ablate(change.site, change.head, change.at)
    assert change.source is not None
    # The pass of the other text needs to keep the one tensor only.
    source = trace(model.module, *change.source, names=[change.site])
    return patch(change.site, source, change.head, change.at)
