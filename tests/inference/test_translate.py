import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import Seq2SeqConfig, TransformerConfig, UserError
from seq2chat.generation.beam import beam_search
from seq2chat.inference import translate as translation
from seq2chat.inference.translate import bleu, chrf, translate
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.byte_bpe import ByteBPE

TOKENIZER = ByteBPE.train(["two men and a dog", "zwei Männer und ein Hund"] * 3, 280)
END = TOKENIZER.eos_id
torch.manual_seed(0)
TRANSFORMER = Transformer(
    TransformerConfig(
        vocab_size=280, context=16, n_layer=1, n_head=2, d_model=16, tie_embeddings=False
    )
)
for parameter in TRANSFORMER.double().parameters():
    torch.nn.init.normal_(parameter, std=0.7)
FAST = {"beam": 2, "max_length": 6}

# Lines as they may stand in a file: anything but the ends of lines, also blank.
LINES = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30),
    max_size=6,
)


@settings(max_examples=12, deadline=None)
@given(LINES, st.sampled_from([1, 20, 4096]))
def test_lines_keep_their_number_and_order(lines, batch_tokens):
    found = list(translate(TRANSFORMER, TOKENIZER, lines, batch_tokens=batch_tokens, **FAST))
    assert [translated.line for translated in found] == lines
    for translated in found:
        assert len(translated.text.splitlines()) <= 1
        assert len(translated.texts) == len(translated.hypotheses) == 1
        if not translated.line.strip():
            assert (translated.text, translated.source) == ("", [])
            continue
        ids = TOKENIZER.encode(translated.line.strip())
        assert translated.source == [*ids[:15], END]
        assert translated.n_cut == max(0, len(ids) - 15)
        ((alone,),) = beam_search(TRANSFORMER, [[END]], END, [translated.source], **FAST)
        assert translated.hypotheses[0].tokens == alone.tokens


def test_lines_are_read_pool_by_pool(monkeypatch):
    """Progress counts them."""
    monkeypatch.setattr(translation, "POOL", 4)
    taken = []
    done = []
    lines = (taken.append(i) or f"dog {i}" if i % 3 else "" for i in range(10))
    found = translate(TRANSFORMER, TOKENIZER, lines, progress=done.append, **FAST)
    next(found)
    assert max(taken) < 4
    assert [translated.line for translated in found] == [
        "dog 1",
        "dog 2",
        "",
        "dog 4",
        "dog 5",
        "",
        "dog 7",
        "dog 8",
        "",
    ]
    assert sum(done) == 6


def test_batches_have_lines_of_similar_length(monkeypatch):
    seen = []

    def watch(model, prompts, end, sources, **search):
        seen.append([len(source) for source in sources])
        return beam_search(model, prompts, end, sources, **search)

    monkeypatch.setattr(translation, "beam_search", watch)
    lines = ["x" * n for n in (9, 1, 5, 3, 12, 2, 1, 7, 4)]
    list(translate(TRANSFORMER, TOKENIZER, lines, batch_tokens=14, **FAST))
    assert [length for batch in seen for length in batch] == [2, 2, 3, 4, 5, 6, 8, 10, 13]
    assert all(len(batch) == 1 or len(batch) * max(batch) <= 14 for batch in seen)
    assert len(seen) == 6


def test_n_best_translations_are_those_of_beam_search():
    (found,) = translate(
        TRANSFORMER,
        TOKENIZER,
        ["two men"],
        beam=4,
        n_best=3,
        length_penalty="average",
        max_length=5,
    )
    source = [*TOKENIZER.encode("two men"), END]
    options = {"beam": 4, "n_best": 3, "length_penalty": "average", "max_length": 5}
    (expected,) = beam_search(TRANSFORMER, [[END]], END, [source], **options)
    assert found.hypotheses == expected
    assert len(found.texts) == 3
    assert found.text == found.texts[0]


def test_a_translation_stays_on_one_line(monkeypatch):
    """It has no control tokens."""
    pad = TOKENIZER.pad_id
    tokens = [*TOKENIZER.encode(" two\nmen\u2028and\xa0a"), pad, *TOKENIZER.encode(" dog\r\n"), END]
    written = translation.Hypothesis(tokens, [0.0] * len(tokens), 0.0, True)
    monkeypatch.setattr(translation, "beam_search", lambda *args, **options: [[written]])
    (found,) = translate(TRANSFORMER, TOKENIZER, ["x"])
    assert found.text == "two men and\xa0a dog"


def test_an_rnn_reads_lines_of_any_length():
    model = Seq2Seq(Seq2SeqConfig(vocab_size=280, d_embed=4, d_model=4))
    (found,) = translate(model, TOKENIZER, ["dog " * 500], **FAST)
    assert found.n_cut == 0
    assert len(found.source) > 500


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="batch_tokens is 0"):
        next(translate(TRANSFORMER, TOKENIZER, ["x"], batch_tokens=0))
    with pytest.raises(UserError, match="beam is 0"):
        next(translate(TRANSFORMER, TOKENIZER, ["x"], beam=0))


def test_bleu_is_that_of_papineni():
    # All n-grams right, 4 tokens for 5: the brevity penalty alone, exp(1 - 5/4).
    measured = bleu(["a b c d"], ["a b c d e"])
    assert measured.score == pytest.approx(77.8801, abs=1e-3)
    assert "tok:13a" in measured.signature
    assert "case:mixed" in measured.signature
    assert bleu(["A b c d"], ["a b c d"]).score < 100
    # 13a parts the full stop from its word, "none" does not.
    assert bleu(["a b c d."], ["a b c d ."]).score == pytest.approx(100)
    plain = bleu(["a b c d."], ["a b c d ."], tokenize="none")
    assert plain.score < 100
    assert "tok:none" in plain.signature


def test_chrf_is_100_for_equals_and_0_for_strangers():
    assert chrf(["ein Hund"], ["ein Hund"]).score == pytest.approx(100)
    assert chrf(["xyz"], ["ein Hund"]).score == 0
    assert "nc:6" in chrf(["ein Hund"], ["ein Hund"]).signature


def test_unequal_numbers_of_lines_are_refused():
    with pytest.raises(UserError, match="There are 2 translations and 1 references"):
        bleu(["a", "b"], ["a"])
    with pytest.raises(UserError, match="no lines to score"):
        chrf([], [])


@pytest.mark.parametrize(
    ("lines", "tokenizer"),
    [
        (["A dog runs.", "Ein Hund läuft."], "13a"),
        (["一只狗在雪地里奔跑。"], "zh"),
        (["犬が雪の中を走る。"], {"ja-mecab", "char"}),
        (["สุนัขวิ่งในหิมะ"], "char"),
        (["개가 눈 속을 달린다."], {"ko-mecab", "13a"}),
    ],
)
def test_bleu_parts_words_as_their_script_does(lines, tokenizer):
    chosen = translation.bleu(lines, lines)
    assert chosen.score == pytest.approx(100.0)
    named = {part.split(":")[1] for part in chosen.signature.split("|") if part.startswith("tok:")}
    assert named <= (tokenizer if isinstance(tokenizer, set) else {tokenizer})
