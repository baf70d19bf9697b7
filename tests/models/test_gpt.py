import math
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seq2chat.config import GPT3, GPTConfig, UserError
from seq2chat.models.folder import n_parameters
from seq2chat.models.gpt import GPT, flops_per_token, is_local
from seq2chat.nn.attention import scaled_dot_product_plain

SHAPE = {"vocab_size": 31, "context": 24, "n_layer": 4, "n_head": 4, "d_model": 16}
CONFIGS = {
    "gpt2": GPTConfig("gpt2", **SHAPE),
    "banded": GPTConfig("gpt2", window=5, **SHAPE),
    "modern": GPTConfig("modern", n_kv_head=2, d_head=6, **SHAPE),
    "tied": GPTConfig("modern", tie_embeddings=True, **SHAPE),
    "llama": GPTConfig(
        "llama", n_kv_head=2, rope_scaling="llama3", rope_factor=2.0, rope_context=8, **SHAPE
    ),
    "mistral": GPTConfig("mistral", window=5, **SHAPE),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def random_gpt(config):
    """A float64 GPT whose every weight matters: fresh ones have branches of zero."""
    torch.manual_seed(0)
    model = GPT(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def tokens(batch=3, seq=20):
    return torch.randint(31, (batch, seq), generator=torch.Generator().manual_seed(1))


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", GPT3)
def test_gpt3_sizes_have_the_papers_parameters(name):
    c = GPT3[name]
    d = c.d_model
    count = c.n_layer * (12 * d * d + 13 * d) + 50257 * d + 2048 * d + 2 * d
    published = {
        "small": 125,
        "medium": 356,
        "large": 760,
        "xl": 1316,
        "2.7b": 2651,
        "6.7b": 6658,
        "13b": 12853,
    }
    assert n_parameters(c) == count
    assert n_parameters(c) / 1e6 == pytest.approx(
        published.get(name.removeprefix("gpt3-"), 174_604), abs=1
    )


def test_gpt3_has_its_175_billion_parameters():
    assert n_parameters(GPT3["gpt3-175b"]) == 174_604_259_328


def test_modern_parameters_in_closed_form():
    c = CONFIGS["modern"]
    block = 16 * 24 * 2 + 16 * 12 * 2 + 2 * 6 + 3 * 16 * c.d_ff + 2 * 16
    assert n_parameters(c) == 4 * block + 2 * 31 * 16 + 16
    assert n_parameters(CONFIGS["tied"]) == n_parameters(GPTConfig("modern", **SHAPE)) - 31 * 16


def test_vocabulary_must_be_given():
    with pytest.raises(UserError, match="vocab_size"):
        GPT(GPTConfig())


@each_config
def test_logits_depend_on_the_past_only(config):
    model, x = random_gpt(config), tokens()
    changed = x.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 31
    before, after = model(x), model(changed)
    assert_equal(before[:, :11], after[:, :11])
    assert ((before - after)[:, 11:].abs().amax(dim=(0, 2)) > 1e-6).all()


def test_banded_layer_sees_its_window_only():
    model, x = random_gpt(CONFIGS["banded"]), tokens()
    assert [is_local(model.config, index) for index in range(4)] == [False, True, False, True]
    seen = {}
    model.layers[3].self_attn.heads.register_forward_hook(
        lambda _, inputs, __: seen.update(mask=inputs[3])
    )
    model(x)
    assert seen["mask"].sum(dim=-1).flatten().tolist() == [min(i + 1, 5) for i in range(20)]


@each_config
def test_packed_documents_have_their_own_logits(config):
    model, x = random_gpt(config), tokens(batch=2)
    segments = torch.tensor([[0] * 7 + [1] * 4 + [2] * 9, [5] * 1 + [6] * 19])
    packed = model(x, segments)
    for row, start, end in [(0, 0, 7), (0, 7, 11), (0, 11, 20), (1, 0, 1), (1, 1, 20)]:
        assert_equal(packed[row, start:end], model(x[row : row + 1, start:end])[0])
    assert (packed - model(x)).abs().max() > 1e-3, "without segments, documents do see each other"


@each_config
def test_documents_do_not_see_each_other(config):
    model, x = random_gpt(config), tokens(batch=1)
    segments = torch.tensor([[0] * 8 + [1] * 12])
    edited = x.clone()
    edited[:, :8] = (edited[:, :8] + 3) % 31
    assert torch.equal(model(x, segments)[:, 8:], model(edited, segments)[:, 8:])


@each_config
@pytest.mark.parametrize(
    "portions", [[20], [1] * 20, [7, 1, 5, 1, 6]], ids=["whole", "single", "portions"]
)
def test_steps_give_the_logits_of_the_whole(config, portions):
    model, x = random_gpt(config), tokens()
    state, logits = model.start(), []
    for portion in x.split(portions, dim=1):
        step_logits, state = model.step(portion, state)
        logits.append(step_logits)
    assert_equal(torch.cat(logits, dim=1), model(x))


@each_config
def test_padding_and_reordering_change_no_logits(config):
    model, x = random_gpt(config), tokens()
    padding = torch.tensor([4, 0, 9])
    state = model.start(padding)
    first, state = model.step(x[:, :12], state)
    rows = torch.tensor([2, 0, 2])
    state.reorder(rows)
    second, state = model.step(x[rows, 12:14], state)
    third, _ = model.step(x[rows, 14:15], state)
    for row, source in enumerate(rows.tolist()):
        start = padding[source]
        alone = model(x[source : source + 1, start:15])[0]
        assert_equal(torch.cat([first[source, start:], second[row], third[row]]), alone)


@each_config
def test_rows_may_use_the_context_and_no_more(config):
    model = random_gpt(config)
    with pytest.raises(UserError, match="25 tokens do not fit the model's context of 24"):
        model(tokens(seq=25))
    state = model.start(torch.tensor([2, 3, 4]))
    _, state = model.step(tokens(seq=26), state)
    with pytest.raises(UserError, match="context of 24"):
        model.step(tokens(seq=1), state)
    state.reorder(torch.tensor([1, 2]))
    logits, _ = model.step(tokens(batch=2, seq=1), state)
    assert logits.isfinite().all()


@each_config
def test_heads_show_q_and_k_as_they_are_compared(config):
    model, taps = random_gpt(config), []
    for layer in model.layers:
        layer.self_attn.heads.register_forward_hook(
            lambda module, inputs, output: taps.append((module, inputs, output))
        )
    model(tokens())
    assert len(taps) == 4
    for module, (q, k, v, mask), output in taps:
        context, weights = scaled_dot_product_plain(
            q, k, v, mask, is_causal=mask is None, scale=module.scale
        )
        assert_equal(context, output)
        assert_equal(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))


@each_config
def test_flops_are_those_a_counter_sees(config):
    model, x = GPT(config), tokens(batch=2, seq=24)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    local = sum(is_local(config, index) for index in range(4))
    n_key = config.window * local + config.context * (4 - local)
    # The kernel does not skip the band.
    hidden = 12 * config.n_head * config.d_head * (4 * config.context - n_key)
    assert counter.get_total_flops() == 2 * 24 * (flops_per_token(config) + hidden)


@pytest.mark.parametrize("name", ["modern", "tied", "gpt2", "banded"])
def test_fresh_weights_start_near_ln_vocab(name):
    torch.manual_seed(0)
    model, x = GPT(CONFIGS[name]), tokens(batch=32, seq=24)
    loss = torch.nn.functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(31), abs=0.05)


def test_fresh_weights_have_the_documented_sizes():
    shape = {"vocab_size": 500, "context": 32, "n_layer": 8, "n_head": 4, "d_model": 256}
    torch.manual_seed(0)
    gpt2, banded, modern = (
        GPT(GPTConfig(layout, window=window, **shape)).state_dict()
        for layout, window in [("gpt2", 0), ("gpt2", 8), ("modern", 0)]
    )
    assert gpt2["layers.3.self_attn.q_proj.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    assert gpt2["layers.3.mlp.down_proj.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert banded["layers.3.self_attn.q_proj.weight"].std().item() == pytest.approx(
        0.02 / 8, rel=0.03
    )
    assert modern["layers.3.mlp.up_proj.weight"].std().item() == pytest.approx(1 / 16, rel=0.03)
    assert modern["layers.3.self_attn.o_proj.weight"].abs().max() == 0
    assert all((value == 0).all() for name, value in gpt2.items() if name.endswith("bias"))
    assert all((value == 1).all() for name, value in modern.items() if "norm" in name)


@each_config
def test_dropout_and_gradients(config):
    """Dropout acts in training only, and every weight gets a gradient."""
    model = random_gpt(GPTConfig(**{**vars(config), "dropout": 0.5}))
    plain, x = random_gpt(config), tokens()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    model(x).square().sum().backward()
    assert all(
        parameter.grad.abs().sum() > 0
        for name, parameter in model.named_parameters()
        if "k_proj.bias" not in name
    )


@each_config
def test_every_way_to_bfloat16_stays_near(config):
    model, x = random_gpt(config).float(), tokens()
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    model.compute_dtype = torch.bfloat16
    rounded = model(x)
    model.compute_dtype = None
    low = model.bfloat16()(x)
    for approximate in (mixed, rounded, low):
        assert approximate.dtype == torch.bfloat16
        assert (approximate.float() - exact).norm() / exact.norm() < 0.05


COMPILED = """
import torch
from seq2chat.config import GPTConfig
from seq2chat.models.gpt import GPT
for options in ({"layout": "gpt2", "window": 5, "dropout": 0.1}, {"n_kv_head": 2}):
    torch._dynamo.reset()
    model = GPT(GPTConfig(vocab_size=31, context=24, n_layer=2, n_head=4, d_model=16, **options))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randint(31, (2, 24))
    segments = torch.zeros_like(x)
    compiled(x).sum().backward()
    compiled(x, segments)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            x = torch.randint(31, (2, 24))
            compiled(x).sum().backward()
            compiled(x, x % 3)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x))
"""


def test_gradient_checkpointing_changes_no_gradient():
    model = random_gpt(CONFIGS["modern"])
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recomputes in (False, True):
        model.gradient_checkpointing = recomputes
        model.zero_grad(set_to_none=True)
        mlp = model.layers[0].mlp
        with patch.object(mlp, "forward", wraps=mlp.forward) as forward:
            model(tokens).square().sum().backward()
        assert forward.call_count == 1 + recomputes
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_training_compiles_to_one_graph_once():
    """In its own process, where no shape checks stand between the compiler and the model."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


@each_config
def test_branches_equal_separate_sequences(config):
    model = random_gpt(config)
    rng = torch.Generator().manual_seed(3)
    trunk, *ways = (torch.randint(31, (n,), generator=rng) for n in (7, 3, 1, 9))
    row = torch.cat([trunk, *ways])[None]
    branches = torch.cat([torch.full((len(part),), k) for k, part in enumerate((trunk, *ways))])[
        None
    ]
    together, at = model.branching(row, branches)[0], len(trunk)
    assert_equal(together[:at], model.hidden(trunk[None])[0])
    for way in ways:
        alone = model.hidden(torch.cat([trunk, way])[None])[0, len(trunk) :]
        assert_equal(together[at : at + len(way)], alone)
        at += len(way)
