"""Models as they are opened to be served."""

import shutil

import pytest
import torch
from torch import nn

from seq2chat.config import UserError
from seq2chat.models.folder import load_model
from seq2chat.nn.int8 import Int8Linear
from seq2chat.serving.served_model import knows_world, open_model


@torch.no_grad()
def test_integers_say_nearly_what_the_weights_say(folders):
    served, plain = (
        open_model(folders["chats"], "small", 2, int8=True),
        load_model(folders["chats"]).eval(),
    )
    products = [m for m in served.module.modules() if isinstance(m, nn.Linear | Int8Linear)]
    assert products and all(isinstance(m, Int8Linear) for m in products)
    tokens = torch.randint(served.module.config.vocab_size, (4, 50))
    logits, expected = served.module(tokens).float(), plain(tokens)
    assert (logits - expected).norm() < 0.1 * expected.norm()
    assert served.card()["parameters"] == sum(p.numel() for p in plain.parameters())


def test_integers_are_for_a_gpt(folders):
    with pytest.raises(UserError, match="is a bert; int8 is for a GPT"):
        open_model(folders["bert"], "bert", int8=True)


def test_a_broken_template_is_named_when_its_model_is_opened(folders, tmp_path):
    folder = shutil.copytree(folders["chats"], tmp_path / "broken")
    (folder / "chat_template.jinja").write_text("{% for message in messages %}")
    with pytest.raises(UserError, match=r"broken can't be served: The chat template has an error"):
        open_model(folder, "broken")


def test_the_world_is_known_by_its_runs(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    assert not knows_world(checkpoint)
    for corpus, is_known in (("world:20MB", True), ("world", True), ("worldly.txt", False)):
        (tmp_path / "config.toml").write_text(f'[data]\ncorpus = "{corpus}"\n')
        assert knows_world(tmp_path) == knows_world(checkpoint) == is_known
