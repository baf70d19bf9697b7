"""`/api/runs`: the training of runs, for the page Training. Nothing here needs a served model."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from seq2chat.serving.answer import in_time, while_wanted
from seq2chat.serving.errors import respond
from seq2chat.serving.run_store import Probe
from seq2chat.serving.state import ServerState

T = TypeVar("T")
Step = Annotated[int, Field(ge=0, le=10**12)]


class ProbeQuery(BaseModel):
    """The sentence of a probe, and its translation for an encoder–decoder."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=2000)] = ""
    translation: Annotated[str, Field(max_length=2000)] | None = None


def add_run_routes(app: FastAPI, state: ServerState) -> None:
    """Add the routes of `/api/runs` to `app`."""
    routes = RunRoutes(state)
    for path, get in (
        ("/api/runs", routes.runs),
        ("/api/runs/{name}", routes.run),
        ("/api/runs/{name}/samples/{step}", routes.sample),
        ("/api/runs/{name}/checkpoints/{step}/{probe}", routes.probe),
    ):
        app.add_api_route(path, get, methods=["GET"])


class RunRoutes:
    """The handlers. Their docstrings are the descriptions in the OpenAPI schema."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._runs = state.runs

    async def runs(self) -> Response:
        """List the runs."""

        def cards() -> list[dict[str, object]]:
            return [run.card() for run in self._runs.runs.values()]

        return respond({"object": "list", "data": await self._read(cards)})

    async def run(self, name: str, request: Request) -> Response:
        """Return the curves of a run in at most 512 points each, its checkpoints and samples.

        With If-None-Match, a run without news is answered by 304.
        """
        content, etag = await self._read(self._runs.find(name).reply)
        headers = {"etag": etag, "cache-control": "private, no-cache"}
        known = [one.strip() for one in request.headers.get("if-none-match", "").split(",")]
        if etag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="application/json", headers=headers)

    async def sample(self, name: str, step: Step) -> Response:
        """Return the text that the run generated at a step."""
        run = self._runs.find(name)
        return respond(await self._read(lambda: run.sample(step)))

    async def probe(
        self,
        name: str,
        step: Step,
        probe: Probe,
        query: Annotated[ProbeQuery, Query()],
        request: Request,
    ) -> Response:
        """Measure a checkpoint: the loss per token of a text, heads, gradients, or BLEU."""
        options = {"text": query.text, "translation": query.translation}

        def measure() -> bytes:
            return self._runs.measure(name, step, probe, **options)

        content = await while_wanted(request, self._state.probing.run(measure))
        return Response(content, media_type="application/json")

    async def _read(self, work: Callable[[], T]) -> T:
        return await in_time(self._state.watching.run(work))
