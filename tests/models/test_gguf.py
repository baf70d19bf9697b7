"""GGUF files in both directions, with the `gguf` package and llama.cpp as referees."""

import json
import struct
import sys
from itertools import pairwise

import gguf
import numpy as np
import published
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import GPTConfig, UserError
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gguf import gguf_folder, read_gguf, write_gguf
from seq2chat.models.gguf_file import TYPES, GGUFFile
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import with_chat
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import load_tokenizer
from seq2chat.training.checkpoint import load_checkpoint

TEXT = "The cat is in the house. 12 dogs aren't in it, are they? Übung macht den Meister."
SHAPE = {"vocab_size": 320, "context": 64, "n_layer": 2, "n_head": 4, "d_model": 64, "d_ff": 96}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_context": 8192}
CONFIGS = {
    "gpt2": GPTConfig("gpt2", **SHAPE),
    "modern": GPTConfig("modern", n_kv_head=2, rope_theta=500.0, **SHAPE),
    "tied": GPTConfig("modern", d_head=32, tie_embeddings=True, **SHAPE),
    "llama": GPTConfig("llama", n_kv_head=2, norm_eps=1e-5, **SHAPE),
    "llama3": GPTConfig("llama", n_kv_head=2, tie_embeddings=True, **LLAMA3, **SHAPE),
    "linear": GPTConfig("llama", rope_scaling="linear", rope_factor=4.0, **SHAPE),
    "biases": GPTConfig("llama", attention_bias=True, mlp_bias=True, **SHAPE),
    "qwen2": GPTConfig("qwen2", n_kv_head=2, **SHAPE),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(scope="module")
def tokenizer():
    return with_chat(ByteBPE.train([TEXT] * 3, 316))


def randomized(config: GPTConfig) -> GPT:
    """A model whose logits differ clearly from token to token."""
    torch.manual_seed(0)
    model = GPT(config)
    for parameter in model.parameters():
        spread = 0.4 if parameter.ndim > 1 else 0.1
        mean = 1.0 if parameter.ndim == 1 else 0.0
        torch.nn.init.normal_(parameter, mean, spread)
    return model.eval()


@each_config
def test_float32_files_hold_the_model_and_its_tokenizer(config, tokenizer, tmp_path):
    model = randomized(config)
    write_gguf(model, tokenizer, tmp_path / "a.gguf", "f32")
    read, its_tokenizer = read_gguf(tmp_path / "a.gguf")
    assert read.config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    assert its_tokenizer.encode(TEXT + "\n\n  x1") == tokenizer.encode(TEXT + "\n\n  x1")
    assert its_tokenizer.control == tokenizer.control
    assert its_tokenizer.end_ids == tokenizer.end_ids
    assert its_tokenizer.pad_id == tokenizer.pad_id
    assert not (tmp_path / ".a.gguf.tmp").exists()


@pytest.mark.parametrize(
    ("kind", "error"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3), ("q4_0", 0.13)]
)
def test_smaller_types_round_the_matrices(kind, error, tokenizer, tmp_path):
    model = randomized(CONFIGS["llama"])
    write_gguf(model, tokenizer, tmp_path / "a.gguf", kind)
    read, _ = read_gguf(tmp_path / "a.gguf")
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            assert torch.equal(read.state_dict()[name], tensor)
        else:
            difference = (read.state_dict()[name] - tensor).abs().max() / tensor.abs().max()
            assert 0 < difference < error, name
    assert (tmp_path / "a.gguf").stat().st_size < 4 * sum(p.numel() for p in model.parameters())


def test_the_reader_is_that_of_the_gguf_package(tokenizer, tmp_path):
    """For every type of tensor, and all metadata."""
    file = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("words", ["a", "é"])
    writer.add_float32("float", 0.5)
    writer.add_bool("flag", True)
    rng = np.random.default_rng(0)
    for kind in TYPES:
        target = gguf.GGMLQuantizationType[kind]
        values = rng.standard_normal((3, 512), dtype=np.float32)
        try:
            data = gguf.quants.quantize(values, target)
        except NotImplementedError:  # K types can only be read: any bytes will do
            n_per_block, n_bytes = gguf.GGML_QUANT_SIZES[target]
            data = rng.integers(0, 60, (3, 512 // n_per_block * n_bytes), dtype=np.uint8)
        writer.add_tensor(kind, data, raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = GGUFFile(file)
    theirs = gguf.GGUFReader(file)
    for key in ("general.architecture", "numbers", "words", "float", "flag"):
        assert ours.metadata[key] == theirs.get_field(key).contents()
    assert list(ours.tensors) == list(TYPES) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.tensor(tensor.name).astype(np.float32), expected)
    ours.close()


def test_a_file_opens_like_a_folder_and_is_converted_once(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = randomized(CONFIGS["llama"])
    file = tmp_path / "a.gguf"
    write_gguf(model, tokenizer, file, "f32")
    opened, its_tokenizer = load_checkpoint(file)
    assert torch.equal(opened.state_dict()["norm.weight"], model.norm.weight)
    assert its_tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    folder = gguf_folder(file)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert gguf_folder(file) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    write_gguf(randomized(CONFIGS["qwen2"]), tokenizer, file, "f32")
    assert load_checkpoint(file)[0].config.layout == "qwen2"
    assert [path.name for path in (tmp_path / "cache/seq2chat/models").glob(".*")] == []


def test_windows_are_refused(tokenizer, tmp_path):
    for config in (
        GPTConfig("gpt2", window=8, **SHAPE),
        GPTConfig("mistral", window=8, **SHAPE),
    ):
        with pytest.raises(UserError, match="no local layers"):
            write_gguf(GPT(config), tokenizer, tmp_path / "a.gguf")
    write_gguf(GPT(GPTConfig("mistral", window=64, **SHAPE)), tokenizer, tmp_path / "a.gguf")
    assert read_gguf(tmp_path / "a.gguf")[0].config.layout == "llama"


SENTENCEPIECE = {
    "legacy": published.legacy,
    "always": lambda: published.metaspace("always"),
    "gemma": published.gemma,
}


def published_tokenizer(model: tokenizers.Tokenizer, folder) -> TextTokenizer:
    return load_tokenizer(published.written(model, folder, "PreTrainedTokenizerFast"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """SentencePiece tokenizers, each with the metadata of a file that was written with it, and
    the tokenizer that is read from it."""
    made = {}
    for name, make in SENTENCEPIECE.items():
        folder = tmp_path_factory.mktemp(name)
        tokenizer = published_tokenizer(make(), folder)
        config = GPTConfig("llama", **SHAPE | {"vocab_size": tokenizer.vocab_size + 8})
        write_gguf(randomized(config), tokenizer, folder / "a.gguf", "f32")
        file = GGUFFile(folder / "a.gguf")
        made[name] = tokenizer, file.metadata, read_gguf(folder / "a.gguf")[1]
        file.close()
    return made


def joined_by_scores(metadata, text: str) -> list[int]:
    """llama.cpp's algorithm: of all neighbors that make a token, the first ones with the best score
    are joined."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"], strict=True))
    normal = {
        token
        for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
        if kind == 1
    }
    if metadata["tokenizer.ggml.add_space_prefix"] and text:
        text = " " + text
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [a + b for a, b in pairwise(symbols)]
        best = max((scores[pair] for pair in pairs if pair in normal), default=None)
        if best is None:
            break
        at = next(i for i, pair in enumerate(pairs) if pair in normal and scores[pair] == best)
        symbols[at : at + 2] = [pairs[at]]
    out = []
    for symbol in symbols:
        if symbol in normal:
            out.append(ids[symbol])
        else:
            out += [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return out


SPM_TEXTS = st.lists(
    st.text(max_size=6)
    | st.sampled_from([" the", "The cat", "  ", "       ", "\n", "北京市", "</s>"]),
    max_size=6,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=SPM_TEXTS)
def test_scores_join_what_merges_join(scored, text):
    for name, (tokenizer, metadata, read) in scored.items():
        if name == "always" and text.startswith((" ", "▁")):
            continue  # llama.cpp adds a blank even then
        assert tokenizer.encode(text) == joined_by_scores(metadata, text), name
        assert read.encode(text) == joined_by_scores(metadata, text), name
        assert read.encode(text, after="text") == tokenizer.encode(text, after="text")
        if "▁" not in text:
            assert read.decode(read.encode(text)) == text


def test_sentencepiece_is_written_as_llama_cpp_has_it(scored):
    for name, (tokenizer, metadata, read) in scored.items():
        assert metadata["tokenizer.ggml.model"] == "llama"
        assert metadata["tokenizer.ggml.add_space_prefix"] is (name != "gemma")
        assert metadata["tokenizer.ggml.add_bos_token"] is True
        types = metadata["tokenizer.ggml.token_type"]
        assert types[:4] == [2, 3, 3, 6] and types[-8:] == [5] * 8
        assert set(types[3:259]) == {6} and set(types[259:-8]) == {1}
        assert read.control == tokenizer.control
        assert (read.start_ids, read.end_ids, read.pad_id) == ([1], [2], None)


def test_sentencepiece_that_llama_cpp_lacks_is_refused(tmp_path):
    model = GPT(GPTConfig("llama", **SHAPE | {"vocab_size": 700}))
    lonely = json.loads(published.legacy().to_str())
    lonely["model"]["merges"].pop()
    cases = {
        "Unigram": published.unigram(byte_fallback=True),
        "not merged": tokenizers.Tokenizer.from_str(json.dumps(lonely)),
    }
    for message, theirs in cases.items():
        tokenizer = published_tokenizer(theirs, tmp_path / message)
        with pytest.raises(UserError, match=f"{message}.*export the folder with --safetensors"):
            write_gguf(model, tokenizer, tmp_path / "a.gguf")


@pytest.fixture(scope="module")
def stored(tokenizer, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write_gguf(randomized(CONFIGS["llama"]), tokenizer, file, "q8_0")
    return file.read_bytes()


def test_truncated_files_are_named(stored, tmp_path):
    file = tmp_path / "a.gguf"
    for length in [0, 3, 4, 10, 23, 24, 30, *range(40, len(stored), 3571), len(stored) - 1]:
        file.write_bytes(stored[:length])
        with pytest.raises(
            UserError, match=r"a.gguf (is damaged|is not a GGUF|can.t be read)"
        ) as e:
            read_gguf(file)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("count", [2**63, 2**62, 10**9])
def test_huge_counts_allocate_nothing(at, count, stored, tmp_path):
    """The numbers of tensors and of keys."""
    file = tmp_path / "a.gguf"
    file.write_bytes(stored[:at] + struct.pack("<Q", count) + stored[at + 8 :])
    with pytest.raises(UserError, match="is damaged"):
        read_gguf(file)


def test_huge_arrays_strings_and_shapes_allocate_nothing(stored, tmp_path):
    file = tmp_path / "a.gguf"

    def changed(key: bytes, offset: int, value: bytes) -> None:
        at = stored.index(key) + len(key) + offset
        file.write_bytes(stored[:at] + value + stored[at + len(value) :])
        with pytest.raises(UserError, match=r"is damaged|has the type"):
            read_gguf(file)

    huge = struct.pack("<Q", 2**63)
    changed(b"tokenizer.ggml.tokens", 8, huge)  # after two types: the number of strings
    changed(b"tokenizer.ggml.tokens", 16, huge)  # the length of the first string
    changed(b"tokenizer.ggml.token_type", 8, huge)
    changed(b"general.architecture", 4, huge)
    changed(b"token_embd.weight", 4, huge)  # after the number of dimensions: the first size
    changed(b"token_embd.weight", 0, struct.pack("<I", 200))
    changed(b"token_embd.weight", 20, struct.pack("<I", 99))  # the type
    changed(b"token_embd.weight", 24, huge)  # the offset


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "mamba", "architecture 'mamba', which is not supported; gpt2"),
        ("tokenizer.ggml.model", "bert", "tokenizer of the kind 'bert'"),
        ("tokenizer.ggml.model", "llama", "lacks 'tokenizer.ggml.scores'"),
        ("tokenizer.ggml.pre", "nobody", "pattern 'nobody'"),
        ("llama.block_count", None, "lacks 'llama.block_count'"),
        ("llama.block_count", 3, "blk.2.attn_k.weight is missing"),
        ("llama.block_count", 1, "blk.1.attn_k.weight is unknown"),
        ("llama.embedding_length", 128, "does not fit its tensors"),
        ("llama.rope.scaling.type", "yarn", "scales rotary positions by 'yarn'"),
        ("llama.expert_count", 8, "experts"),
        ("llama.block_count", 2**32 - 1, "does not fit its tensors"),
        ("llama.attention.head_count", [4, 4], "is damaged"),
        ("llama.attention.head_count", 0, "is damaged|positive"),
        ("tokenizer.ggml.token_type", [1, 2], "is damaged"),
        ("tokenizer.ggml.merges", ["ab"], "is damaged"),
        ("tokenizer.ggml.eos_token_id", "x", "is damaged"),
        ("tokenizer.ggml.pre", None, "pattern 'default'"),
        ("llama.attention.head_count", 3, "model.n_head 3 is not a multiple"),
    ],
)
def test_what_is_not_supported_is_named(key, value, message, stored, tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(stored)
    read_header = GGUFFile._read_header

    def changed(self):
        read_header(self)
        self.metadata[key] = value
        if value is None:
            del self.metadata[key]

    monkeypatch.setattr(GGUFFile, "_read_header", changed)
    with pytest.raises(UserError, match=message):
        read_gguf(tmp_path / "a.gguf")


def test_the_missing_package_is_named(stored, tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(stored)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r'pip install "seq2chat\[gguf\]"'):
        read_gguf(tmp_path / "a.gguf")


@each_config
def test_llama_cpp_continues_as_we_do(config, tokenizer, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = randomized(config)
    write_gguf(model, tokenizer, tmp_path / "a.gguf", "f32")
    # Its own cache of keys and values is float16.
    cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    theirs = llama_cpp.Llama(str(tmp_path / "a.gguf"), n_ctx=64, verbose=False, **cache)
    for text in (TEXT, "x1 23  the"):
        ids = tokenizer.encode(text)[:20]
        assert theirs.tokenize(text.encode(), add_bos=False, special=False)[:20] == ids
        [[ours]] = generate(model, [ids], SamplingConfig(max_tokens=24, temperature=0.0))
        stream = theirs.generate(ids, temp=0.0)
        assert [next(stream) for _ in range(24)] == list(ours.tokens)


def test_llama_cpp_chats_in_our_format(tokenizer, tmp_path):
    """The template and the end of an answer are carried."""
    llama_cpp = pytest.importorskip("llama_cpp")
    write_gguf(randomized(CONFIGS["modern"]), tokenizer, tmp_path / "a.gguf", "f16")
    theirs = llama_cpp.Llama(str(tmp_path / "a.gguf"), n_ctx=64, verbose=False)
    assert theirs.token_eos() == tokenizer.control["<|im_end|>"]
    assert "generation %}" not in theirs.metadata["tokenizer.chat_template"]
    messages = [{"role": "user", "content": "Hi"}]
    assert theirs.create_chat_completion(messages, max_tokens=4)["usage"]["prompt_tokens"] > 5
