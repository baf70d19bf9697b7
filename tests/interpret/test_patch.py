"""Interventions, and their effect on the model's prediction."""

import re

import pytest
import torch
from interpret.random_models import random_model, reads_source
from interpret.test_trace import IDS, rows, texts

from seq2chat.config import UserError
from seq2chat.interpret.effects import delta_logprobs, effect_map
from seq2chat.interpret.patch import ablate, editable, intervene, mean_ablate, patch, scale
from seq2chat.interpret.sites import find_sites
from seq2chat.interpret.trace import trace

OTHER = [2, 7, 7, 1, 30, 12]


def other_trace(model):
    return trace(model, *((texts(model)[0], OTHER) if reads_source(model) else (OTHER,)))


def is_clean(model):
    return all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["gpt2", "bert", "pre", "additive", "lstm", "fixed"])
def test_every_editable_site(name):
    """Patching from the same text changes nothing, and zeros are zeros where they are read."""
    model = random_model(name)
    one = trace(model, *texts(model))
    other = other_trace(model)
    names = editable(find_sites(model))
    assert len(names) >= 4, names
    # Blocks are alike.
    names = [site for site in names if not re.search("[12]", site)]
    for site in names:
        same = trace(model, *texts(model), interventions=[patch(site, one)])
        torch.testing.assert_close(same.logits, one.logits, msg=site)
        off = trace(model, *texts(model), interventions=[ablate(site)])
        if (name, site) != ("fixed", "encoder"):  # whose decoder reads the summary only
            assert not torch.allclose(off.logits, one.logits, atol=1e-6), site
        if not site.endswith(".skip"):
            assert (off[site].abs() < 1e-12).all(), site
        if site.startswith("encoder"):  # the same source
            continue
        patched = trace(model, *texts(model), interventions=[patch(site, other)])
        if not site.endswith(".skip"):
            torch.testing.assert_close(patched[site], other[site], msg=site)
    assert is_clean(model)


def test_the_whole_stream_carries_the_whole_text():
    model = random_model("gpt2")
    other = other_trace(model)
    for site in ("layers.0", "layers.2", "layers.input"):
        patched = trace(model, IDS, interventions=[patch(site, other)])
        torch.testing.assert_close(patched.logits, other.logits)
    patched = trace(model, IDS, interventions=[patch("layers.2", other, at=[-1])])
    torch.testing.assert_close(patched.logits[-1], other.logits[-1])
    torch.testing.assert_close(patched.logits[:-1], trace(model, IDS).logits[:-1])


def test_a_head_is_switched_off_by_zero_weights():
    """A model whose output matrix does not read the head has the same logits."""
    model = random_model("gpt2")
    one = trace(model, IDS, interventions=[ablate("layers.1.self_attn.heads.context", head=2)])
    with torch.no_grad():
        model.layers[1].self_attn.o_proj.weight[:, 8:12] = 0.0
        torch.testing.assert_close(one.logits, model(rows(model)[0])[0])


def test_scaling_is_scaling_of_the_weights():
    model = random_model("grouped")
    one = trace(model, IDS, interventions=[scale("layers.0.mlp", 0.25)])
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight *= 0.25
        torch.testing.assert_close(one.logits, model(rows(model)[0])[0])


@pytest.mark.parametrize("name", ["gpt2", "pre"])
def test_a_block_and_its_residual_connection_are_switched_off(name):
    model = random_model(name)
    stack = "decoder" if reads_source(model) else "layers"
    off = trace(model, *texts(model), interventions=[ablate(f"{stack}.1.write")])
    torch.testing.assert_close(off[f"{stack}.1"], off[f"{stack}.0"])
    plain = trace(model, *texts(model))
    alone = trace(model, *texts(model), interventions=[ablate(f"{stack}.1.skip")])
    torch.testing.assert_close(alone[f"{stack}.1"], plain[f"{stack}.1.write"])


@pytest.mark.parametrize("name", ["gpt2", "grouped", "bert", "pre", "post"])
def test_without_positions_the_order_does_not_matter(name):
    model = random_model(name)
    swapped = [IDS[1], IDS[0], *IDS[2:]]

    def last(ids, *interventions):
        all_texts = (*texts(model)[:-1], ids)
        return trace(model, *all_texts, interventions=interventions).logits[-1]

    assert not torch.allclose(last(IDS), last(swapped), atol=1e-5)
    # In a causal model of several layers, the first token sees only itself.
    with torch.no_grad():
        for path, module in model.named_modules():
            if path.endswith("o_proj") and ".0." not in path:
                module.weight.zero_()
    off = ablate("positions")
    torch.testing.assert_close(last(IDS, off), last(swapped, off))
    torch.testing.assert_close(last(IDS, scale("positions", 1.0)), last(IDS))
    if name == "grouped":
        assert type(model.frequencies).__name__ == "Frequencies"


def test_steps_of_a_decoder_are_changed_one_by_one():
    model = random_model("additive")
    one = trace(model, *texts(model))
    change = ablate("decoder.attention.context", at=[3])
    with intervene(model, change):
        for _ in range(2):  # each pass counts from 0
            changed = trace(model, *texts(model))
            torch.testing.assert_close(changed.logits[:3], one.logits[:3])
            assert not torch.allclose(changed.logits[3:], one.logits[3:])
            zero = (changed["decoder.attention.context"] == 0).all(-1)
            assert zero.tolist() == [False] * 3 + [True] + [False] * 2


def test_the_mean_over_positions():
    model = random_model("gpt2")
    one = trace(model, IDS, interventions=[mean_ablate("layers.0.mlp")])
    plain = trace(model, IDS)["layers.0.mlp"]
    torch.testing.assert_close(one["layers.0.mlp"], plain.mean(0).expand(6, -1))


def test_the_effect_is_the_change_of_log_probability():
    model = random_model("gpt2")
    before = trace(model, IDS)
    after = trace(model, IDS, interventions=[ablate("layers.0.mlp")])
    with torch.no_grad():
        plain = model(rows(model)[0])[0, 2].log_softmax(-1)
        with intervene(model, ablate("layers.0.mlp")):
            changed = model(rows(model)[0])[0, 2].log_softmax(-1)
    expected = (changed - plain)[[4, 9]]
    torch.testing.assert_close(delta_logprobs(before, after, [4, 9], position=2), expected)


@pytest.mark.parametrize("name", ["gpt2", "grouped", "bert", "pre"])
@pytest.mark.parametrize("is_patched", [False, True])
def test_the_effect_map_is_one_pass_per_head(name, is_patched):
    model = random_model(name)
    source = other_trace(model) if is_patched else None
    found = effect_map(model, *texts(model), target=9, source=source, position=3)
    assert found.shape == (3, 4)
    before = trace(model, *texts(model))
    branch = "decoder.{}.cross_attn" if name == "pre" else "layers.{}.self_attn"
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        site = f"{branch.format(layer)}.heads.context"
        one = ablate(site, head) if source is None else patch(site, source, head)
        after = trace(model, *texts(model), interventions=[one])
        torch.testing.assert_close(found[layer, head], delta_logprobs(before, after, [9], 3)[0])
    assert is_clean(model)


def test_the_effect_of_positions():
    """Causal tracing: the stream of each layer at each position, from another text."""
    model = random_model("gpt2")
    other = trace(model, [*IDS[:2], 30, *IDS[3:]])
    sites = [f"layers.{i}" for i in range(3)]
    found = effect_map(model, IDS, target=9, source=other, sites=sites)
    assert found.shape == (3, 6)
    assert (found[:, :2].abs() < 1e-12).all()  # the texts are equal so far
    total = delta_logprobs(trace(model, IDS), other, [9])[0]
    torch.testing.assert_close(found[2, -1], total)
    rnn = random_model("fixed")
    (effects,) = effect_map(rnn, *texts(rnn), target=9, sites=["encoder"])
    assert effects.shape == (7,) and (effects.abs() < 1e-12).all()  # it reads the summary only


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ablate("layers.1.mpl"), r"no site layers\.1\.mpl\. Did you mean layers\.1\.mlp\?"),
        (ablate("layers.1.self_attn.heads"), r"can only be read; change layers\.1\.self_attn\.h.*"),
        (ablate("layers.1.self_attn", head=0), r"has no heads; .* or write layers\.1\.self_attn\."),
        (ablate("layers.1.self_attn.heads.context", head=4), "no head 4; they are 0 to 3"),
        (ablate("layers.1.mlp", at=[6]), r"no position 6 at layers\.1\.mlp; they are 0 to 5"),
        (ablate("positions", at=[1]), "Positions are changed for all tokens"),
    ],
)
def test_interventions_that_are_not_possible(change, message):
    model = random_model("gpt2")
    with pytest.raises(UserError, match=message):
        trace(model, IDS, interventions=[change])
    assert is_clean(model)


def test_texts_of_other_lengths():
    model = random_model("gpt2")
    longer = trace(model, [*OTHER, 4])
    with pytest.raises(UserError, match="The texts have 6 and 7 tokens"):
        trace(model, IDS, interventions=[patch("layers.0", longer)])
    one = trace(model, IDS, interventions=[patch("layers.0", longer, at=[-1])])
    torch.testing.assert_close(one["layers.0"][-1], longer["layers.0"][-1])
    with pytest.raises(UserError, match="The texts differ in their number of tokens"):
        effect_map(model, IDS, target=9, source=longer)
    with pytest.raises(UserError, match="no site layers"):
        patch("layers.5", longer)
    with pytest.raises(UserError, match="A seq2seq has no encoding of positions"):
        rnn = random_model("lstm")
        trace(rnn, *texts(rnn), interventions=[ablate("positions")])
    with pytest.raises(UserError, match="A seq2seq has no heads"):
        effect_map(rnn, *texts(rnn), target=9)


def test_positions_beyond_the_steps_of_an_rnn_are_refused():
    model = random_model("additive")
    source, target = texts(model)
    site = "decoder.attention.context"
    with pytest.raises(UserError, match=f"no position {len(target)} at {site}"):
        trace(model, source, target, interventions=[ablate(site, at=[len(target)])])
    longer = trace(model, source, [*target, target[-1]])
    with pytest.raises(UserError, match="The texts differ in their number of tokens"):
        trace(model, source, target, interventions=[patch(site, longer)])
    trace(model, source, target, interventions=[patch(site, longer, at=[0])])
    assert is_clean(model)
