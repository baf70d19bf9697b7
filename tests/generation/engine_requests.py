"""Random models, prompts and requests for tests of the engine."""

import random

import pytest
import torch

from seq2chat.config import GPTConfig
from seq2chat.generation.request import Request
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.tokens import Token
from seq2chat.models.gpt import GPT

SHAPE = {"vocab_size": 101, "context": 160, "n_layer": 3, "n_head": 4, "d_model": 64}


CONFIGS = {
    "gpt2": GPTConfig("gpt2", **SHAPE),
    "banded": GPTConfig("gpt2", window=7, **SHAPE),
    "modern": GPTConfig("modern", n_kv_head=2, **SHAPE),
}


GREEDY = {"temperature": 0.0}


DRAWN = {
    "temperature": 1.3,
    "top_p": 0.9,
    "seed": 3,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
}


NATIVE_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


FORMATS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def random_gpt(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = GPT(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def texts(n=8, longest=100):
    rng = random.Random(1)
    return [[rng.randrange(101) for _ in range(rng.randint(1, longest))] for _ in range(n)]


def make_request(prompt, events, max_tokens=20, options=GREEDY, **fields):
    return Request(
        list(prompt),
        SamplingConfig(max_tokens, **options),
        events.append,
        **{"logprobs": 3} | fields,
    )


def run(engine, prompts, **kwargs):
    """The tokens of each prompt, all at once."""
    outputs = [[] for _ in prompts]
    for prompt, events in zip(prompts, outputs, strict=True):
        engine.submit(make_request(prompt, events, **kwargs))
    engine.run()
    return [[event for event in events if isinstance(event, Token)] for events in outputs]
