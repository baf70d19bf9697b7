import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from seq2chat.config import BERTConfig, GPTConfig, Seq2SeqConfig, TransformerConfig, UserError
from seq2chat.generation.beam import beam_search
from seq2chat.interpret.attention import (
    alignment,
    attention_maps,
    attention_of_text,
    hard_alignment,
    labels,
    pharaoh,
    select_maps,
    word_alignment,
    words,
)
from seq2chat.interpret.tape import AttentionMap, record
from seq2chat.models.folder import make_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.wordpiece import WordPiece

LINES = [
    "the cat sees the red house",
    "a dog hears the red bird",
    "der Hund hört die Straße",
    "das Haus ist rot",
] * 20
SHAPE = {"context": 40, "n_layer": 3, "n_head": 2, "d_model": 8}


@pytest.fixture(scope="module")
def bpe():
    return ByteBPE.train(LINES, 300)


@pytest.fixture(scope="module")
def wordpiece():
    return WordPiece.train(LINES, 90)


def random_model(config):
    torch.manual_seed(1)
    model = make_model(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def models(bpe, wordpiece):
    size = {"vocab_size": bpe.vocab_size}
    return {
        "gpt": random_model(GPTConfig(**size, **SHAPE)),
        "bert": random_model(BERTConfig(vocab_size=wordpiece.vocab_size, **SHAPE)),
        "transformer": random_model(TransformerConfig(**size, **SHAPE)),
        "additive": random_model(Seq2SeqConfig(d_embed=8, d_model=8, **size)),
        "fixed": random_model(Seq2SeqConfig(d_embed=8, d_model=8, attention="fixed", **size)),
    }


def tokenizer_of(name, bpe, wordpiece):
    return wordpiece if name == "bert" else bpe


@pytest.mark.parametrize("name", ["gpt", "bert", "transformer", "additive"])
def test_maps_are_the_tape_of_one_forward_pass(name, models):
    model = models[name]
    source = [5, 6, 7, 8]
    target = [3, 1, 4]
    rows = (source, target) if name in ("transformer", "additive") else (target,)
    with record(model) as tape:
        model(*(torch.tensor([row]) for row in rows))
    maps = attention_maps(model, *rows)
    assert [(m.path, m.kind) for m in maps] == [(m.path, m.kind) for m in tape.attention]
    for m, expected in zip(maps, tape.attention, strict=True):
        torch.testing.assert_close(m.weights, expected.weights)


def test_a_fixed_context_attends_to_nothing(models):
    with pytest.raises(
        UserError, match=r'has no attention; train one with model.attention = "additive"'
    ):
        attention_maps(models["fixed"], [3, 4], [5])


def test_alignment_is_the_mean_of_the_right_layer():
    torch.manual_seed(0)
    cross = [AttentionMap(f"decoder.{i}", "cross", torch.rand(1, 4, 3, 5)) for i in range(6)]
    own = AttentionMap("decoder.0", "self", torch.rand(1, 4, 3, 3))
    assert torch.equal(alignment([own, *cross]), sum(cross[4].weights[0, h] for h in range(4)) / 4)
    assert torch.equal(alignment(cross[:2]), cross[0].weights[0].mean(0))
    assert torch.equal(alignment(cross[:1]), cross[0].weights[0].mean(0))
    additive = AttentionMap("decoder.attention", "additive", torch.rand(1, 1, 3, 5))
    assert torch.equal(alignment([additive]), additive.weights[0, 0])
    with pytest.raises(UserError, match="no source to align with"):
        alignment([own])


def test_a_reversing_model_aligns_backwards():
    """A task whose alignment is known: token i of the target is token n - 1 - i of the source."""
    torch.manual_seed(0)
    n_word = 4
    n_step = 70
    model = make_model(Seq2SeqConfig(vocab_size=12, d_embed=16, d_model=32, dropout=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_step)
    end = torch.ones(32, 1, dtype=torch.int64)
    for _ in range(n_step):
        text = torch.randint(2, 12, (32, n_word))
        source, read, written = (
            torch.cat(p, 1) for p in ((text, end), (end, text.flip(1)), (text.flip(1), end))
        )
        loss = F.cross_entropy(model(source, read).flatten(0, 1), written.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    numbers = [*range(n_word), None]
    found = [
        hard_alignment(
            alignment(attention_maps(model, source[row].tolist(), read[row].tolist())),
            numbers,
            numbers,
        )
        for row in range(32)
    ]
    backwards = [(i, n_word - 1 - i) for i in range(n_word)]
    hits = sum(pair in pairs for pairs in found for pair in backwards)
    assert hits >= 0.95 * 32 * n_word


def test_hard_alignment_of_words_and_of_tokens():
    weights = torch.tensor(
        [
            [0.1, 0.7, 0.1, 0.1],
            [0.0, 0.2, 0.8, 0.0],
            [0.6, 0.2, 0.1, 0.1],
            [0.1, 0.2, 0.3, 0.4],
            [0.0, 0.9, 0.1, 0.0],
        ]
    )
    # Four source tokens: two words, the first of two tokens, and the end; five target tokens, the
    # last one the end.
    assert hard_alignment(weights, [0, 0, 1, None], [0, 1, 2, 2, None]) == [(0, 0), (0, 2), (1, 1)]
    assert hard_alignment(weights, range(4), range(5)) == [(0, 2), (1, 0), (1, 4), (2, 1), (3, 3)]
    assert hard_alignment(weights[:2], [0, 0, 1, None], [0, 0]) == [(0, 0), (1, 0)]
    assert pharaoh([(0, 2), (1, 0)]) == "0-2 1-0"
    assert pharaoh([]) == ""


TOKENIZER = ByteBPE.train(LINES, 300)


@given(st.text("ab the Straße cat\t\n  ,.😀\xa0", max_size=30))
def test_words_are_what_white_space_divides(text):
    ids = [TOKENIZER.eos_id, *TOKENIZER.encode(text), TOKENIZER.eos_id]
    found = words(TOKENIZER, ids)
    assert len(found) == len(ids)
    assert found[0] is found[-1] is None
    parts = [b""] * len(text.encode().split())
    for token_id, word in zip(ids, found, strict=True):
        if word is not None:
            parts[word] += TOKENIZER.token_bytes(token_id)
    assert [part.strip() for part in parts] == text.encode().split()


def test_labels_can_be_read_alone(bpe, wordpiece):
    id_of = {bpe.token_bytes(i): i for i in range(bpe.vocab_size)}
    ids = [bpe.eos_id, *bpe.encode(" the"), *(id_of[bytes([byte])] for byte in "é\n$".encode())]
    assert labels(bpe, ids) == ["<|endoftext|>", "␣the", r"\xc3", r"\xa9", r"\n", "$"]
    assert labels(wordpiece, [wordpiece.cls_id, *wordpiece.encode("the houses")])[:2] == [
        "[CLS]",
        "the",
    ]
    assert labels(wordpiece, wordpiece.encode("houses"))[-1].startswith("##")


def test_queries_are_named_after_the_written_tokens(models, bpe):
    for name in ("transformer", "additive"):
        source = bpe.encode("the red cat")
        target = bpe.encode("das Haus")
        seen = attention_of_text(models[name], bpe, "the red cat", "das Haus")
        end = "<|endoftext|>"
        read = labels(bpe, target)
        written = labels(bpe, source)
        maps = attention_maps(models[name], [*source, bpe.eos_id], [bpe.eos_id, *target])
        assert (seen.text, seen.target, len(seen.maps)) == ("the red cat", "das Haus", len(maps))
        for m, expected in zip(seen.maps, maps, strict=True):
            assert torch.equal(m.weights, expected.weights[0])
            assert m.weights.shape == (len(m.heads), len(m.queries), len(m.keys))
            if m.kind == "self":
                assert (
                    m.queries
                    == m.keys
                    == ([*written, end] if "encoder" in m.path else [end, *read])
                )
            else:
                assert (m.queries, m.keys) == ([*read, end], [*written, end])


@pytest.mark.parametrize("name", ["transformer", "additive"])
def test_without_a_target_the_model_translates_first(name, models, bpe):
    model = models[name]
    end = bpe.eos_id
    source = [*bpe.encode("the red cat"), end]
    tokens = beam_search(model, [[end]], end, sources=[source], beam=5)[0][0].tokens
    text = tokens[:-1] if tokens[-1] == end else tokens
    seen = attention_of_text(model, bpe, "the red cat")
    assert seen.target == bpe.decode(text)
    assert select_maps(seen.maps)[0].queries == [*labels(bpe, text), "<|endoftext|>"]
    expected = alignment(attention_maps(model, source, [end, *text]))
    torch.testing.assert_close(select_maps(seen.maps)[0].weights[0], expected)
    pairs = hard_alignment(expected, words(bpe, source), words(bpe, [*text, end]))
    assert (
        word_alignment(model, bpe, source, tokens)
        == word_alignment(model, bpe, source, text)
        == pairs
    )


def test_texts_are_read_as_in_training(models, bpe, wordpiece):
    (first, *_) = attention_of_text(models["gpt"], bpe, "the cat").maps
    ids = [bpe.eos_id, *bpe.encode("the cat")]
    assert first.queries == first.keys == labels(bpe, ids)
    assert torch.equal(first.weights, attention_maps(models["gpt"], ids)[0].weights[0])
    (first, *_) = attention_of_text(models["bert"], wordpiece, "the cat [MASK] a dog").maps
    ids = [
        wordpiece.cls_id,
        *wordpiece.encode("the cat"),
        wordpiece.mask_id,
        *wordpiece.encode("a dog"),
        wordpiece.sep_id,
    ]
    assert first.queries == labels(wordpiece, ids)
    assert attention_of_text(models["bert"], wordpiece, "the cat").maps[0].keys[-1] == "[SEP]"


def test_what_cannot_be_looked_at(models, bpe, wordpiece):
    for name in ("gpt", "transformer"):
        with pytest.raises(UserError, match="The text is empty"):
            attention_of_text(models[name], bpe, " \n")
    with pytest.raises(UserError, match="The target is empty"):
        attention_of_text(models["transformer"], bpe, "the cat", "")
    with pytest.raises(UserError, match="A gpt does not translate; leave out the target"):
        attention_of_text(models["gpt"], bpe, "the cat", "die Katze")
    with pytest.raises(UserError, match=r"tokens do not fit the model's context of 40"):
        attention_of_text(models["bert"], wordpiece, "the red house " * 40)
    for target in ("die Katze", None):
        with pytest.raises(
            UserError, match=r"source has \d+ tokens, and the model's context is 40"
        ):
            attention_of_text(models["transformer"], bpe, "the red house " * 40, target)


def test_choosing_kind_layer_and_head(models, bpe):
    maps = attention_of_text(models["transformer"], bpe, "the red cat", "das Haus").maps
    (one,) = select_maps(maps)
    assert (one.path, one.heads) == ("decoder.1.cross_attn.heads", ["mean of 2 heads"])
    assert torch.equal(one.weights[0], maps[6].weights.mean(0))
    assert [m.path for m in select_maps(maps, kind="cross")] == [
        f"decoder.{i}.cross_attn.heads" for i in range(3)
    ]
    assert [m.path for m in select_maps(maps, kind="self", layer=2)] == [
        "encoder.2.self_attn.heads",
        "decoder.2.self_attn.heads",
    ]
    (one,) = select_maps(maps, layer=2, head=1)
    assert (one.path, one.heads) == ("decoder.2.cross_attn.heads", ["head 1"])
    assert torch.equal(one.weights, maps[8].weights[1:])
    wall = attention_of_text(models["gpt"], bpe, "the red cat").maps
    assert select_maps(wall) == wall
    (alone,) = select_maps(
        attention_of_text(models["additive"], bpe, "the red cat", "das Haus").maps
    )
    assert (alone.path, alone.heads) == ("decoder.attention", ["head 0"])
    for options, message in (
        ({"layer": 3}, "no layer 3; the layers are 0 to 2"),
        ({"layer": -1}, "no layer -1"),
        ({"head": 2}, "no head 2; the heads are 0 to 1"),
        ({"kind": "additive"}, "no additive attention; it has self and cross attention"),
    ):
        with pytest.raises(UserError, match=message):
            select_maps(maps, **options)
    with pytest.raises(UserError, match="no cross attention; it has self attention"):
        select_maps(wall, kind="cross")
