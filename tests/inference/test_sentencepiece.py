"""A Llama with a SentencePiece tokenizer opens, continues texts and chats like any GPT."""

import published
import pytest
import torch

from seq2chat.config import GPTConfig
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.chat import Conversation
from seq2chat.inference.complete import complete
from seq2chat.inference.load import load_gpt
from seq2chat.models.folder import save_model
from seq2chat.models.gguf import write_gguf
from seq2chat.models.gpt import GPT
from seq2chat.serving.chat import chat_answer
from seq2chat.serving.protocol import ChatRequest
from seq2chat.serving.served_model import open_model
from seq2chat.training.checkpoint import save_with_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GREEDY = SamplingConfig(max_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    theirs = published.legacy()
    torch.manual_seed(0)
    shape = {"context": 64, "n_layer": 1, "n_head": 2, "d_model": 32, "d_ff": 48}
    save_model(GPT(GPTConfig("llama", vocab_size=theirs.get_vocab_size() + 4, **shape)), folder)
    published.written(theirs, folder, "PreTrainedTokenizerFast")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def text_of(model, tokenizer, prompt: str) -> str:
    return "".join(piece.text for piece in complete(model, tokenizer, prompt, GREEDY))


def test_files_continue_alike(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, tokenizer = load_gpt(folder)
    expected = text_of(model, tokenizer, "The cat")
    save_with_tokenizer(model, tokenizer, tmp_path / "again")
    write_gguf(model, tokenizer, tmp_path / "a.gguf", "f32")
    for path in (tmp_path / "again", tmp_path / "a.gguf"):
        assert text_of(*load_gpt(path), "The cat") == expected


def test_a_conversation_keeps_its_turns(folder):
    talk = Conversation.open(folder)
    for question in ("Hello", "How are you?"):
        answer = "".join(talk.answer(question, GREEDY))
        assert talk.messages[-1].content == answer
    assert [message.role for message in talk.messages] == ["user", "assistant"] * 2


def test_a_served_answer_begins_without_the_blank_of_its_template(folder):
    model = open_model(folder, "llama", n_slot=2)
    ids = model.tokenizer.encode("Hello")
    fresh = ChatRequest.model_validate(
        {"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}
    )
    begun = fresh.model_copy(update={"prefix_token_ids": ids})
    for body, expected in ((fresh, "Hello"), (begun, " Hello")):
        stream = chat_answer(body, model, "")._streams[0]
        assert "".join(map(stream.feed, ids)) + stream.flush() == expected
