import json

import pytest
import torch

from seq2chat.config import Recipe, TransformerConfig, UserError
from seq2chat.models.transformer import Transformer
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.training.average import average_checkpoints
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.run_folder import RunFolder
from seq2chat.training.saving import begin_checkpoint
from seq2chat.training.state import Progress

CONFIG = TransformerConfig(vocab_size=260, n_layer=1, n_head=1, d_model=8)


@pytest.fixture
def run(tmp_path):
    """A run of three checkpoints with different weights."""
    log = RunFolder(tmp_path / "run")
    log.create()
    Recipe().save(log.folder / "config.toml")
    tokenizer = ByteBPE.train(["ab"], 260)
    for step in (1, 2, 3):
        model = Transformer(CONFIG)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        begin_checkpoint(log, model, tokenizer, [], Progress(step), keep=3).wait()
    return log.folder


@pytest.mark.parametrize("last", [1, 2, 3])
def test_every_weight_is_the_mean_of_the_newest(run, tmp_path, last):
    chosen = average_checkpoints(run, last, tmp_path / "mean")
    assert [folder.name for folder in chosen] == ["step-000001", "step-000002", "step-000003"][
        -last:
    ]
    mean, tokenizer = load_checkpoint(tmp_path / "mean")
    assert tokenizer.vocab_size == 260
    weights = [dict(load_checkpoint(folder)[0].named_parameters()) for folder in chosen]
    for name, parameter in mean.named_parameters():
        expected = torch.stack([each[name].double() for each in weights]).mean(0)
        torch.testing.assert_close(parameter, expected.float(), rtol=0, atol=0)


def test_too_few_checkpoints_are_counted(run, tmp_path):
    with pytest.raises(
        UserError,
        match=r"has 3 checkpoints, not 5; average at most 3, or train with train.keep",
    ):
        average_checkpoints(run, 5, tmp_path / "mean")
    with pytest.raises(UserError, match="number of checkpoints is 0"):
        average_checkpoints(run, 0, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_no_files_are_overwritten(run, tmp_path):
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean" / "config.json").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        average_checkpoints(run, 2, tmp_path / "mean")
    assert (tmp_path / "mean" / "config.json").read_text() == "mine"


def test_different_shapes_are_refused(run, tmp_path):
    folder = run / "checkpoints" / "step-000001"
    (folder / "manifest.json").write_text(json.dumps({"sha256": {}}))
    other = RunFolder(tmp_path / "other")
    other.create()
    wider = Transformer(TransformerConfig(vocab_size=260, n_layer=1, n_head=1, d_model=16))
    saving = begin_checkpoint(other, wider, ByteBPE.train(["ab"], 260), [], Progress(1), keep=1)
    saving.wait()
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((saving.folder / file).read_bytes())
    with pytest.raises(
        UserError, match=r"step-000001 and .*step-000003 hold models of different shapes"
    ):
        average_checkpoints(run, 3, tmp_path / "mean")
