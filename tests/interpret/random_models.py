"""Small models of every family with random weights, in float64, and texts for them."""

import torch
from torch import nn

from seq2chat.config import BERTConfig, GPTConfig, Seq2SeqConfig, TransformerConfig
from seq2chat.models.folder import make_model

SHAPE = {"vocab_size": 31, "context": 24, "n_layer": 3, "n_head": 4, "d_model": 16}
RNN = {"vocab_size": 31, "d_embed": 12, "d_model": 8}
CONFIGS = {
    "gpt2": GPTConfig("gpt2", **SHAPE),
    "banded": GPTConfig("gpt2", window=4, **SHAPE),
    "grouped": GPTConfig("modern", n_kv_head=2, **SHAPE),
    "bert": BERTConfig(**SHAPE),
    "pre": TransformerConfig(norm="pre", **SHAPE),
    "post": TransformerConfig(norm="post", positions="learned", **SHAPE),
    "additive": Seq2SeqConfig(n_layer=2, reverse_source=True, **RNN),
    "lstm": Seq2SeqConfig(cell="lstm", bidirectional=False, **RNN),
    "fixed": Seq2SeqConfig(attention="fixed", **RNN),
}
SOURCE = torch.tensor([[3, 9, 4, 17, 8, 1, 2], [5, 22, 2, 0, 0, 0, 0], [6, 6, 30, 7, 2, 0, 0]])
SOURCE_MASK = SOURCE != 0
TARGET = torch.tensor([[2, 11, 5, 8, 19, 4], [2, 4, 4, 29, 3, 3], [2, 27, 1, 1, 14, 9]])


def random_model(name):
    """Every weight matters; a fresh model has branches of zero."""
    torch.manual_seed(0)
    model = make_model(CONFIGS[name])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def reads_source(model):
    return model.config.family in ("seq2seq", "transformer")


def forward(model, target=TARGET, source=SOURCE, source_mask=SOURCE_MASK):
    return model(source, target, source_mask) if reads_source(model) else model(target)
