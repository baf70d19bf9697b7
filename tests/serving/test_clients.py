"""The openai SDK as it is used, and lm-eval's way of scoring is in test_api."""

import asyncio

import openai
import pytest

ASK = {"model": "chats", "messages": [{"role": "user", "content": "Hello there."}], "max_tokens": 20, "seed": 3}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_models_chat_and_completions(client):
    assert [model.id for model in client.models.list()] == ["chats", "base", "translates", "bert"]
    made = client.chat.completions.create(**ASK, n=2, logprobs=True, top_logprobs=2, stop=["zzz"])
    assert len(made.choices) == 2 and made.usage.completion_tokens > 0
    assert made.choices[0].logprobs.content[0].top_logprobs[0].logprob <= 0
    text = client.completions.create(model="base", prompt="Hello", max_tokens=5, echo=True, logprobs=2)
    assert text.choices[0].text.startswith("Hello") and len(text.choices[0].logprobs.tokens) >= 5
    vectors = client.embeddings.create(model="bert", input=["Hello", "there"])
    assert len(vectors.data[1].embedding) == 32


def test_a_stream_and_its_usage(client):
    whole = client.chat.completions.create(**ASK)
    text, usage = "", None
    for chunk in client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content and usage == whole.usage
    parts = client.completions.create(model="base", prompt="Hello", max_tokens=5, seed=1, stream=True)
    assert "".join(p.choices[0].text for p in parts) == (
        client.completions.create(model="base", prompt="Hello", max_tokens=5, seed=1).choices[0].text
    )


def test_errors_are_the_sdks(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**ASK, temperature=-1)
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.chat.completions.create(**ASK | {"model": "nobody"})
    with pytest.raises(openai.BadRequestError, match="not supported"):
        client.chat.completions.create(**ASK, tools=[])


def test_many_at_once_get_what_they_get_alone(server, client):
    prompts = [f"Hello {i}. How are you?" for i in range(24)]
    options = {"model": "base", "max_tokens": 20, "temperature": 0.0}

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as many:
            return await asyncio.gather(*(many.completions.create(prompt=p, **options) for p in prompts))

    texts = [made.choices[0].text for made in asyncio.run(together())]
    assert texts == [client.completions.create(prompt=p, **options).choices[0].text for p in prompts]


def test_a_cancelled_request_frees_its_slot(start, slow):
    server = start(names=("chats",))
    engine = server.engine("chats")

    async def cancel():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(**ASK | {"max_tokens": 80}, temperature=2.0, stream=True)
            async for _ in stream:
                break
            await stream.close()
            task = asyncio.create_task(client.chat.completions.create(**ASK | {"max_tokens": 80}, temperature=2.0))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    assert server.until(lambda: not engine.has_work, 5) and engine.statistics.aborted == 2
    assert engine.statistics.generated_tokens < 100
