"""The Transformer against its peers, and the properties of its logits and fresh weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models.transformer_peers import (
    CONFIGS,
    MASK,
    SOURCE,
    TARGET,
    assert_equal,
    each_config,
    each_peer,
    pair,
    random_transformer,
    tokens,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seq2chat.config import TransformerConfig, UserError
from seq2chat.models.transformer import Transformer
from seq2chat.nn.attention import scaled_dot_product_plain
from seq2chat.nn.position import sinusoids
from seq2chat.text.batch import Batch


@each_peer
def test_logits_and_gradients_are_the_peers(peer, name):
    model, twin, parameters = pair(peer, name)
    ours, theirs = model(SOURCE, TARGET, MASK), twin(SOURCE, TARGET, MASK)
    assert_equal(ours, theirs)
    for logits in (ours, theirs):
        F.cross_entropy(logits.flatten(0, 1), tokens(12, seed=3).flatten()).backward()
    gradients = peer.renamed({n: p.grad for n, p in model.named_parameters()})
    for n, parameter in parameters.items():
        assert_equal(gradients[n], parameter.grad)


@each_peer
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_equals_the_peers(optimizer, peer, name):
    """Three steps end in the same weights."""
    model, twin, parameters = pair(peer, name)
    for module in (model, twin):
        # Adam's step of a gradient of zero, which k's bias has, is noise divided by noise: a large
        # epsilon quiets it.
        options = {"eps": 1e-4} if optimizer is torch.optim.AdamW else {}
        steps = optimizer(
            [p for p in module.parameters() if p.requires_grad],
            lr=0.01,
            weight_decay=0.1,
            **options,
        )
        for seed in range(3):
            source, target, labels = (
                tokens(9, seed=seed),
                tokens(12, seed=10 + seed),
                tokens(12, seed=20 + seed),
            )
            loss = F.cross_entropy(module(source, target, MASK).flatten(0, 1), labels.flatten())
            steps.zero_grad()
            loss.backward()
            steps.step()
    trained = peer.renamed(dict(model.named_parameters()))
    for n, parameter in parameters.items():
        assert_equal(trained[n], parameter)


@each_config
@settings(max_examples=8, deadline=None)
@given(portions=st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_steps_equal_one_forward_pass(config, portions):
    """For portions of any size."""
    model, target = random_transformer(config), tokens(min(24, sum(portions)))
    state, logits = model.start(SOURCE, MASK), []
    for portion in target.tensor_split(
        torch.tensor(portions).cumsum(0)[:-1].clamp(max=24).tolist(), dim=1
    ):
        if portion.shape[1]:
            # Where attention is the fused kernel, while `forward` below is its plain twin.
            with torch.inference_mode():
                step_logits, state = model.step(portion, state)
            logits.append(step_logits)
    assert state.length == target.shape[1]
    assert_equal(torch.cat(logits, dim=1), model(SOURCE, target, MASK))


@each_config
def test_rows_do_not_depend_on_padding(config):
    model = random_transformer(config)
    together = model(SOURCE, TARGET, MASK)
    for row, length in enumerate(MASK.sum(1).tolist()):
        alone = model(SOURCE[row : row + 1, :length], TARGET[row : row + 1])
        assert_equal(alone[0], together[row])
    other = torch.cat([torch.where(MASK, SOURCE, 30 - SOURCE), tokens(8)], dim=1)
    assert_equal(model(other, TARGET, F.pad(MASK, (0, 8))), together)
    assert (model(SOURCE, TARGET) - together)[1:].abs().max() > 1e-3, (
        "without a mask, padding is read"
    )


@each_config
def test_logits_depend_on_past_target_and_whole_source(config):
    model = random_transformer(config)
    before = model(SOURCE, TARGET)
    target, source = TARGET.clone(), SOURCE.clone()
    target[:, 7], source[:, 8] = target[:, 7] % 30 + 1, source[:, 8] % 30 + 1
    after = model(SOURCE, target)
    assert_equal(before[:, :7], after[:, :7])
    assert ((before - after)[:, 7:].abs().amax(dim=(0, 2)) > 1e-6).all()
    assert ((before - model(source, TARGET)).abs().amax(dim=2) > 1e-6).all()


@each_config
def test_a_source_of_padding_alone_gives_numbers(config):
    model, mask = random_transformer(config), MASK.clone()
    mask[1] = False
    logits = model(SOURCE, TARGET, mask)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.inference_mode():
        assert_equal(model(SOURCE, TARGET, mask), logits)
        assert_equal(model.step(TARGET, model.start(SOURCE, mask))[0], logits)
    kept = torch.tensor([0, 2])
    assert_equal(logits[kept], model(SOURCE, TARGET, MASK)[kept])


@each_config
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_reordered_rows_go_on_as_what_they_were(config, mask):
    model = random_transformer(config)
    state, rows, texts = (
        model.start(SOURCE, mask),
        torch.arange(3),
        torch.empty(3, 0, dtype=torch.int64),
    )
    # Repeated, shuffled within their sources, swapped across them, dropped, and repeated again.
    for number, order in enumerate(
        [[0, 0, 1, 1, 2, 2], [1, 0, 2, 3, 5, 4], [5, 0, 3], [2, 1], [0, 0, 1]]
    ):
        state.reorder(torch.tensor(order))
        rows, texts = rows[order], texts[order]
        new = tokens(2, batch=len(order), seed=30 + number)
        logits, state = model.step(new, state)
        texts = torch.cat([texts, new], dim=1)
        for i, row in enumerate(rows.tolist()):
            one_mask = None if mask is None else mask[row : row + 1]
            assert_equal(
                logits[i], model(SOURCE[row : row + 1], texts[i : i + 1], one_mask)[0, -2:]
            )
    assert rows.tolist() == [1, 1, 0]


def test_reordering_within_a_source_copies_no_keys():
    model = random_transformer(CONFIGS["pre"])
    state = model.start(SOURCE, MASK)
    state.reorder(torch.tensor([0, 0, 1, 1]))
    before = state.memory
    state.reorder(torch.tensor([1, 1, 3, 2]))
    assert state.memory is before
    state.reorder(torch.tensor([0, 2, 1, 3]))
    assert state.memory is not before


@each_config
def test_the_context_may_be_used_and_no_more(config):
    model = random_transformer(config)
    with pytest.raises(UserError, match=r"source has 25 tokens.* context is 24"):
        model(tokens(25), TARGET)
    with pytest.raises(UserError, match=r"source has 26 tokens.* context is 24"):
        model.start(tokens(26))
    with pytest.raises(UserError, match=r"target has 25 tokens.* context is 24"):
        model(SOURCE, tokens(25))
    _, state = model.step(tokens(24), model.start(tokens(24)))
    with pytest.raises(UserError, match=r"target has 25 tokens.* context is 24"):
        model.step(tokens(1), state)


def test_vocabulary_must_be_given():
    with pytest.raises(UserError, match="vocab_size"):
        Transformer(TransformerConfig())


@each_config
def test_flops_equal_counter_and_closed_form(config):
    model = Transformer(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(SOURCE, TARGET, MASK).sum().backward()
    batch = Batch(TARGET, TARGET, SOURCE, MASK)
    assert model.flops(batch) == counter.get_total_flops()
    encoder = 9 * (4 * 16 * 16 + 2 * 16 * 40) + 2 * 9 * 9 * 16
    decoder = 12 * (4 * 16 * 16 + 2 * 16 * 40) + 2 * 12 * 12 * 16
    cross = (9 + 12) * 2 * 16 * 16 + 2 * 9 * 12 * 16
    assert model.flops(batch) == 3 * 6 * (2 * (encoder + decoder + cross) + 12 * 16 * 31)


@pytest.mark.parametrize(
    "d_model, d_ff, n_head, millions", [(512, 2048, 8, 65), (1024, 4096, 16, 213)]
)
def test_the_papers_models_have_its_parameters(d_model, d_ff, n_head, millions):
    """Table 3, base and big; the vocabulary is "about 37000" (section 5.1)."""
    config = TransformerConfig(
        vocab_size=37000, n_layer=6, n_head=n_head, d_model=d_model, d_ff=d_ff, norm="post"
    )
    with torch.device("meta"):
        count = sum(p.numel() for p in Transformer(config).parameters())
    branches = 3 * (4 * d_model**2 + 4 * d_model) + 2 * (2 * d_model * d_ff + d_ff + d_model)
    assert count == 37000 * d_model + 6 * (branches + 5 * 2 * d_model)
    assert count / 1e6 == pytest.approx(millions, rel=0.04)


@each_config
def test_heads_are_named_by_their_kind(config):
    model, taps = random_transformer(config), {}
    for name, module in model.named_modules():
        if name.endswith(".heads"):
            module.register_forward_hook(
                lambda m, inputs, output, name=name: taps.update({name: (m, inputs, output)})
            )
    model(SOURCE, TARGET, MASK)
    kinds = [
        "encoder.{}.self_attn.heads",
        "decoder.{}.self_attn.heads",
        "decoder.{}.cross_attn.heads",
    ]
    assert taps.keys() == {kind.format(index) for kind in kinds for index in range(2)}
    for name, (module, (q, k, v, mask), output) in taps.items():
        is_causal = module.causal and mask is None
        assert is_causal == (".self_attn" in name and name.startswith("decoder"))
        context, weights = scaled_dot_product_plain(q, k, v, mask, is_causal, module.scale)
        assert_equal(context, output)
        assert module.scale == 0.5
        if not is_causal:
            assert torch.equal(weights.sum(dim=(1, 2)) > 0, MASK)


def test_fresh_weights_have_the_documented_sizes():
    shape = {"vocab_size": 500, "n_layer": 2, "d_model": 256, "d_ff": 512, "n_head": 4}
    torch.manual_seed(0)
    pre, post = (
        Transformer(
            TransformerConfig(norm=norm, tie_embeddings=False, positions="learned", **shape)
        ).state_dict()
        for norm in ("pre", "post")
    )
    for weights in (pre, post):
        for name in ("embed_tokens", "embed_source", "embed_positions", "embed_source_positions"):
            assert weights[f"{name}.weight"].std().item() == pytest.approx(1 / 16, rel=0.03)
        assert weights["lm_head.weight"].std().item() == pytest.approx(0.001, rel=0.03)
        assert all((tensor == 0).all() for name, tensor in weights.items() if name.endswith("bias"))
        assert all(
            (tensor == 1).all() for name, tensor in weights.items() if name.endswith("norm.weight")
        )
    assert pre["decoder.1.mlp.up_proj.weight"].std().item() == pytest.approx(1 / 16, rel=0.03)
    assert (
        pre["decoder.1.cross_attn.o_proj.weight"].abs().max()
        == pre["encoder.0.mlp.down_proj.weight"].abs().max()
        == 0
    )
    assert post["encoder.0.mlp.up_proj.weight"].abs().max().item() == pytest.approx(
        (6 / 768) ** 0.5, rel=0.01
    )
    assert post["decoder.0.cross_attn.o_proj.weight"].std().item() == pytest.approx(
        (2 / 512) ** 0.5, rel=0.03
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_untied_fresh_weights_start_at_ln_vocab(norm):
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=1000, n_layer=1, d_model=64, norm=norm, tie_embeddings=False
    )
    source, target, labels = torch.randint(1000, (3, 16, 12))
    loss = F.cross_entropy(Transformer(config)(source, target).flatten(0, 1), labels.flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.01)


def test_fresh_pre_norm_blocks_are_the_identity():
    torch.manual_seed(0)
    model = Transformer(CONFIGS["pre"]).double()
    embedded = model.embed_tokens(TARGET) * 4 + sinusoids(torch.arange(12), 16, torch.float64)
    assert_equal(model.hidden(SOURCE, TARGET), F.layer_norm(embedded, (16,)))


@each_config
def test_dropout_and_gradients(config):
    """Dropout acts in training only, and every weight gets a gradient."""
    model = random_transformer(TransformerConfig(**{**vars(config), "dropout": 0.5}))
    assert torch.equal(
        model(SOURCE, TARGET, MASK), random_transformer(config)(SOURCE, TARGET, MASK)
    )
    model.train()
    assert not torch.equal(model(SOURCE, TARGET, MASK), model(SOURCE, TARGET, MASK))
    model(SOURCE, TARGET, MASK).square().sum().backward()
    for name, parameter in model.named_parameters():
        # A shift of all keys changes no softmax.
        assert "k_proj.bias" in name or parameter.grad.abs().sum() > 0, name


@each_config
def test_every_way_to_bfloat16_stays_near(config):
    model = random_transformer(config).float()
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    exact = model(SOURCE, TARGET, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(SOURCE, TARGET, MASK)
    model.compute_dtype = torch.bfloat16
    rounded, (stepped, _) = (
        model(SOURCE, TARGET, MASK),
        model.step(TARGET, model.start(SOURCE, MASK)),
    )
    model.compute_dtype = None
    low = model.bfloat16()(SOURCE, TARGET, MASK)
    for approximate in (mixed, rounded, stepped, low):
        assert approximate.dtype == torch.bfloat16
        assert (approximate.float() - exact).norm() / exact.norm() < 0.05
