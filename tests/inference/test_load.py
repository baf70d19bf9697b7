"""Models load by family, and another family is refused with the command for it."""

import pytest
import torch

from seq2chat.config import BERTConfig, GPTConfig, TransformerConfig, UserError
from seq2chat.inference.load import load_bert, load_gpt, load_translator
from seq2chat.models.folder import make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.wordpiece import WordPiece

SHAPE = {"vocab_size": 280, "context": 16, "n_layer": 1, "n_head": 2, "d_model": 8}
CONFIGS = {
    "gpt": GPTConfig(**SHAPE),
    "bert": BERTConfig(**SHAPE),
    "transformer": TransformerConfig(**SHAPE),
}
LOADERS = {"gpt": load_gpt, "bert": load_bert, "transformer": load_translator}
COMMANDS = {"gpt": "generate", "bert": "fill-mask", "transformer": "translate"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {}
    for family in LOADERS:
        folder = tmp_path_factory.mktemp(family)
        save_model(make_model(CONFIGS[family]), folder)
        tokenizer = WordPiece if family == "bert" else ByteBPE
        tokenizer.train(["the cat sat on the mat"] * 9, 280).save(folder)
        folders[family] = folder
    return folders


@pytest.mark.parametrize("family", LOADERS)
def test_a_family_loads_with_its_tokenizer(folders, family):
    model, tokenizer = LOADERS[family](folders[family], device="cpu")
    assert model.config.family == family
    assert model.device == torch.device("cpu")
    assert isinstance(tokenizer, WordPiece if family == "bert" else TextTokenizer)


@pytest.mark.parametrize("found", LOADERS)
@pytest.mark.parametrize("wanted", LOADERS)
def test_another_family_names_its_command(folders, wanted, found):
    if wanted != found:
        with pytest.raises(UserError, match=f"seq2chat {COMMANDS[found]} RUN"):
            LOADERS[wanted](folders[found])


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    save_model(make_model(CONFIGS["gpt"]), tmp_path)
    WordPiece.train(["the cat sat on the mat"] * 9, 280).save(tmp_path)
    with pytest.raises(UserError, match="is a WordPiece tokenizer"):
        load_gpt(tmp_path)
