"""A checkpoint behaves in `transformers` as it does here: it stops, pads and knows its bounds."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, pipeline

from seq2chat.config import GPTConfig
from seq2chat.models.folder import make_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import CHAT_TEMPLATE, END, START
from seq2chat.training.checkpoint import load_checkpoint, save_with_tokenizer


class Say(LogitsProcessor):
    """Make a model say the same token at every step."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        said = torch.full_like(scores, float("-inf"))
        said[:, self.token_id] = 0.0
        return said


@pytest.fixture(scope="module", params=["gpt2", "modern"])
def chat_folder(request, tmp_path_factory):
    base = ByteBPE.train(["the river runs to the sea\n"] * 3, 280)
    tokenizer = base.with_chat((START, END), "<|pad|>", CHAT_TEMPLATE)
    torch.manual_seed(0)
    shape = GPTConfig(
        request.param, vocab_size=tokenizer.vocab_size, context=64, n_layer=1, n_head=1, d_model=16
    )
    folder = tmp_path_factory.mktemp("chat")
    save_with_tokenizer(make_model(shape), tokenizer, folder)
    return folder


def test_an_answer_ends_where_its_turn_ends(chat_folder):
    model = AutoModelForCausalLM.from_pretrained(chat_folder)
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    prompt = tokenizer("the river", return_tensors="pt")
    for name in ("<|im_end|>", "<|endoftext|>"):
        token_id = tokenizer.convert_tokens_to_ids(name)
        out = model.generate(
            **prompt, max_new_tokens=8, do_sample=False, logits_processor=[Say(token_id)]
        )
        assert out[0, prompt["input_ids"].shape[1] :].tolist() == [token_id]


def test_a_chat_pipeline_answers(chat_folder):
    chat = pipeline("text-generation", model=str(chat_folder))
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    messages = [{"role": "user", "content": "the river"}]
    [answer] = chat(messages, max_new_tokens=8, logits_processor=[Say(end)])
    assert answer["generated_text"] == [*messages, {"role": "assistant", "content": ""}]


def test_the_folder_says_its_bounds_and_its_padding(chat_folder):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    model = AutoModelForCausalLM.from_pretrained(chat_folder)
    assert tokenizer.model_max_length == 64
    assert tokenizer.padding_side == "left"
    assert tokenizer.eos_token == "<|im_end|>"
    ids = json.loads((chat_folder / "generation_config.json").read_text())
    every = [ids["bos_token_id"], ids["pad_token_id"], *ids["eos_token_id"]]
    assert all(0 <= token_id < model.config.vocab_size for token_id in every)
    assert tokenizer.convert_ids_to_tokens(ids["bos_token_id"]) == "<|endoftext|>"


def test_what_was_exported_is_read_back(chat_folder):
    _, tokenizer = load_checkpoint(chat_folder)
    assert tokenizer.token_bytes(tokenizer.eos_id) == b"<|endoftext|>"
    assert [tokenizer.token_bytes(i) for i in tokenizer.end_ids] == [
        b"<|im_end|>",
        b"<|endoftext|>",
    ]
