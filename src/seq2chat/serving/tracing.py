"""`/api/traces`: one forward pass of a served model, and its tensors.

All passes run in the engine's thread, uncompiled, one after another and between the steps of chats.
"""

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from starlette.responses import Response

from seq2chat.config import UserError, check
from seq2chat.interpret.beams import beams, beams_json
from seq2chat.interpret.effects import head_sites, site_effects
from seq2chat.interpret.encoding import encoded
from seq2chat.interpret.reading import input_ids, window, window_message, with_target
from seq2chat.interpret.summary import effect_json, numbers
from seq2chat.interpret.surgery import ABLATED, PATCHED, place, token_id
from seq2chat.interpret.trace import Trace, trace
from seq2chat.interpret.views import View, computed, is_computed, part, pooled, view
from seq2chat.serving.answer import BadField
from seq2chat.serving.chat import conversation
from seq2chat.serving.errors import UnknownTrace
from seq2chat.serving.served_model import ServedModel
from seq2chat.serving.sse import to_json
from seq2chat.serving.state import ServerState
from seq2chat.serving.trace_protocol import (
    MAX_TOKENS,
    InterventionFields,
    TensorQuery,
    TextFields,
    TraceRequest,
)
from seq2chat.serving.trace_store import Change, Spec, Texts
from seq2chat.text.chat import prompt_ids
from seq2chat.text.text_tokenizer import TextTokenizer

T = TypeVar("T")

MAX_REPLY_BYTES = 30_000
MAX_TENSOR_BYTES = 16_000_000


class Read(NamedTuple):
    """The token ids of a text, in the window that a trace reads."""

    texts: Texts
    start: int
    total: int


class Tracer:
    """Answers the requests of one server for traces of one owner, who is known by the API key."""

    def __init__(self, state: ServerState, owner: str) -> None:
        self._state = state
        self._owner = owner

    async def create(self, body: TraceRequest) -> dict[str, Any]:
        """Return the reply to `POST /api/traces`."""
        model = self._state.find(body.model)
        read = await self._read(body, model, body.max_tokens, body.start)
        changes = [
            await self._change(fields, number, model, read)
            for number, fields in enumerate(body.interventions or [])
        ]
        target = await self._state.encoding.run(lambda: _target(body, model))
        fingerprint = await self._call(lambda: model.fingerprint)
        spec = Spec(self._owner, model.id, fingerprint, read.texts, changes)
        one = await self._call(lambda: self._state.traces.compute(spec, model))
        reply: dict[str, Any] = {"id": spec.id, "model": model.id}
        reply |= await self._call(
            lambda: self._state.traces.summary(spec, model, body.position, target, body.top)
        )
        reply["computed"] = [group._asdict() for group in computed(one, body.top)]
        reply["window"] = {"start": read.start, "total": read.total}
        reply["message"] = window_message(len(read.texts[0]), read.start, read.total)
        if changes:
            reply["effect"] = await self._call(
                lambda: self._effect(model, read.texts, one, body.position, reply["target"]["id"])
            )
        if body.effects is not None:
            reply["effects"] = await self._effects(body, model, read, reply["target"]["id"])
        if body.beams is not None:
            end = model.tokenizer.eos_id or 0  # every translation model has one
            work = partial(beams, model.module, read.texts[0], end, body.beams)
            reply["beams"] = beams_json(await self._call(work), model.tokenizer, body.beams)
        return fitted(reply)

    async def tensor(self, trace_id: str, query: TensorQuery, known_etag: str) -> Response:
        """Return the reply to `GET /api/traces/{id}/tensor`."""
        spec = self._state.traces.specs.get(trace_id)
        if spec is None or spec.owner != self._owner:
            raise UnknownTrace(
                f"There is no trace {trace_id[:40]!r} here any more; request it again with POST "
                "/api/traces."
            )
        etag = f'"{trace_id}-{hashlib.blake2b(query.model_dump_json().encode()).hexdigest()[:16]}"'
        headers = {"etag": etag, "cache-control": "private, no-cache"}
        # The id is a hash of all that the tensor depends on.
        if etag in [one.strip() for one in known_etag.split(",")]:
            return Response(status_code=304, headers=headers)
        one = self._state.traces.traces.get(trace_id)
        if one is None:  # evicted
            model = self._state.find(spec.model)
            one = await self._call(lambda: self._state.traces.compute(spec, model))
        options = {"layer": query.layer, "head": query.head, "position": query.position}
        make = partial(view, one, query.site, **options, top=query.top)
        tensor = await (self._call(make) if is_computed(query.site) else self._encode(make))
        content = await self._encode(lambda: _content(query, tensor))
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def _read(
        self, fields: TextFields, model: ServedModel, max_tokens: int, start: int | None = None
    ) -> Read:
        """Return the ids of a text. Raises BadField unless it has exactly one form."""
        read, first, total = await self._window(fields, model, max_tokens, start)
        work = partial(with_target, model.module, model.tokenizer, read, fields.translation)
        searches = model.family in ("seq2seq", "transformer") and fields.translation is None
        texts = await (self._call(work) if searches else self._state.encoding.run(work))
        check(
            len(texts[-1]) <= model.context,
            f"The translation has more tokens than the context of {model.id}; write a shorter one.",
        )
        return Read(texts, first, total)

    async def _window(
        self, fields: TextFields, model: ServedModel, max_tokens: int, start: int | None
    ) -> tuple[list[int], int, int]:
        """Return the tokens that are read of a text, the index of the first, and the number of
        all."""
        ids = await self._state.encoding.run(lambda: _ids(fields, model))
        return *window(ids, min(max_tokens, model.context), start), len(ids)

    async def _source(self, fields: TextFields, model: ServedModel, read: Read) -> Texts:
        """Return the text that a patch is taken from. Its target is that of the traced text."""
        ids, _, total = await self._window(fields, model, MAX_TOKENS, None)
        check(
            len(ids) == total,
            f"The text to patch from has {total:,} tokens, and {len(ids)} are the most that "
            "can be read; shorten it.",
        )
        if fields.translation is None:
            return [ids, *read.texts[1:]]
        return (await self._read(fields, model, MAX_TOKENS)).texts

    async def _change(
        self, fields: InterventionFields, number: int, model: ServedModel, read: Read
    ) -> Change:
        where = f"interventions[{number}]"
        if (fields.op == "patch") != (fields.from_ is not None):
            raise BadField(f"{where}.from", "A patch, and only a patch, needs a text: from.")
        if (fields.op == "scale") != (fields.factor is not None):
            raise BadField(f"{where}.factor", "A scale, and only a scale, needs a factor.")
        site, head = place(model.module, fields.site)
        if head is not None and fields.head is not None:
            raise BadField(f"{where}.head", f"{fields.site} names a head already; leave out head.")
        source = None if fields.from_ is None else await self._source(fields.from_, model, read)
        return Change(
            site=site,
            op=fields.op,
            factor=fields.factor or 0.0,
            head=fields.head if head is None else head,
            at=fields.at,
            source=source,
        )

    def _effect(
        self, model: ServedModel, texts: Texts, one: Trace, position: int, target: int
    ) -> dict[str, Any]:
        spec = Spec(self._owner, model.id, model.fingerprint, texts, [])
        plain = self._state.traces.compute(spec, model)
        return effect_json(plain, one, model.tokenizer, position, [target])

    async def _effects(
        self, body: TraceRequest, model: ServedModel, read: Read, target: int
    ) -> dict[str, Any]:
        """Return the effect of each head, layer by layer, so that the engines step in between."""
        module = model.module
        assert body.effects is not None
        sites = head_sites(module)
        check(bool(sites), f"{model.id} is a {model.family}, which has no heads.")
        source: Trace | None = None
        if body.effects.from_ is not None:
            texts = await self._source(body.effects.from_, model, read)
            source = await self._call(lambda: trace(module, *texts, names=sites))
        values = []
        for site in sites:
            work = partial(
                site_effects,
                module,
                *read.texts,
                target=target,
                source=source,
                site=site,
                position=body.position,
            )
            values.append(numbers(await self._call(work)))
        question = ABLATED if source is None else PATCHED
        return {"question": question, "sites": sites, "values": values}

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._state.engine_thread.call(work))

    async def _encode(self, work: Callable[[], T]) -> T:
        return await self._state.tracing.run(work)


def fitted(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the reply with as many alternatives per row of the lens as fit MAX_REPLY_BYTES."""
    while len(to_json(reply)) > MAX_REPLY_BYTES and reply["lens"] and len(reply["lens"][0]["top"]):
        rows = [row | {"top": row["top"][:-1]} for row in reply["lens"]]
        ids = {str(token) for row in rows for token, _ in row["top"]}
        texts = {token: text for token, text in reply["texts"].items() if token in ids}
        reply = reply | {"lens": rows, "texts": texts}
    return reply


def _ids(fields: TextFields, model: ServedModel) -> list[int]:
    """Return the tokens of a text in any of its forms, as the model reads them."""
    forms = [name for name in ("text", "messages", "tokens") if getattr(fields, name) is not None]
    if len(forms) != 1:
        raise BadField(forms[1] if forms else "text", "Give one of text, messages and tokens.")
    tokenizer = model.tokenizer
    if fields.tokens is not None:
        last = model.module.config.vocab_size - 1
        check(
            max(fields.tokens) <= last,
            f"The text has a token that is not in the vocabulary; write ids from 0 to {last}.",
        )
        return fields.tokens
    if fields.messages is not None:
        check(
            model.can_chat and isinstance(tokenizer, TextTokenizer),
            f"{model.id} does not chat; send text.",
        )
        assert isinstance(tokenizer, TextTokenizer)
        return prompt_ids(tokenizer, conversation(fields.messages))
    return input_ids(model.module, tokenizer, fields.text or "")


def _target(body: TraceRequest, model: ServedModel) -> int | None:
    """Return the token to follow, which may be one without text in a padded vocabulary."""
    target = body.target
    if isinstance(target, str):
        try:
            target = token_id(model.tokenizer, target)
        except UserError as error:
            raise BadField("target", str(error)) from None
    last = model.module.config.vocab_size - 1
    check(
        target is None or target <= last,
        f"There is no token {target}; {model.id} has ids from 0 to {last}.",
    )
    return target


def _content(query: TensorQuery, tensor_view: View) -> bytes:
    if query.pool is not None:
        tensor_view = pooled(query.site, tensor_view, query.pool)
    dims = None if query.dims is None else [int(index) for index in query.dims.split(",")]
    tensor_view = part(query.site, tensor_view, query.until, dims)
    width = {"u8sqrt": 1, "f16": 2, "f32": 4, "i32": 4}[query.format]
    n_bytes = tensor_view.tensor.numel() * width
    check(
        n_bytes <= MAX_TENSOR_BYTES,
        f"{query.site} has {n_bytes / 1e6:.0f} MB, and at most {MAX_TENSOR_BYTES / 1e6:.0f} MB are "
        "sent; give a layer, a head or a position.",
    )
    return encoded(tensor_view.tensor, query.site, tensor_view.axes, query.format)
