"""The requests that clients may send: OpenAI's, with bounds.

A field is either honored, or refused with an error that names it. Neutral fields are accepted and
ignored: null, the neutral values of features that do not exist here, and fields that never change
an answer, for example `user`. See `responses_protocol` for `POST /v1/responses`.
"""

from functools import cache
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_ANSWER_TOKENS = 1_000_000  # the model's context is always less
MAX_PARTS = 128  # prompts or inputs per request
MAX_BIASES = 300  # tokens per `logit_bias`

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(max_length=1_000_000)]
# A list is refused at its first wrong item, because reporting all of them would take seconds.
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=100_000, fail_fast=True)]
Texts = (
    Text
    | Tokens
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
)


def as_list(field: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """Return the texts in a field of type `Texts`, each as a string or as tokens."""
    is_single = isinstance(field, str) or isinstance(field[0], int)
    return cast("list[str | list[int]]", [field] if is_single else field)


Stop = Annotated[str, Field(max_length=256)]
Name = Annotated[str, Field(max_length=256)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _whole(value: Any) -> Any:
    """Return a JSON number such as 4.0 as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count(value: Any) -> Any:
    """Return the number of alternatives per token. True requests the log probabilities alone."""
    return {True: 0, False: None}[value] if isinstance(value, bool) else _whole(value)


def unsupported(reason: str, *neutral: Any) -> AfterValidator:
    """Return a validator for a feature that does not exist here.

    Empty and `neutral` values pass, and others are refused with `reason`. An object whose fields
    are all null is empty.
    """

    def check(value: Any) -> Any:
        if isinstance(value, dict) and all(field is None for field in value.values()):
            return None
        if value in ("", False, []) or value in neutral:
            return None
        raise ValueError(reason)

    return AfterValidator(check)


def _check_n_biases(value: Any) -> Any:
    """Refuse a long `logit_bias` before its values are validated: each wrong one is an error."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"it has {len(value):,} tokens; write at most {MAX_BIASES}")
    return value


Whole = BeforeValidator(_whole)
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[str, Bias], Field(max_length=MAX_BIASES), BeforeValidator(_check_n_biases)]
MaxTokens = Annotated[int, Whole, Field(ge=-1, le=MAX_ANSWER_TOKENS)]
Ignored = Annotated[Any, Field(description="Accepted and ignored: it never changes an answer.")]
Audio = Annotated[Any, unsupported("the models here write text only; leave it out")]
Moderation = Annotated[Any, unsupported("nothing is moderated here; leave it out")]
# Efforts that a model without reasoning satisfies.
EFFORTS = ("none", "minimal", "low", "medium")
NO_REASONING = "the models here do not reason before they answer; leave it out"
Effort = Annotated[Any, unsupported(NO_REASONING, *EFFORTS)]
Verbosity = Annotated[
    Any, unsupported("the length of an answer cannot be chosen; leave it out", "medium")
]
Tier = Annotated[
    Any, unsupported("there is one tier of service; write auto or default", "auto", "default")
]


class Strict(BaseModel):
    """A model without unknown fields and without numbers written as text.

    A field that is null counts as left out. Only the first unknown field is reported, because
    reporting all of them would take seconds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {name: value for name, value in data.items() if value is not None}
        unknown = fields.keys() - cls._names()
        if unknown:
            first = next(name for name in fields if name in unknown)
            fields = {
                name: value
                for name, value in fields.items()
                if name == first or name not in unknown
            }
        return fields

    @classmethod
    @cache
    def _names(cls) -> frozenset[str]:
        """Return the names of the fields in a body."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Ignored = None


class Sampling(Strict):
    """The fields that chat and completions share, see `generation.sampling.SamplingConfig`."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Whole, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Biases | None = None
    seed: Annotated[int, Whole, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Annotated[int, Whole, Field(ge=1, le=16)] | None = None
    best_of: Annotated[int, Whole, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    user: Ignored = None


class TextPart(Strict):
    type: Literal["text"]
    text: Text
    cache_control: Ignored = None
    prompt_cache_breakpoint: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, data: Any) -> Any:
        kind = data.get("type", "text") if isinstance(data, dict) else "text"
        if kind != "text":
            raise ValueError(
                f"the models here read text only, and not {str(kind)[:40]}; leave it out"
            )
        return data


class CalledFunction(Strict):
    name: FunctionName
    arguments: Text


class ToolCall(Strict):
    """A call from an earlier answer of this server. Its `arguments` are the model's text."""

    id: Ignored = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Ignored = None


class ChatMessage(Strict):
    """One message. It accepts all fields of an answer, so that clients can send answers back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None
    ) = None
    name: Ignored = None
    annotations: Ignored = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1)] | None = None
    refusal: Annotated[
        Any, unsupported("a refusal is not kept apart from the content; send it as content")
    ] = None
    audio: Audio = None
    function_call: Annotated[
        Any, unsupported("functions are called through tools; send tool_calls")
    ] = None


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=1000, fail_fast=True)]


class Function(Strict):
    """A function with the JSON schema of its arguments. The model never sees its description."""

    name: FunctionName
    parameters: dict[str, Any] | None = None
    description: Ignored = None
    strict: Ignored = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    name: FunctionName


class ToolChoice(Strict):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Strict):
    """A schema that the answer follows, with or without `strict`.

    The model never sees its name and description.
    """

    name: FunctionName
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {"type": "object"}
    description: Ignored = None
    strict: Ignored = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`.

    The answer begins with the tokens `prefix_token_ids`, which are not sent back.
    """

    messages: Messages
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Whole, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    prefix_token_ids: Annotated[list[TokenId], Field(max_length=100_000, fail_fast=True)] | None = (
        None
    )
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: Ignored = None
    functions: Annotated[Any, unsupported("functions are called through tools; send tools")] = None
    function_call: Annotated[
        Any, unsupported("functions are called through tools; send tools", "none", "auto")
    ] = None
    metadata: Ignored = None
    store: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    service_tier: Tier = None
    reasoning_effort: Effort = None
    verbosity: Verbosity = None
    modalities: Annotated[
        Any, unsupported("the models here write text only; write text", ["text"])
    ] = None
    audio: Audio = None
    moderation: Moderation = None
    prediction: Annotated[Any, unsupported("answers are not predicted; leave it out")] = None
    web_search_options: Annotated[
        Any, unsupported("there is no search of the web; leave it out")
    ] = None


class CompletionRequest(Sampling):
    """`POST /v1/completions`. With `echo`, `max_tokens` may be 0 to score the prompt."""

    prompt: Texts = ""
    max_tokens: MaxTokens | None = None
    logprobs: Annotated[Annotated[int, Field(ge=0, le=20)] | None, BeforeValidator(_count)] = None
    echo: bool | None = None
    suffix: Annotated[Any, unsupported("a text is continued at its end only; leave it out")] = None


class EmbeddingRequest(Strict):
    """`POST /v1/embeddings`."""

    model: Name
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Whole] | None = None
    user: Ignored = None


class TokenizeRequest(Strict):
    """`POST /tokenize`: a text, or a conversation. With `merges`, also how the text's bytes are
    merged into tokens."""

    model: Name
    prompt: Text | None = None
    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    merges: bool | None = None


class DetokenizeRequest(Strict):
    """`POST /detokenize`."""

    model: Name
    tokens: Annotated[list[TokenId], Field(max_length=100_000, fail_fast=True)]
