"""The request of `POST /v1/responses`. See `protocol` for the rules."""

from typing import Annotated, Any, Literal

from pydantic import Field

from seq2chat.serving.protocol import (
    MAX_PARTS,
    NO_REASONING,
    Effort,
    FunctionName,
    Ignored,
    MaxTokens,
    Moderation,
    Name,
    Strict,
    Text,
    Tier,
    Verbosity,
    unsupported,
)

NO_BACKGROUND = "there are no responses in the background; leave it out"
NOT_STORED = "no response is kept here; send the whole conversation as input"


class ResponsePart(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class ResponseMessage(Strict):
    """A message of the input. It accepts all fields of an output message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ResponsePart], Field(max_length=MAX_PARTS, fail_fast=True)]
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
    summary: Annotated[Any, unsupported(NO_REASONING)] = None
    generate_summary: Annotated[Any, unsupported(NO_REASONING)] = None
    context: Annotated[Any, unsupported(NO_REASONING, "auto")] = None
    mode: Annotated[Any, unsupported(NO_REASONING, "standard")] = None


class BackgroundOptions(Strict):
    completion_window: Annotated[Any, unsupported(NO_BACKGROUND, "soonest")] = None
    continuation_id: Ignored = None


class ImageOptions(Strict):
    context_compression: Annotated[
        Any, unsupported("there are no images here; leave it out", "auto", "disabled")
    ] = None


class AccessPrograms(Strict):
    cyber: Annotated[
        Any, unsupported("there are no access programs here; leave it out", "standard")
    ] = None


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
    previous_response_id: Annotated[Any, unsupported(NOT_STORED)] = None
    conversation: Annotated[Any, unsupported(NOT_STORED)] = None
    prompt: Annotated[
        Any, unsupported("no prompts are kept here; send the text as instructions")
    ] = None
    background: Annotated[Any, unsupported(NO_BACKGROUND)] = None
    background_options: BackgroundOptions | None = None
    image: ImageOptions | None = None
    access_programs: AccessPrograms | None = None
    context_management: Annotated[
        Any, unsupported("nothing is left out of a conversation; leave it out")
    ] = None
    include: Annotated[Any, unsupported("there is nothing to include; leave it out")] = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[
        Any, unsupported("tools can be forced with /v1/chat/completions only; leave it out")
    ] = None
    tool_choice: Annotated[
        Any, unsupported("there are no tools here; leave it out", "none", "auto")
    ] = None
    top_logprobs: Annotated[
        Any, unsupported("log probabilities are sent by /v1/chat/completions only", 0)
    ] = None
    truncation: Annotated[
        Any, unsupported("nothing is left out of a conversation; write disabled", "disabled")
    ] = None
