"""The state that the routes of one server share."""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import Response

from seq2chat.serving.engine_thread import EngineThread
from seq2chat.serving.errors import UnknownModel
from seq2chat.serving.metrics import Metrics
from seq2chat.serving.pool import Pool
from seq2chat.serving.run_store import RunStore
from seq2chat.serving.served_model import ServedModel
from seq2chat.serving.sse import to_long_json
from seq2chat.serving.trace_store import TraceStore
from seq2chat.training.run_folder import RunFolder


class ServerState:
    """The models by name, the thread that computes, and one thread pool per kind of other work.

    While `draining` is True, running answers are finished and new requests are refused.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        engine_thread: EngineThread,
        runs: Sequence[RunFolder] = (),
    ) -> None:
        self.models = {model.id: model for model in models}
        self.engine_thread = engine_thread
        self.metrics = Metrics()
        self.draining = False
        # Encodes the texts that a model will read.
        self.encoding = Pool("encoding", 2)
        # Counts tokens for /tokenize and /detokenize.
        self.counting = Pool("counting", 1, max_waiting=64)
        # Writes answers as JSON. They have cost too much by then to be refused.
        self.writing = Pool("writing", 1, max_waiting=None)
        # Writes tensors of traces as bytes.
        self.tracing = Pool("tracing", 1)
        self.traces = TraceStore()
        # Reads the metrics of runs, and measures their checkpoints.
        self.watching = Pool("watching", 1)
        self.probing = Pool("probing", 1)
        self.runs = RunStore(runs)

    def find(self, name: str) -> ServedModel:
        """Return the model with this name. Raises UnknownModel."""
        if name not in self.models:
            raise UnknownModel(
                f"There is no model {name[:100]!r} here; there are {', '.join(self.models)}."
            )
        return self.models[name]

    async def json_response(self, make: Callable[[], Any]) -> Response:
        """Return `make()` as a JSON response, computed and written outside the event loop."""
        body = await self.writing.run(lambda: to_long_json(make()))
        return Response(body, media_type="application/json")
