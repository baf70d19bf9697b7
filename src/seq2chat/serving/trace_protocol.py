"""The requests of `/api/traces`, with bounds."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from seq2chat.interpret.beams import MAX_BEAM
from seq2chat.serving.protocol import Messages, Name, Strict, Text, TokenId, Whole

MAX_TOKENS = 256  # that a trace reads of a text
MAX_INTERVENTIONS = 32

TraceTokens = Annotated[list[TokenId], Field(min_length=1, max_length=100_000, fail_fast=True)]
Index = Annotated[int, Whole, Field(ge=-1_000_000, le=1_000_000)]


class TextFields(Strict):
    """A text in one of three forms. `translation` is the target of an encoder–decoder."""

    text: Text | None = None
    messages: Messages | None = None
    tokens: TraceTokens | None = None
    translation: Text | None = None


class InterventionFields(Strict):
    """One change, see `interpret.patch`. `from` is the text that a patch is taken from."""

    site: Name
    op: Literal["ablate", "scale", "mean", "patch"] = "ablate"
    factor: Annotated[float, Field(ge=-100, le=100)] | None = None
    head: Index | None = None
    at: Annotated[list[Index], Field(min_length=1, max_length=MAX_TOKENS)] | None = None
    from_: Annotated[TextFields | None, Field(alias="from")] = None


class EffectsFields(Strict):
    """A map of effects: each head is switched off, or patched `from` a text, one at a time."""

    from_: Annotated[TextFields | None, Field(alias="from")] = None


class TraceRequest(TextFields):
    """`POST /api/traces`.

    The trace reads `max_tokens` of the text from the token `start` on, by default the last ones.
    `target` is the token to follow, as its id or its text. `beams` is the size of a beam search
    whose steps are returned, too.
    """

    model: Name
    start: Annotated[int, Whole, Field(ge=0, le=1_000_000)] | None = None
    max_tokens: Annotated[int, Whole, Field(ge=1, le=MAX_TOKENS)] = MAX_TOKENS
    position: Index = -1
    target: TokenId | Annotated[str, Field(min_length=1, max_length=256)] | None = None
    top: Annotated[int, Whole, Field(ge=1, le=50)] = 10
    interventions: (
        Annotated[list[InterventionFields], Field(max_length=MAX_INTERVENTIONS, fail_fast=True)]
        | None
    ) = None
    effects: EffectsFields | None = None
    beams: Annotated[int, Whole, Field(ge=1, le=MAX_BEAM)] | None = None


class TensorQuery(BaseModel):
    """The query of `GET /api/traces/{id}/tensor`, see `interpret.views`.

    `until` limits the positions to the first ones, and `dims` selects numbers of each vector.
    """

    model_config = ConfigDict(extra="forbid")

    site: Name
    layer: Index | None = None
    head: Index | None = None
    position: Index | None = None
    until: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    dims: Annotated[str, Field(max_length=400, pattern=r"^\d+(,\d+)*$")] | None = None
    top: Annotated[int, Field(ge=1, le=50)] = 10
    pool: Annotated[int, Field(ge=1, le=256)] | None = None
    format: Literal["u8sqrt", "f16", "f32", "i32"] = "f32"
