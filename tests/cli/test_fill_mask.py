"""`seq2chat fill-mask` as users type it: what it prints are the model's own probabilities."""

import io
import json
import sys

import pytest
import torch

from seq2chat.cli import main
from seq2chat.config import BERTConfig, GPTConfig
from seq2chat.models.bert import BERT
from seq2chat.models.folder import save_model
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.masked import encode_masked
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.checkpoint import load_checkpoint

# Main reads sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

TEXT = (
    "the cat sees the dog and the dog sees the cat near the red house over the green tree, "
    "singing. " * 3
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A model folder with random weights, large enough for the guesses to differ."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = WordPiece.train([TEXT], 90)
    torch.manual_seed(0)
    model = BERT(
        BERTConfig(vocab_size=tokenizer.vocab_size, context=20, n_layer=2, n_head=2, d_model=16)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_model(model, folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `seq2chat fill-mask` with arguments and standard input; returns exit code, output and
    message."""

    def run(*arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", ["seq2chat", "fill-mask", *map(str, arguments)])
        monkeypatch.setattr(
            sys,
            "stdin",
            (
                Terminal()
                if stdin is None
                else io.TextIOWrapper(io.BytesIO(stdin.encode(errors="surrogateescape")))
            ),
        )
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    return run


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_guesses_are_the_models_probabilities(bert, command):
    code, out, err = command(bert, "The [MASK] sees the [MASK].", "--top-k", 3, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["text"] == "The [MASK] sees the [MASK]."
    model, tokenizer = load_checkpoint(bert)
    ids = encode_masked(answer["text"], tokenizer)
    with torch.no_grad():
        probabilities = model(torch.tensor([ids]))[0].softmax(-1)
    places = [i for i, token in enumerate(ids) if token == tokenizer.mask_id]
    assert len(answer["masks"]) == len(places) == 2
    vocabulary = {tokenizer.token(i): i for i in range(tokenizer.vocab_size)}
    for place, guesses in zip(places, answer["masks"], strict=True):
        shown = [g["probability"] for g in guesses]
        assert shown == pytest.approx(probabilities[place].topk(3).values.tolist(), rel=1e-4)
        assert [vocabulary[g["token"]] for g in guesses] == probabilities[place].topk(
            3
        ).indices.tolist()
    best = answer["masks"][1][0]
    piece = best["token"]
    joined = piece.removeprefix("##") if piece.startswith("##") else f" {piece}"
    assert best["text"] == f"The [MASK] sees the{joined}."


def test_a_table_shows_the_same(bert, command):
    _, out, _ = command(bert, "The [MASK] sees the cat.", "--top-k", 2, "--json")
    [guesses] = json.loads(out)["masks"]
    code, out, err = command(bert, "The [MASK] sees the cat.", "--top-k", 2)
    assert code == 0, err
    header, *rows = out.splitlines()
    assert header.split() == ["token", "probability", "text"]
    expected = [[g["token"], f"{g['probability']:.1%}", *g["text"].split()] for g in guesses]
    assert [row.split() for row in rows] == expected
    _, out, _ = command(bert, "The [MASK] sees the [MASK].")
    assert "[MASK] 1 of 2" in out
    assert "The [MASK] sees the" in out, "brackets are no markup"


def test_lines_of_standard_input_are_separate_texts(bert, command):
    code, out, err = command(bert, "--json", stdin="the [MASK]\n\nsees [MASK] red [MASK]\r\n")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(a["text"], len(a["masks"])) for a in answers] == [
        ("the [MASK]", 1),
        ("sees [MASK] red [MASK]", 2),
    ]


def test_more_guesses_than_tokens_are_all_of_them(bert, command):
    _, out, _ = command(bert, "the [MASK]", "--top-k", 1000, "--json")
    [guesses] = json.loads(out)["masks"]
    assert len(guesses) == WordPiece.load(bert).vocab_size
    assert sum(g["probability"] for g in guesses) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (
            ["Paris is lovely."],
            None,
            'There is no [MASK] in "Paris is lovely."; write it for the word to guess',
        ),
        (["the [MASK]", "--top-k", "0"], None, "--top-k is 0; write a positive number"),
        ([], None, 'Give a text to complete: "Paris is in [MASK]."'),
        ([], " \n", "Standard input is empty"),
        ([], "the [MASK]\n\udcff [MASK]", "Line 2 of standard input is not UTF-8"),
        (
            ["the " * 30 + "[MASK]"],
            None,
            "33 tokens with [CLS] and [SEP], but the model's context is 20; shorten it",
        ),
    ],
)
def test_errors_say_what_to_write(arguments, stdin, message, bert, command):
    code, out, err = command(bert, *arguments, stdin=stdin)
    assert (code, out) == (2, "")
    assert message in err


def test_a_closed_standard_input_is_an_empty_one(bert, command, monkeypatch):
    monkeypatch.setattr(Terminal, "__new__", lambda cls: None)
    code, _, err = command(bert)
    assert code == 2
    assert "Standard input is empty" in err


def test_another_family_is_sent_to_its_command(command, tmp_path):
    save_model(
        GPT(GPTConfig(vocab_size=260, context=16, n_layer=1, n_head=2, d_model=16)), tmp_path
    )
    ByteBPE.train(["text"], 260).save(tmp_path)
    code, _, err = command(tmp_path, "the [MASK]")
    assert code == 2
    assert "seq2chat generate" in err


def test_an_encoder_without_the_head_says_so(bert, command, tmp_path):
    tokenizer = WordPiece.load(bert)
    config = BERTConfig(
        vocab_size=tokenizer.vocab_size, context=20, n_layer=1, d_model=16, masked_lm=False
    )
    save_model(BERT(config), tmp_path)
    tokenizer.save(tmp_path)
    code, _, err = command(tmp_path, "the [MASK]")
    assert code == 2
    assert "without the head that guesses tokens" in err


def test_a_tokenizer_of_another_family_is_named(bert, command, tmp_path):
    save_model(BERT(BERTConfig(vocab_size=300, context=20, n_layer=1, d_model=16)), tmp_path)
    ByteBPE.train(["text"], 260).save(tmp_path)
    code, _, err = command(tmp_path, "the [MASK]")
    assert code == 2
    assert "is not a WordPiece tokenizer, which a BERT needs" in err
