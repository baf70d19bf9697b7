"""What clients may send: OpenAI's requests with our bounds. A field that is not here is refused, none is ignored."""

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

MOST_TOKENS = 1_000_000  # of one answer; the model's context is always less
MOST_PARTS = 128  # prompts or inputs in one request

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(max_length=1_000_000)]
# A list is refused at the first token that is none: to name them all would take seconds.
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=100_000, fail_fast=True)]
Texts = (
    Text
    | Tokens
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_PARTS, fail_fast=True)]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PARTS, fail_fast=True)]
)


def one_by_one(given: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """Return the texts, written or as tokens, that a field of `Texts` holds."""
    alone = isinstance(given, str) or isinstance(given[0], int)
    return cast("list[str | list[int]]", [given] if alone else given)


Stop = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(max_length=256)]


class Strict(BaseModel):
    """No unknown field, no number that is written as text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False


class Sampling(Strict):
    """What both ways of asking share; the meaning of each number is that of `generation.sampling.SamplingConfig`."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MOST_PARTS)]


class JsonSchema(Strict):
    """A schema that the answer follows. `name` is what messages about it call it; `strict` cannot be false, as no other
    token can be drawn. There is no `description`: the model is shown none of this."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: Literal[True] | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`. `prefix_token_ids` is how the answer begins; it is not sent back."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    prefix_token_ids: Annotated[list[TokenId], Field(max_length=100_000, fail_fast=True)] | None = None


class CompletionRequest(Sampling):
    """`POST /v1/completions`. `max_tokens` 0 is for `echo`, which sends the prompt back."""

    prompt: Texts
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None


class EmbeddingRequest(Strict):
    """`POST /v1/embeddings`."""

    model: Name
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None


class TokenizeRequest(Strict):
    """`POST /tokenize`: a text, or a conversation."""

    model: Name
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)] | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(Strict):
    """`POST /detokenize`."""

    model: Name
    tokens: Annotated[list[TokenId], Field(max_length=100_000, fail_fast=True)]
