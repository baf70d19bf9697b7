import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.gpt_neo import modeling_gpt_neo
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from seq2chat.config import GPTConfig, UserError
from seq2chat.models import folder as folder_module
from seq2chat.models.folder import load_config, load_model, save_model
from seq2chat.models.gpt import GPT

SHAPE = {"vocab_size": 37, "context": 24, "n_layer": 3, "n_head": 4, "d_model": 16}
CONFIGS = {
    "gpt2": GPTConfig("gpt2", dropout=0.25, d_ff=40, **SHAPE),
    "banded": GPTConfig("gpt2", window=5, norm_eps=1e-3, dropout=0.25, **SHAPE),
    "modern": GPTConfig("modern", dropout=0.25, rope_theta=500.0, **SHAPE),
    "grouped": GPTConfig("modern", n_kv_head=2, d_head=6, d_ff=20, norm_eps=1e-3, **SHAPE),
    "tied": GPTConfig("modern", n_kv_head=1, tie_embeddings=True, **SHAPE),
    "llama": GPTConfig("llama", n_kv_head=2, tie_embeddings=True, **SHAPE),
    "llama3": GPTConfig(
        "llama",
        n_kv_head=2,
        d_head=8,
        rope_theta=10.0,
        rope_scaling="llama3",
        rope_factor=4.0,
        rope_context=8,
        **SHAPE,
    ),
    "biases": GPTConfig(
        "llama", attention_bias=True, mlp_bias=True, rope_scaling="linear", rope_factor=2.5, **SHAPE
    ),
    "qwen2": GPTConfig("qwen2", n_kv_head=2, tie_embeddings=True, **SHAPE),
    "mistral": GPTConfig("mistral", n_kv_head=2, d_head=6, window=5, **SHAPE),
    "mistral, dense": GPTConfig("mistral", n_kv_head=2, **SHAPE),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
THEIRS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=37, n_positions=24, n_layer=3, n_head=4, n_embd=16)
    ),
    "banded": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=37,
            max_position_embeddings=24,
            num_layers=4,
            num_heads=4,
            hidden_size=16,
            window_size=5,
            attention_types=[[["global", "local"], 2]],
            layer_norm_epsilon=1e-3,
        )
    ),
    "modern": lambda: Qwen3ForCausalLM(qwen3(num_key_value_heads=4, rms_norm_eps=1e-3)),
    "grouped": lambda: Qwen3ForCausalLM(
        qwen3(num_key_value_heads=2, rope_parameters=rope(theta=700.0))
    ),
    "tied": lambda: Qwen3ForCausalLM(qwen3(num_key_value_heads=1, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPES, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "llama3": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPES,
            head_dim=8,
            rope_parameters=rope(
                theta=10.0,
                kind="llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8,
            ),
        )
    ),
    "biases": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPES,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=rope(kind="linear", factor=2.5),
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPES, num_key_value_heads=2)),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**SHAPES, num_key_value_heads=2, head_dim=6, sliding_window=5)
    ),
    "mistral, dense": lambda: MistralForCausalLM(
        MistralConfig(**SHAPES, num_key_value_heads=4, sliding_window=None)
    ),
}
SHAPES = {
    "vocab_size": 37,
    "max_position_embeddings": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 16,
    "intermediate_size": 20,
}


def rope(theta=10000.0, kind="default", **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


def qwen3(**options):
    return Qwen3Config(**SHAPES, head_dim=6, **options)


@pytest.fixture(autouse=True)
def in_double_precision(monkeypatch):
    """Let the reference compute in the precision of its weights where it would round to float32."""

    class Torch64:
        float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    def rms_norm(self, x):
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    monkeypatch.setattr(modeling_gpt_neo, "torch", Torch64())
    for norm in (
        modeling_qwen3.Qwen3RMSNorm,
        modeling_qwen2.Qwen2RMSNorm,
        modeling_llama.LlamaRMSNorm,
        modeling_mistral.MistralRMSNorm,
    ):
        monkeypatch.setattr(norm, "forward", rms_norm)


def randomise(model):
    """Every weight matters; a fresh model has biases and branches of zero, and weights of one."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


def assert_same_logits(ours, theirs):
    tokens = torch.randint(37, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.dtype == torch.float64
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-9)


@each_config
def test_transformers_opens_our_folders(config, tmp_path):
    """With equal logits."""
    model = randomise(GPT(config))
    save_model(model, tmp_path, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same_logits(model, theirs)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (
        1,
        2,
        3,
    )


@pytest.mark.parametrize("make", THEIRS.values(), ids=THEIRS.keys())
@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"], ids=["single", "sharded"])
def test_we_open_folders_of_transformers(make, max_shard_size, tmp_path):
    """With equal logits."""
    theirs = randomise(make())
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "1GB")
    assert_same_logits(load_model(tmp_path, dtype=torch.float64), theirs)


@pytest.mark.parametrize("make", THEIRS.values(), ids=THEIRS.keys())
def test_gradients_and_cached_decoding_are_those_of_transformers(make, tmp_path):
    theirs = randomise(make())
    theirs.save_pretrained(tmp_path / "weights")
    ours = load_model(tmp_path / "weights", dtype=torch.float64)
    tokens = torch.randint(37, (2, 20), generator=torch.Generator().manual_seed(2))
    weights = torch.randn(2, 20, 37, generator=torch.Generator().manual_seed(3)).double()
    expected = theirs(tokens).logits
    (expected * weights).sum().backward()
    (ours(tokens) * weights).sum().backward()
    state = ours.start()
    with torch.no_grad():
        parts = [ours.step(part, state)[0] for part in tokens.split([7, 1, 1, 11], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected.detach(), rtol=0, atol=1e-9)

    # The gradients as weights have the same names in both files.
    for model in (ours, theirs):
        for parameter in model.parameters():
            parameter.data = parameter.grad
    save_model(ours, tmp_path / "ours", dtype=torch.float64)
    theirs.save_pretrained(tmp_path / "theirs")
    mine, wanted = (load_file(tmp_path / n / "model.safetensors") for n in ("ours", "theirs"))
    assert mine.keys() == wanted.keys()
    assert all(gradient.abs().max() > 0.01 for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-9, atol=1e-9)


@each_config
def test_the_round_trip_keeps_config_and_weights(config, tmp_path):
    model = randomise(GPT(config))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, dtype=torch.float64)
    assert loaded.config == config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(loaded.state_dict()[name], tensor)
        for name, tensor in model.state_dict().items()
    )
    assert all(p.requires_grad and p.is_contiguous() for p in loaded.parameters())


@each_config
def test_bfloat16_folders_hold_the_rounded_weights(config, tmp_path):
    model = randomise(GPT(config))
    save_model(model, tmp_path, dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    for name, tensor in load_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_openais_old_names_and_buffers_are_read(tmp_path):
    model = randomise(GPT(CONFIGS["gpt2"]))
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "lm_head.weight": old["wte.weight"].clone()}
    save_file(old, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path, torch.float64).head_weight, model.head_weight)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for name, config in CONFIGS.items():
        save_model(GPT(config), folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "modern",
            {"model_type": "smollm3"},
            r"model_type 'smollm3' \(layers without rotary positions\) is not supported; gpt2, "
            "gpt_neo, qwen3, llama, qwen2, mistral, bert",
        ),
        ("modern", {"model_type": "t5"}, r"model_type 't5' is not supported; gpt2"),
        (
            "modern",
            {"rope_parameters": rope(kind="yarn", factor=2.0)},
            r"rope scaling of type 'yarn'",
        ),
        (
            "modern",
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}},
            r"rope scaling of type 'dynamic'",
        ),
        ("llama3", {"rope_parameters": {"rope_type": "llama3"}}, r"lacks the key 'factor'"),
        (
            "llama",
            {"rope_parameters": rope(kind="linear", factor=2.0, partial_rotary_factor=0.5)},
            r"partial_rotary_factor 0.5",
        ),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, r"some layers"),
        (
            "modern",
            {"use_sliding_window": True},
            r"use_sliding_window True is not supported; only False",
        ),
        ("modern", {"layer_types": ["full_attention", "sliding_attention"]}, r"sliding"),
        ("modern", {"attention_bias": True}, r"attention_bias True"),
        ("modern", {"hidden_act": "relu"}, r"hidden_act 'relu'"),
        ("gpt2", {"activation_function": "relu"}, r"activation_function 'relu'"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            r"scale_attn_by_inverse_layer_idx True",
        ),
        ("gpt2", {"tie_word_embeddings": False}, r"tie_word_embeddings False"),
        ("banded", {"attention_types": [[["global"], 3]]}, r"attention_types must alternate"),
        ("gpt2", {"n_head": 3}, r"config.json: model.d_model 16 is not a multiple"),
        (
            "gpt2",
            {"n_embd": 32},
            r"tensor transformer.* has the wrong shape .*\(96,\) where the file has \(48,\)",
        ),
        (
            "modern",
            {"vocab_size": 38},
            r"tensor (lm_head|model.embed_tokens).weight .*\(38, 16\).*\(37, 16\)",
        ),
        (
            "modern",
            {"num_hidden_layers": 4},
            r"11 tensors .* missing, the first is \['model.layers.3",
        ),
        ("modern", {"num_hidden_layers": 2}, r"tensor model.layers.2.* is not part of"),
        ("modern", {"tie_word_embeddings": True}, None),
    ],
)
def test_unsupported_configs_are_refused_by_name(name, change, message, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved / name, folder)
    fields = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(fields))
    if message is None:
        assert load_model(folder).lm_head is None
        return
    with pytest.raises(UserError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json does not exist; give a folder"),
        ("config.json", b"{", "config.json is not a JSON object"),
        ("config.json", b"[1]", "config.json is not a JSON object"),
        ("config.json", b"\xff\xfe", "config.json is not a JSON object"),
        ("config.json", b'{"model_type": ["qwen3"]}', "config.json has a value of the wrong type"),
        ("config.json", b'{"model_type": "qwen3"}', "config.json lacks the key 'vocab_size'"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("model.safetensors", b"", "model.safetensors is damaged"),
        ("model.safetensors", b"not tensors at all", "model.safetensors is damaged"),
    ],
)
def test_missing_and_damaged_files_are_named(file, content, message, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved / "modern", folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_truncated_and_missing_files_are_named(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved / "modern", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        load_model(folder)
    weights.unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(
        UserError, match=r"model-00001-of-00002.safetensors is named by .* but does not exist"
    ):
        load_model(folder)
    index.write_text("{}")
    with pytest.raises(UserError, match=r"index.json is damaged"):
        load_model(folder)


def test_weights_that_do_not_fit_the_memory_are_refused_before_they_are_read(saved, monkeypatch):
    monkeypatch.setattr(folder_module, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"modern need 0.0 GB, and 0.0 GB of memory are free"):
        load_model(saved / "modern")
    monkeypatch.setattr(folder_module, "free_memory", lambda: None)
    load_model(saved / "modern")


def test_loading_holds_the_weights_once(tmp_path):
    """Not the file and the model at the same time: the peak of a fresh process is measured."""
    config = GPTConfig(
        "llama", vocab_size=20_000, context=64, n_layer=12, n_head=8, d_model=768, d_ff=3072
    )
    save_model(GPT(config), tmp_path)
    script = (
        "import resource, sys; from seq2chat.models.folder import load_model, n_parameters; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024; "
        "before = peak(); model = load_model(sys.argv[1]); "
        "print((peak() - before) / (4 * n_parameters(model.config)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3, done.stdout


def test_transposed_weights_are_refused(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved / "gpt2", folder)
    tensors = load_file(folder / "model.safetensors")
    name = "transformer.h.1.attn.c_attn.weight"
    save_file(tensors | {name: tensors[name].T.contiguous()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"tensor {name} has the wrong shape"):
        load_model(folder)


def test_all_published_qwen3_configs_are_read(saved):
    fields = json.loads((saved / "modern" / "config.json").read_text())
    assert load_config(saved / "modern").rope_theta == 500.0
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"]
    assert Qwen3Config.from_pretrained(saved / "modern").rope_parameters["rope_theta"] == 500.0


def test_a_file_that_a_program_has_mapped_is_replaced(tmp_path):
    """Its tensors stay what they were, and it leaves nothing besides."""
    first, second = (GPT(GPTConfig("gpt2", 50, 16, 1, 2, d_model=16)) for _ in range(2))
    save_model(first, tmp_path, pad_token_id=0)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
        mapped = file.get_tensor(names[0])
        before = mapped.clone()
        save_model(second, tmp_path, pad_token_id=0)
        assert torch.equal(mapped, before)
    assert not list(tmp_path.glob(".*"))
    weights = load_model(tmp_path).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in second.state_dict().items())
