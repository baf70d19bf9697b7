"""The openai SDK as it is used, and lm-eval's way of scoring is in test_completions."""

import asyncio
import json
from typing import Literal

import openai
import pytest

from seq2chat.text.byte_bpe import ByteBPE

TOOL = {
    "type": "function",
    "function": {
        "name": "move",
        "description": "Move to a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["home", "school"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
ASK = {
    "model": "chats",
    "messages": [{"role": "user", "content": "Hello there."}],
    "max_tokens": 20,
    "seed": 3,
}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_models_chat_and_completions(client):
    assert [model.id for model in client.models.list()] == ["chats", "base", "translates", "bert"]
    result = client.chat.completions.create(**ASK, n=2, logprobs=True, top_logprobs=2, stop=["zzz"])
    assert len(result.choices) == 2 and result.usage.completion_tokens > 0
    assert result.choices[0].logprobs.content[0].top_logprobs[0].logprob <= 0
    text = client.completions.create(
        model="base", prompt="Hello", max_tokens=5, echo=True, logprobs=2
    )
    assert text.choices[0].text.startswith("Hello") and len(text.choices[0].logprobs.tokens) >= 5
    vectors = client.embeddings.create(model="bert", input=["Hello", "there"])
    assert len(vectors.data[1].embedding) == 32


def test_a_stream_and_its_usage(client):
    whole = client.chat.completions.create(**ASK)
    text, usage = "", None
    for chunk in client.chat.completions.create(
        **ASK, stream=True, stream_options={"include_usage": True}
    ):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content and usage == whole.usage
    parts = client.completions.create(
        model="base", prompt="Hello", max_tokens=5, seed=1, stream=True
    )
    assert "".join(p.choices[0].text for p in parts) == (
        client.completions.create(model="base", prompt="Hello", max_tokens=5, seed=1)
        .choices[0]
        .text
    )


@pytest.mark.parametrize("form", ["object", "dump"])
@pytest.mark.parametrize(
    "options",
    [{}, {"logit_bias": {"END": 100}}, {"tools": [TOOL], "tool_choice": "required"}],
    ids=["text", "empty", "tool"],
)
def test_an_answer_is_taken_back_as_it_came(client, folders, form, options):
    if "logit_bias" in options:
        options = {"logit_bias": {str(ByteBPE.load(folders["chats"]).control["<|im_end|>"]): 100}}
    messages = list(ASK["messages"])
    for _ in range(2):
        message = (
            client.chat.completions.create(**ASK | {"messages": messages}, **options)
            .choices[0]
            .message
        )
        if "logit_bias" in options:
            assert message.content == ""
        messages.append(message if form == "object" else message.model_dump())
        messages.append({"role": "user", "content": "And you?"})


def test_a_forced_tool_is_called_whole_and_as_a_stream(client):
    for choice, reason in (
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "move"}}, "stop"),
    ):
        options = ASK | {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
        whole = client.chat.completions.create(**options).choices[0]
        [call] = whole.message.tool_calls
        assert call.function.name == "move" and json.loads(call.function.arguments)["place"] in (
            "home",
            "school",
        )
        assert whole.finish_reason == reason and whole.message.content is None
        deltas = [
            chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)
        ]
        parts = [part for delta in deltas for part in delta.delta.tool_calls or []]
        assert parts[0].function.name == "move" and deltas[-1].finish_reason == reason
        assert "".join(part.function.arguments for part in parts) == call.function.arguments
    for fields in (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "fly"}}},
        {"tool_choice": "required"},
        {
            "tools": [TOOL, {"type": "function", "function": {"name": "fly"}}],
            "tool_choice": "required",
        },
    ):
        with pytest.raises(openai.BadRequestError, match="tool"):
            client.chat.completions.create(**ASK | fields)


def test_responses_whole_streamed_and_taken_back(client):
    ask = {
        "model": "chats",
        "instructions": "Be kind.",
        "temperature": 0.0,
        "max_output_tokens": 20,
    }
    first = client.responses.create(**ask, input="Hello there.")
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there."}]
    same = client.chat.completions.create(
        model="chats", messages=chat, temperature=0.0, max_tokens=20
    )
    assert first.output_text == same.choices[0].message.content
    assert first.usage.output_tokens == same.usage.completion_tokens == 20
    assert first.status == "incomplete" and first.incomplete_details.reason == "max_output_tokens"
    *_, last = client.responses.create(**ask, input="Hello there.", stream=True)
    assert last.type == "response.incomplete" and last.response.usage == first.usage
    assert last.response.output_text == first.output_text
    for output in (first.output, [item.model_dump() for item in first.output]):
        turns = [
            {"role": "user", "content": "Hello there."},
            *output,
            {"role": "user", "content": "And you?"},
        ]
        assert client.responses.create(**ask, input=turns).output_text
    schema = TOOL["function"]["parameters"]
    form = {"format": {"type": "json_schema", "name": "move", "schema": schema, "strict": True}}
    with client.responses.stream(model="chats", input="Hello there.", text=form) as stream:
        kinds = [event.type for event in stream]
        result = stream.get_final_response()
    assert (
        kinds[:2] == ["response.created", "response.in_progress"]
        and kinds[-1] == "response.completed"
    )
    assert (
        json.loads(result.output_text)["place"] in ("home", "school")
        and result.status == "completed"
    )
    with pytest.raises(
        openai.BadRequestError, match="previous_response_id: no response is kept here"
    ):
        client.responses.create(**ask, input="And you?", previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError, match="context"):
        list(client.responses.create(model="chats", input="Hello " * 500, stream=True))


def test_langchain(server):
    pytest.importorskip("langchain_openai")
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Move(BaseModel):
        """Move to a place."""

        place: Literal["home", "school"]

    options = {"model": "chats", "base_url": f"{server.url}/v1", "api_key": "any", "max_retries": 0}
    llm = ChatOpenAI(**options, max_tokens=20, seed=3, temperature=1.0)
    assert llm.invoke("Hello there.").content == "".join(
        part.content for part in llm.stream("Hello there.")
    )
    history = [
        SystemMessage("Hi"),
        HumanMessage("Hi", name="anna"),
        AIMessage(""),
        HumanMessage("Hi"),
    ]
    llm.max_tokens = 8
    answer = llm.invoke(history)
    assert llm.invoke([*history, answer, HumanMessage("Hi")]).content
    llm.max_tokens = 40
    for method in ("json_schema", "function_calling"):
        assert llm.with_structured_output(Move, method=method).invoke("Hello there.").place in (
            "home",
            "school",
        )
        schema = TOOL["function"]["parameters"] | {
            "title": "move",
            "description": "Move to a place.",
        }
        result = llm.with_structured_output(schema, method=method).invoke("Hello there.")
        assert result["place"] in ("home", "school")


def test_llama_index(server):
    pytest.importorskip("llama_index.llms.openai_like")
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    options = {
        "api_base": f"{server.url}/v1",
        "api_key": "any",
        "max_retries": 0,
        "context_window": 96,
    }
    chats = OpenAILike(
        model="chats", **options, is_chat_model=True, max_tokens=20, additional_kwargs={"seed": 3}
    )
    body = [ChatMessage(role="user", content="Hello there.")]
    answer = chats.chat(body).message
    assert answer.content == "".join(part.delta or "" for part in chats.stream_chat(body))
    assert chats.chat([*body, answer, ChatMessage(role="user", content="And you?")]).message.content
    base = OpenAILike(model="base", **options, is_chat_model=False, max_tokens=8, temperature=0.0)
    assert base.complete("Hello").text == "".join(
        part.delta or "" for part in base.stream_complete("Hello")
    )


def test_errors_are_the_sdks(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**ASK, temperature=-1)
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.chat.completions.create(**ASK | {"model": "nobody"})
    with pytest.raises(openai.BadRequestError, match="cannot decide whether"):
        client.chat.completions.create(**ASK, tools=[TOOL])


def test_many_at_once_get_what_they_get_alone(server, client):
    prompts = [f"Hello {i}. How are you?" for i in range(24)]
    options = {"model": "base", "max_tokens": 20, "temperature": 0.0}

    async def together():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="any", max_retries=0
        ) as many:
            return await asyncio.gather(
                *(many.completions.create(prompt=p, **options) for p in prompts)
            )

    texts = [result.choices[0].text for result in asyncio.run(together())]
    assert texts == [
        client.completions.create(prompt=p, **options).choices[0].text for p in prompts
    ]


def test_a_cancelled_request_frees_its_slot(start, slow):
    server = start(names=("chats",))
    engine = server.engine("chats")

    async def cancel():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="any", max_retries=0
        ) as client:
            stream = await client.chat.completions.create(
                **ASK | {"max_tokens": 80}, temperature=2.0, stream=True
            )
            async for _ in stream:
                break
            await stream.close()
            task = asyncio.create_task(
                client.chat.completions.create(**ASK | {"max_tokens": 80}, temperature=2.0)
            )
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    assert server.until(lambda: not engine.has_work, 5) and engine.statistics.aborted == 2
    assert engine.statistics.generated_tokens < 100
