"""Random Transformers, and the same models in torch and in Hugging Face's Marian."""

import math
import re

import pytest
import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel

from seq2chat.config import TransformerConfig
from seq2chat.models.transformer import Transformer
from seq2chat.nn.position import sinusoids

SHAPE = {
    "vocab_size": 31,
    "context": 24,
    "n_layer": 2,
    "n_head": 4,
    "d_model": 16,
    "d_ff": 40,
    "dropout": 0.0,
}


CONFIGS = {
    "pre": TransformerConfig(**SHAPE),
    "post": TransformerConfig(norm="post", **SHAPE),
    "pre-untied": TransformerConfig(
        positions="learned", activation="gelu", tie_embeddings=False, **SHAPE
    ),
    "post-learned": TransformerConfig(norm="post", positions="learned", norm_eps=1e-3, **SHAPE),
}


each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def random_transformer(config):
    """A float64 Transformer whose every weight matters: fresh ones have branches of zero."""
    torch.manual_seed(0)
    model = Transformer(config).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def tokens(seq, batch=3, seed=1):
    """Token ids without 0, which peers take for padding."""
    return torch.randint(1, 31, (batch, seq), generator=torch.Generator().manual_seed(seed))


SOURCE, TARGET = tokens(9), tokens(12, seed=2)


MASK = torch.arange(9) < torch.tensor([[9], [4], [7]])


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def renamed(ours, names):
    """Tensors under our names, weights or gradients, under a peer's; `names` are regular
    expressions."""
    theirs = {}
    for name, tensor in ours.items():
        for old, new in names:
            name = re.sub(old, new, name)
        theirs[name] = tensor
    return theirs


class TorchPeer(nn.Module):
    """torch.nn.Transformer between the same embeddings and output matrix."""

    def __init__(self, c):
        super().__init__()
        options = {
            "dropout": 0.0,
            "activation": c.activation,
            "layer_norm_eps": c.norm_eps,
            "batch_first": True,
        }
        shape, pre = (c.d_model, c.n_head, c.d_ff), c.norm == "pre"
        layers = [
            kind(*shape, norm_first=pre, **options)
            for kind in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
        ]
        # Of itself, nn.Transformer adds final norms to post-norm stacks too.
        norms = [nn.LayerNorm(c.d_model, eps=c.norm_eps) if pre else None for _ in range(2)]
        encoder = nn.TransformerEncoder(layers[0], c.n_layer, norms[0], enable_nested_tensor=False)
        decoder = nn.TransformerDecoder(layers[1], c.n_layer, norms[1])
        self.transformer = nn.Transformer(
            *shape[:2], custom_encoder=encoder, custom_decoder=decoder, batch_first=True
        )
        self.tables = nn.ModuleDict({"embed_tokens": nn.Embedding(c.vocab_size, c.d_model)})
        if not c.tie_embeddings:
            self.tables.update(
                {
                    name: nn.Embedding(c.vocab_size, c.d_model)
                    for name in ("embed_source", "lm_head")
                }
            )
        if c.positions == "learned":
            names = ("embed_positions", "embed_source_positions")
            self.tables.update({name: nn.Embedding(c.context, c.d_model) for name in names})

    def forward(self, source, target, mask):
        tables = {name: table.weight for name, table in self.tables.items()}
        tied = tables["embed_tokens"]
        x = self.embedded(
            source, tables.get("embed_source", tied), tables.get("embed_source_positions")
        )
        y = self.embedded(target, tied, tables.get("embed_positions"))
        later = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1)
        padding = {"src_key_padding_mask": ~mask, "memory_key_padding_mask": ~mask}
        return self.transformer(x, y, tgt_mask=later, **padding) @ tables.get("lm_head", tied).T

    @staticmethod
    def embedded(ids, table, learned):
        d, seq = table.shape[1], ids.shape[1]
        angles = [
            [position / 10000 ** (j // 2 * 2 / d) for j in range(d)] for position in range(seq)
        ]
        waves = [
            [math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(row)] for row in angles
        ]
        return table[ids] * d**0.5 + (
            torch.tensor(waves, dtype=torch.float64) if learned is None else learned[:seq]
        )

    @staticmethod
    def renamed(ours):
        packed = {
            name: torch.cat(
                [ours[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            )
            for name in ours
            if "q_proj" in name
        }
        rest = {name: tensor for name, tensor in ours.items() if not re.search("[qkv]_proj", name)}
        return renamed(
            packed | rest,
            [
                (r"^encoder\.(.*)mlp_residual.norm", r"encoder.\1norm2"),
                ("mlp_residual.norm", "norm3"),
                (r"^(encoder|decoder)\.", r"transformer.\1.layers."),
                ("^(encoder|decoder)_", r"transformer.\1."),
                ("self_attn_residual.norm", "norm1"),
                ("cross_attn_residual.norm", "norm2"),
                ("q_proj.", "in_proj_"),
                ("o_proj", "out_proj"),
                ("mlp.up_proj", "linear1"),
                ("mlp.down_proj", "linear2"),
                ("cross_attn", "multihead_attn"),
                ("^(embed_|lm_head)", r"tables.\1"),
            ],
        )


class MarianPeer(nn.Module):
    """transformers' MarianMTModel, its tables of positions replaced by the paper's."""

    def __init__(self, c):
        super().__init__()
        ids = dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id"), 0)
        marian = MarianConfig(
            vocab_size=c.vocab_size,
            d_model=c.d_model,
            max_position_embeddings=c.context,
            dropout=0.0,
            encoder_layers=c.n_layer,
            encoder_attention_heads=c.n_head,
            encoder_ffn_dim=c.d_ff,
            decoder_layers=c.n_layer,
            decoder_attention_heads=c.n_head,
            decoder_ffn_dim=c.d_ff,
            scale_embedding=True,
            activation_function=c.activation,
            forced_eos_token_id=None,
            **ids,
        )
        self.marian = MarianMTModel(marian).double().train()
        for stack in (self.marian.model.encoder, self.marian.model.decoder):
            stack.embed_positions.weight.data = sinusoids(
                torch.arange(c.context), c.d_model, torch.float64
            )

    def forward(self, source, target, mask):
        return self.marian(
            source, attention_mask=mask.long(), decoder_input_ids=target, use_cache=False
        ).logits

    @staticmethod
    def renamed(ours):
        return renamed(
            ours,
            [
                (r"^(encoder|decoder)\.", r"marian.model.\1.layers."),
                ("embed_tokens", "marian.model.shared"),
                ("self_attn_residual.norm", "self_attn_layer_norm"),
                ("mlp_residual.norm", "final_layer_norm"),
                ("cross_attn_residual.norm", "encoder_attn_layer_norm"),
                ("cross_attn", "encoder_attn"),
                ("o_proj", "out_proj"),
                ("mlp.up_proj", "fc1"),
                ("mlp.down_proj", "fc2"),
            ],
        )


PEERS = [(TorchPeer, name) for name in CONFIGS] + [(MarianPeer, "post")]


each_peer = pytest.mark.parametrize(
    "peer, name", PEERS, ids=[f"{p.__name__}-{n}" for p, n in PEERS]
)


def pair(peer, name):
    """Our model, the peer's with the same weights, and the peer's parameters."""
    model = random_transformer(CONFIGS[name])
    twin = peer(CONFIGS[name]).double()
    weights = peer.renamed(dict(model.named_parameters()))
    parameters = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    assert weights.keys() == parameters.keys()
    with torch.no_grad():
        for n, parameter in parameters.items():
            parameter.copy_(weights[n])
    return model, twin, parameters
