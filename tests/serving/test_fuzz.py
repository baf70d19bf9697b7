"""Requests made at random from our own description of the API: never a 5xx, and the engines live
on.

SEQ2CHAT_FUZZ is how many are made (300).
"""

import os

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

N = int(os.environ.get("SEQ2CHAT_FUZZ", "300"))
OPTIONS = {
    "temperature": st.floats(-1, 3, allow_nan=False),
    "top_p": st.floats(-0.1, 1.1),
    "top_k": st.integers(-1, 400),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.005, 5),
    "presence_penalty": st.floats(-2.1, 2.1),
    "frequency_penalty": st.floats(-2.1, 2.1),
    "seed": st.integers(-(2**64), 2**64),
    "n": st.integers(0, 5),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=5),
    "stream": st.booleans(),
    "logit_bias": st.dictionaries(st.integers(-1, 400).map(str), st.floats(-101, 101), max_size=3),
    "max_tokens": st.integers(-1, 20),
    "return_token_ids": st.booleans(),
    "unknown": st.none(),
}
CHAT = OPTIONS | {
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(-1, 21),
    "max_completion_tokens": st.integers(0, 9),
    "prefix_token_ids": st.lists(st.integers(-1, 400), max_size=5),
}
TEXT = OPTIONS | {"logprobs": st.integers(-1, 21), "echo": st.booleans()}
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text()}
    ),
    max_size=3,
) | st.text(min_size=1, max_size=40).map(lambda text: [{"role": "user", "content": text}])
PROMPTS = (
    st.text(max_size=60)
    | st.lists(st.integers(-1, 400), max_size=120)
    | st.lists(st.text(max_size=20), max_size=3)
)
MODELS = st.sampled_from(["chats", "base", "translates", "bert", "none"])
# The server answers on threads of this process, and its checked types draw from `random` meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
fuzz_settings = settings(
    max_examples=N,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def some(options):
    """A few of the options at once."""
    names = st.lists(st.sampled_from(sorted(options)), max_size=4, unique=True)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({name: options[name] for name in chosen})
    )


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
        assert server.engine_thread.error is None and client.get("/health").status_code == 200
        assert server.until(lambda: server.engine_thread.is_idle)


def check(response):
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n") and '"error"' not in response.text
    elif response.headers["content-type"] == "application/json":
        response.json()


@fuzz_settings
@given(model=MODELS, messages=MESSAGES, options=some(CHAT))
def test_chat(client, model, messages, options):
    check(
        client.post("/v1/chat/completions", json={"model": model, "messages": messages} | options)
    )


@fuzz_settings
@given(model=MODELS, prompt=PROMPTS, options=some(TEXT))
def test_completions(client, model, prompt, options):
    check(client.post("/v1/completions", json={"model": model, "prompt": prompt} | options))


def test_all_that_our_openapi_describes(client, server):
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.config.base_url = server.url
    for operation in schema.get_all_operations():

        @settings(
            max_examples=max(10, N // 10),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.ok().as_strategy())
        def sent(case):
            response = case.call(timeout=60)
            assert response.status_code < 500, response.text

        sent()
