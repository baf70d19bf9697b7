"""The requests that clients may send: OpenAI's, with bounds.

A field is honored, or refused by its name. What asks for nothing is accepted and ignored: null, the
neutral values of features that are not here, and fields that never change an answer, such as
`user`.
"""

from functools import cache
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_TOKENS = 1_000_000  # of one answer; the model's context is always less
MOST_PARTS = 128  # prompts or inputs in one request
MOST_BIASES = 300  # tokens in one `logit_bias`

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(max_length=1_000_000)]
# A list is refused at its first item that is wrong: to name them all would take seconds.
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


Stop = Annotated[str, Field(max_length=256)]
Name = Annotated[str, Field(max_length=256)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _whole(value: Any) -> Any:
    """Return a JSON number such as 4.0 as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count(value: Any) -> Any:
    """Return how many likely tokens are sent beside each: true asks for the log probabilities of
    the tokens alone.
    """
    return {True: 0, False: None}[value] if isinstance(value, bool) else _whole(value)


def _lacking(reason: str, *neutral: Any) -> AfterValidator:
    """A validator for a feature that is not here: empty and `neutral` values pass, others are
    refused with `reason`. An object in which all is null is empty.
    """

    def check(value: Any) -> Any:
        if isinstance(value, dict) and all(field is None for field in value.values()):
            return None
        if value in ("", False, []) or value in neutral:
            return None
        raise ValueError(reason)

    return AfterValidator(check)


def _few_biases(value: Any) -> Any:
    """Refuse a long `logit_bias` before its values are looked at: each that is wrong is an
    error."""
    if isinstance(value, dict) and len(value) > MOST_BIASES:
        raise ValueError(f"it has {len(value):,} tokens; write at most {MOST_BIASES}")
    return value


Whole = BeforeValidator(_whole)
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[str, Bias], Field(max_length=MOST_BIASES), BeforeValidator(_few_biases)]
MaxTokens = Annotated[int, Whole, Field(ge=-1, le=MOST_TOKENS)]
Ignored = Annotated[Any, Field(description="Accepted and ignored: it never changes an answer.")]
Audio = Annotated[Any, _lacking("the models here write text only; leave it out")]
Moderation = Annotated[Any, _lacking("nothing is moderated here; leave it out")]
# A model that does not reason is within each of these limits.
EFFORTS = ("none", "minimal", "low", "medium")
NO_REASONING = "the models here do not reason before they answer; leave it out"
NO_BACKGROUND = "there are no responses in the background; leave it out"
Effort = Annotated[Any, _lacking(NO_REASONING, *EFFORTS)]
Verbosity = Annotated[
    Any, _lacking("the length of an answer cannot be chosen; leave it out", "medium")
]
Tier = Annotated[
    Any, _lacking("there is one tier of service; write auto or default", "auto", "default")
]


class Strict(BaseModel):
    """No unknown field and no number that is written as text. A field that is null counts as left
    out. The first unknown field is an error, and those after it are not looked at: to name them all
    would take seconds.
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
        """The names of the fields in a body."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Ignored = None


class Sampling(Strict):
    """The fields of chat and completions; the numbers are those of
    `generation.sampling.SamplingConfig`.
    """

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
    """A call that an answer of this server contains. The text that the model wrote is its
    `arguments`.
    """

    id: Ignored = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Ignored = None


class ChatMessage(Strict):
    """One message. The fields of the SDK's answer are among its fields, so that it can be sent back
    as it came.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Text | Annotated[list[TextPart], Field(max_length=MOST_PARTS, fail_fast=True)] | None
    ) = None
    name: Ignored = None
    annotations: Ignored = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1)] | None = None
    refusal: Annotated[
        Any, _lacking("a refusal is not kept apart from the content; send it as content")
    ] = None
    audio: Audio = None
    function_call: Annotated[
        Any, _lacking("functions are called through tools; send tool_calls")
    ] = None


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=1000, fail_fast=True)]


class Function(Strict):
    """A function with the JSON schema of its arguments. The model is not shown its description."""

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
    """A schema that the answer follows, with or without `strict`. The model is not shown its name
    and description.
    """

    name: FunctionName
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {"type": "object"}
    description: Ignored = None
    strict: Ignored = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`. `prefix_token_ids` is how the answer begins; it is not sent
    back.
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
    functions: Annotated[Any, _lacking("functions are called through tools; send tools")] = None
    function_call: Annotated[
        Any, _lacking("functions are called through tools; send tools", "none", "auto")
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
        Any, _lacking("the models here write text only; write text", ["text"])
    ] = None
    audio: Audio = None
    moderation: Moderation = None
    prediction: Annotated[Any, _lacking("answers are not predicted; leave it out")] = None
    web_search_options: Annotated[Any, _lacking("there is no search of the web; leave it out")] = (
        None
    )


class CompletionRequest(Sampling):
    """`POST /v1/completions`. `max_tokens` 0 is for `echo`, which sends the prompt back."""

    prompt: Texts = ""
    max_tokens: MaxTokens | None = None
    logprobs: Annotated[Annotated[int, Field(ge=0, le=20)] | None, BeforeValidator(_count)] = None
    echo: bool | None = None
    suffix: Annotated[Any, _lacking("a text is continued at its end only; leave it out")] = None


class ResponsePart(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class ResponseMessage(Strict):
    """A message of the input. The fields of an output message are among its fields, so that it can
    be sent back.
    """

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ResponsePart], Field(max_length=MOST_PARTS, fail_fast=True)]
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: Ignored = None
    strict: Ignored = None


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: Verbosity = None


class ResponseStreamOptions(Strict):
    include_obfuscation: Ignored = None


class ReasoningOptions(Strict):
    effort: Effort = None
    summary: Annotated[Any, _lacking(NO_REASONING)] = None
    generate_summary: Annotated[Any, _lacking(NO_REASONING)] = None
    context: Annotated[Any, _lacking(NO_REASONING, "auto")] = None
    mode: Annotated[Any, _lacking(NO_REASONING, "standard")] = None


class BackgroundOptions(Strict):
    completion_window: Annotated[Any, _lacking(NO_BACKGROUND, "soonest")] = None
    continuation_id: Ignored = None


class ImageOptions(Strict):
    context_compression: Annotated[
        Any, _lacking("there are no images here; leave it out", "auto", "disabled")
    ] = None


class AccessPrograms(Strict):
    cyber: Annotated[
        Any, _lacking("there are no access programs here; leave it out", "standard")
    ] = None


KEPT = "no response is kept here; send the whole conversation as input"


class ResponsesRequest(Strict):
    """`POST /v1/responses`, for text."""

    model: Name
    input: (
        Text
        | Annotated[list[ResponseMessage], Field(min_length=1, max_length=1000, fail_fast=True)]
    )
    instructions: Text | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    metadata: dict[str, Any] | None = None
    user: Ignored = None
    store: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    parallel_tool_calls: Ignored = None
    max_tool_calls: Ignored = None
    service_tier: Tier = None
    moderation: Moderation = None
    previous_response_id: Annotated[Any, _lacking(KEPT)] = None
    conversation: Annotated[Any, _lacking(KEPT)] = None
    prompt: Annotated[Any, _lacking("no prompts are kept here; send the text as instructions")] = (
        None
    )
    background: Annotated[Any, _lacking(NO_BACKGROUND)] = None
    background_options: BackgroundOptions | None = None
    image: ImageOptions | None = None
    access_programs: AccessPrograms | None = None
    context_management: Annotated[
        Any, _lacking("nothing is left out of a conversation; leave it out")
    ] = None
    include: Annotated[Any, _lacking("there is nothing to include; leave it out")] = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[
        Any, _lacking("tools can be forced with /v1/chat/completions only; leave it out")
    ] = None
    tool_choice: Annotated[
        Any, _lacking("there are no tools here; leave it out", "none", "auto")
    ] = None
    top_logprobs: Annotated[
        Any, _lacking("log probabilities are sent by /v1/chat/completions only", 0)
    ] = None
    truncation: Annotated[
        Any, _lacking("nothing is left out of a conversation; write disabled", "disabled")
    ] = None


class EmbeddingRequest(Strict):
    """`POST /v1/embeddings`."""

    model: Name
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Whole] | None = None
    user: Ignored = None


class TokenizeRequest(Strict):
    """`POST /tokenize`: a text, or a conversation."""

    model: Name
    prompt: Text | None = None
    messages: Messages | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(Strict):
    """`POST /detokenize`."""

    model: Name
    tokens: Annotated[list[TokenId], Field(max_length=100_000, fail_fast=True)]
