import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interpret.random_models import CONFIGS, SOURCE, TARGET, random_model, reads_source
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import seq2chat
from seq2chat.config import GPTConfig, RewardConfig, UserError
from seq2chat.interpret.attribution import head_outputs
from seq2chat.interpret.sites import find_sites
from seq2chat.interpret.trace import trace
from seq2chat.models.folder import make_model, save_model

IDS = TARGET[0].tolist()


def texts(model):
    return (SOURCE[0].tolist(), IDS) if reads_source(model) else (IDS,)


def rows(model):
    return [torch.tensor([ids]) for ids in texts(model)]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_logits_are_those_of_the_model_to_the_last_bit(name):
    model = random_model(name)
    one = trace(model, *texts(model))
    with torch.no_grad():
        logits = model(*rows(model))[0]
    assert torch.equal(one.logits, logits)
    torch.testing.assert_close(one.logprobs(2), logits[2].log_softmax(-1))
    assert one.tokens == IDS and (one.source is None) == (not reads_source(model))
    for site, tensor in one.tensors.items():
        assert tensor.ndim == len(one.axes[site]), site


@pytest.mark.parametrize(("name", "kind"), [("gpt2", AutoModelForCausalLM), ("bert", AutoModel)])
def test_streams_and_maps_are_those_of_transformers(name, kind, tmp_path):
    model = random_model(name)
    save_model(model, tmp_path)
    theirs = kind.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager").eval()
    one = trace(model, IDS)
    with torch.no_grad():
        out = theirs(rows(model)[0], output_attentions=True, output_hidden_states=True)
    # The last hidden state of a GPT comes after its last norm.
    streams = ["layers.input", "layers.0", "layers.1", "layers.2" if name == "bert" else "norm"]
    for site, expected in zip(streams, out.hidden_states, strict=True):
        torch.testing.assert_close(one[site], expected[0], rtol=0, atol=1e-12)
    for layer, expected in enumerate(out.attentions):
        weights = one[f"layers.{layer}.self_attn.heads"]
        torch.testing.assert_close(weights, expected[0], rtol=0, atol=1e-12)


def test_the_distribution_of_a_bert_is_that_of_transformers(tmp_path):
    model = random_model("bert")
    save_model(model, tmp_path)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.no_grad():
        expected = theirs(rows(model)[0]).logits[0].log_softmax(-1)
    torch.testing.assert_close(trace(model, IDS).logprobs(3), expected[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "grouped", "bert", "pre", "post"])
def test_parts_of_a_layer_by_hand(name):
    """Queries, keys and values give the weights, these the context, and this the branch."""
    model = random_model(name)
    one = trace(model, *texts(model))
    names = [n for n in find_sites(model) if n.endswith(".heads")]
    assert len(names) == (9 if reads_source(model) else 3)
    for heads in names:
        q, k, v = (one[f"{heads}.{part}"].transpose(0, 1) for part in ("query", "key", "value"))
        shared = len(q) // len(k)
        k, v = (x.repeat_interleave(shared, dim=0) for x in (k, v))
        scores = q @ k.transpose(1, 2) / 2  # √d_head
        if not name.startswith("bert") and "cross" not in heads and "encoder" not in heads:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -1e300)
        weights = scores.softmax(-1)
        torch.testing.assert_close(one[heads], weights)
        context = (weights @ v).transpose(0, 1)
        torch.testing.assert_close(one[f"{heads}.context"], context)
        site = heads.removesuffix(".heads")
        o_proj = model.get_submodule(f"{site}.o_proj")
        bias = 0 if o_proj.bias is None else o_proj.bias
        torch.testing.assert_close(head_outputs(one, site).sum(1) + bias, one[site])


@pytest.mark.parametrize("name", ["gpt2", "grouped", "bert", "pre", "post"])
def test_the_stream_between_the_branches(name):
    model = random_model(name)
    one = trace(model, *texts(model))
    stack = "decoder" if reads_source(model) else "layers"
    before = one[f"{stack}.input"]
    after = before + one[f"{stack}.0.self_attn"]
    if name == "bert":
        after = model.layers[0].self_attn_norm(after)
    elif name == "post":
        after = model.decoder[0].self_attn_residual.norm(after)
    torch.testing.assert_close(one[f"{stack}.0.self_attn_residual"], after)
    torch.testing.assert_close(one[f"{stack}.0.write"], one[f"{stack}.0"] - before)
    mlp = model.get_submodule(f"{stack}.0.mlp")
    neurons = one[f"{stack}.0.mlp.activation"]
    torch.testing.assert_close(mlp.down_proj(neurons), one[f"{stack}.0.mlp"])
    assert ("skip" in str(list(one.tensors))) == (name not in ("bert", "post"))


@pytest.mark.parametrize("name", ["additive", "lstm", "fixed"])
def test_the_gates_of_a_recurrence_give_its_states(name):
    """The encoder's states are those of torch's layers, and gates give them by the formulas."""
    model = random_model(name)
    one = trace(model, *texts(model))
    is_lstm = model.config.cell == "lstm"
    directions = ("forward", "backward")[: model.encoder.n_direction]
    top = model.config.n_layer - 1
    source = torch.tensor(one.source)
    if model.config.reverse_source:
        source = source.flip(0)
    annotations, _, _ = model.encoder(model.embed_tokens(source)[None], torch.tensor([len(source)]))
    states = torch.cat([one[f"encoder.{d}.{top}"] for d in directions], -1)
    torch.testing.assert_close(states, annotations[0])
    torch.testing.assert_close(states, one["encoder"])
    for layer in range(top + 1):
        gates = one[f"decoder.cells.{layer}.gates"]
        states = one[f"decoder.cells.{layer}"]
        assert gates.shape == (6, 4 if is_lstm else 3, 8)
        if is_lstm:
            i, f, g, o = gates.unbind(1)
            cell = one[f"decoder.cells.{layer}.cell"]
            torch.testing.assert_close(cell[1:], (f * torch.roll(cell, 1, 0) + i * g)[1:])
            torch.testing.assert_close(states, o * cell.tanh())
        else:
            _, z, n = gates.unbind(1)
            before = torch.roll(states, 1, 0)
            torch.testing.assert_close(states[1:], ((1 - z) * n + z * before)[1:])
    if name == "fixed":
        with pytest.raises(UserError, match=r"no site decoder\.attention\. Did you mean decoder\."):
            one["decoder.attention"]
    else:
        assert one["decoder.attention"].shape == (1, 6, 7)


def test_padded_sources_have_their_own_gates():
    from interpret.random_models import SOURCE_MASK

    from seq2chat.interpret.tape import record

    model = random_model("additive")
    with record(model, ["encoder.*"]) as tape:
        model.hidden(SOURCE, TARGET, SOURCE_MASK)
    alone = trace(model, SOURCE[1, :3].tolist(), TARGET[1].tolist())
    for site, tensor in tape.tensors.items():
        torch.testing.assert_close(tensor[1, :3], alone[site], msg=site)
        assert (tensor[1, 3:] == 0).all(), site


def test_layers_are_stacked_under_one_name():
    model = random_model("grouped")
    one = trace(model, IDS)
    groups = {group.name: group for group in one.groups}
    assert groups["layers.*.self_attn.heads"].shape == (3, 4, 6, 6)
    assert groups["layers.*.self_attn.heads"].axes == ("layer", "head", "query", "key")
    assert groups["layers.*.self_attn.heads.key"].shape == (3, 6, 2, 4)
    assert groups["layers.input"].shape == (6, 16)
    stack, axes = one.stack("layers.*.self_attn.heads", layer=1, head=2, position=-1)
    assert axes == ("key",)
    assert torch.equal(stack, one["layers.1.self_attn.heads"][2, -1])
    neurons, axes = one.stack("layers.*.mlp.activation", position=3)
    assert axes == ("layer", "neuron")
    assert torch.equal(neurons[2], one["layers.2.mlp.activation"][3])
    for options, message in (
        ({"site": "layers.*.mpl"}, r"no site layers\.\*\.mpl\. Did you mean layers\.\*\.mlp\?"),
        ({"site": "layers.*.mlp", "layer": 3}, "has no layer 3; they are 0 to 2"),
        ({"site": "layers.*.mlp", "head": 0}, r"has no head; its axes are layer, position, dim"),
        ({"site": "layers.1.mlp", "layer": 1}, "is one layer; leave out the layer"),
        ({"site": "layers.*.self_attn.heads", "head": 4}, "has no head 4; they are 0 to 3"),
        ({"site": "norm", "position": 6}, "has no position 6; they are 0 to 5"),
    ):
        with pytest.raises(UserError, match=message):
            one.stack(**options)


def test_only_some_sites_are_recorded():
    one = trace(random_model("gpt2"), IDS, names=["norm", "layers.*.mlp"])
    assert list(one.tensors) == [*(f"layers.{i}.mlp" for i in range(3)), "norm"]
    assert one.nbytes == 4 * 6 * 16 * 8
    assert one.logits.shape == (6, 31)


def test_texts_that_cannot_be_traced():
    model = random_model("gpt2")
    for ids, message in (
        ([], "A gpt reads one text, with at least one token each"),
        ([1] * 25, "25 tokens do not fit the model's context of 24"),
    ):
        with pytest.raises(UserError, match=message):
            trace(model, ids)
    with pytest.raises(UserError, match="A seq2seq reads a source and a target"):
        trace(random_model("additive"), IDS)
    reward = make_model(RewardConfig(**vars(GPTConfig("gpt2", 31, 24, 1, n_head=2, d_model=8))))
    with pytest.raises(UserError, match="A reward model predicts no tokens"):
        trace(reward, IDS)


def test_the_page_on_looking_inside_runs_as_written(monkeypatch):
    page = Path(seq2chat.__file__).parents[2] / "docs/inside.md"
    model = random_model("gpt2")
    tokenizer = SimpleNamespace(eos_id=2, encode=lambda text: [11, 5, 8])
    monkeypatch.setattr(seq2chat, "load", lambda run: (model, tokenizer), raising=False)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert sum(part.logit for part in names["parts"]) == pytest.approx(names["one"].logits[-1, 7])


def test_attention_maps_are_held_once():
    one = trace(random_model("gpt2"), IDS)
    for attention in one.attention:
        assert attention.weights.data_ptr() == one[attention.path].data_ptr()
