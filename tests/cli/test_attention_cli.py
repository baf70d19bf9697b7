"""`seq2chat attention` as users type it, on random models of all families."""

import json

import pytest
import torch
from command import seq2chat

from seq2chat.cli.attention import attention
from seq2chat.config import BERTConfig, GPTConfig, Seq2SeqConfig, TransformerConfig, UserError
from seq2chat.interpret.attention import attention_of_text, select_maps
from seq2chat.interpret.heatmap import values
from seq2chat.models.folder import make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.checkpoint import load_checkpoint

LINES = ["the cat sees the red house", "der Hund hört die Straße"] * 20
SHAPE = {"context": 24, "n_layer": 2, "n_head": 2, "d_model": 8}
RNN = {"d_embed": 8, "d_model": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder of every family."""
    bpe = ByteBPE.train(LINES, 280)
    wordpiece = WordPiece.train(LINES, 70)
    made = {
        "gpt": (GPTConfig(vocab_size=bpe.vocab_size, **SHAPE), bpe),
        "bert": (BERTConfig(vocab_size=wordpiece.vocab_size, **SHAPE), wordpiece),
        "transformer": (TransformerConfig(vocab_size=bpe.vocab_size, **SHAPE), bpe),
        "additive": (Seq2SeqConfig(vocab_size=bpe.vocab_size, **RNN), bpe),
        "fixed": (Seq2SeqConfig(vocab_size=bpe.vocab_size, attention="fixed", **RNN), bpe),
    }
    torch.manual_seed(0)
    for name, (config, tokenizer) in made.items():
        folder = tmp_path_factory.mktemp("models") / name
        model = make_model(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        save_model(model, folder, eos_token_id=tokenizer.eos_id)
        tokenizer.save(folder)
        made[name] = folder
    return made


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_picture_of_a_translation(folders, tmp_path):
    done = seq2chat(
        "attention", folders["transformer"], "--text", "the red cat", "--target", "die Straße"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["die Straße", "attention.png"]
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_end_in_one_sentence(folders, tmp_path):
    done = seq2chat("attention", folders["transformer"], "--text", "the cat", "--layer", "2")
    assert done.returncode == 2
    assert done.stderr == "error: There is no layer 2; the layers are 0 to 1.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gpt", "bert", "transformer", "additive"])
def test_json_is_what_the_model_computes(name, folders, capsys, tmp_path):
    target = "das Haus" if name in ("transformer", "additive") else None
    attention(folders[name], text="the red cat", target=target, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    result = attention_of_text(*load_checkpoint(folders[name]), "the red cat", target)
    maps = values(select_maps(result.maps))
    assert printed == {"text": "the red cat", "target": target, "maps": maps}
    assert len(printed["maps"]) == (1 if target else 2)
    assert not list(tmp_path.iterdir())  # no picture unless one is asked for
    for m in printed["maps"]:
        sums = torch.tensor(m["weights"]).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_without_a_target_the_translation_is_printed(folders, capsys, tmp_path):
    out = tmp_path / "new" / "map.json"
    attention(folders["additive"], text="the red cat", out=out, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert isinstance(printed["target"], str)
    assert json.loads(out.read_text()) == {"maps": printed["maps"]}
    attention(folders["additive"], text="the red cat", out=out)
    assert capsys.readouterr().out == f"{printed['target']}\n{out}\n"


def test_one_head_of_one_layer(folders, capsys, tmp_path):
    attention(
        folders["gpt"], text="the red cat", layer=1, head=0, out=tmp_path / "head.svg", as_json=True
    )
    (m,) = json.loads(capsys.readouterr().out)["maps"]
    assert (m["path"], m["heads"], len(m["weights"])) == ("layers.1.self_attn.heads", ["head 0"], 1)
    assert "layers.1.self_attn.heads" in (tmp_path / "head.svg").read_text()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fixed", {"text": "the cat"}, 'model.attention = "additive"'),
        ("gpt", {"text": ""}, "The text is empty"),
        ("bert", {"text": "the red house " * 20}, "do not fit the model's context of 24"),
        (
            "transformer",
            {"text": "the red house " * 20},
            "source has .* and the model's context is 24",
        ),
        ("gpt", {"text": "the cat", "target": "x"}, "A gpt does not translate"),
        ("additive", {"text": "the cat", "head": 1}, "no head 1; the heads are 0 to 0"),
        (
            "gpt",
            {"text": "the cat", "kind": "cross"},
            "no cross attention; it has self attention",
        ),
    ],
)
def test_what_is_wrong_is_said(name, options, message, folders, tmp_path):
    with pytest.raises(UserError, match=message):
        attention(folders[name], **options)
    assert not list(tmp_path.iterdir())
