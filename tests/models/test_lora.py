"""LoRA beside `peft`, the library of the field: the same adapters, logits, gradients and files."""

import json

import peft
import pytest
import torch
import transformers

from seq2chat.config import GPTConfig, UserError
from seq2chat.models.folder import load_model, save_model
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import add_lora, frozen_copy, merge_adapter, merged, write_adapter
from seq2chat.nn.lora import LoRALinear
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.training.checkpoint import load_checkpoint, save_with_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

RANK, ALPHA = 3, 7.0
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG = GPTConfig(
    "llama", vocab_size=300, context=16, n_layer=2, n_head=2, n_kv_head=1, d_model=16
)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    model = GPT(CONFIG).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_model(model, tmp_path / "base")
    return model


@pytest.fixture
def theirs(model, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=NAMES)
    theirs = peft.get_peft_model(base, config).double().eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return theirs


def adapters(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def randomize(model):
    torch.manual_seed(1)
    for module in adapters(model).values():
        module.lora_b.data.normal_(std=0.3)


def test_logits_and_gradients_are_those_of_peft(model, theirs):
    add_lora(model, RANK, ALPHA)
    ours = adapters(model)
    peers = {
        f"layers.{name.split('.layers.')[1]}": module
        for name, module in theirs.named_modules()
        if isinstance(module, peft.tuners.lora.layer.Linear)
    }
    assert set(peers) == set(ours) and len(ours) == 2 * len(NAMES)
    for name, module in ours.items():
        module.lora_a.data.copy_(peers[name].lora_A["default"].weight)
        module.lora_b.data.copy_(peers[name].lora_B["default"].weight)
    tokens = torch.randint(300, (3, 11))
    logits, their_logits = model(tokens), theirs(tokens).logits
    # transformers rounds its norms to float32.
    torch.testing.assert_close(logits, their_logits, rtol=1e-5, atol=1e-5)
    loss = torch.randn(logits.shape, dtype=logits.dtype)
    (logits * loss).sum().backward()
    (their_logits * loss).sum().backward()
    for name, module in ours.items():
        for ours_, peer in ((module.lora_a, "lora_A"), (module.lora_b, "lora_B")):
            expected = getattr(peers[name], peer)["default"].weight.grad
            torch.testing.assert_close(ours_.grad, expected, rtol=1e-4, atol=1e-4)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(ours)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_peft_opens_our_adapters(model, tmp_path):
    add_lora(model, RANK, ALPHA)
    randomize(model)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    write_adapter(trained, tmp_path / "ours", str(tmp_path / "base"), RANK, ALPHA)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours").double().eval()
    tokens = torch.randint(300, (3, 11))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(merged(model)(tokens), model(tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_we_open_the_adapters_of_peft(use_rslora, model, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": use_rslora}))
    merge_adapter(model, tmp_path / "theirs")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "theirs").double().eval()
    tokens = torch.randint(300, (3, 11))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), again(tokens).logits, rtol=1e-5, atol=1e-5)


def test_a_reference_shares_the_frozen_weights(model, tmp_path):
    base = tmp_path / "base"
    add_lora(model, RANK, ALPHA)
    reference = frozen_copy(model)
    randomize(model)
    own = [p for p in reference.parameters() if p.data_ptr() not in pointers(model)]
    assert len(own) == 2 * len(adapters(model))
    assert not any(p.requires_grad for p in reference.parameters())
    tokens = torch.randint(300, (3, 11))
    with torch.no_grad():
        expected = load_model(base, torch.float64)(tokens)
        assert torch.equal(reference(tokens), expected), "its adapters are zero"
        assert not torch.allclose(model(tokens), expected)


def pointers(model):
    return {p.data_ptr() for p in model.parameters()}


@pytest.fixture
def folders(theirs, tmp_path, monkeypatch):
    """A base with a tokenizer, and adapters that name it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_with_tokenizer(
        load_model(tmp_path / "base"), ByteBPE.train(["a b c " * 9], 264), tmp_path / "base"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "base", tmp_path / "theirs"


def test_adapters_open_like_a_model(folders, theirs):
    base, adapter = folders
    tokens = torch.randint(264, (2, 9))
    model, _ = load_checkpoint(adapter)
    with torch.no_grad():
        expected = theirs(tokens).logits.float()
        torch.testing.assert_close(model(tokens), expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(load_checkpoint(base)[0](tokens), expected, atol=1e-2)


def change(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_adapters_after_a_generation_can_be_trained(model):
    """Whose tensors are no part of any backward pass."""
    add_lora(model, RANK, ALPHA)
    model.float()
    model.compute_dtype = torch.bfloat16
    tokens = torch.randint(300, (2, 9))
    with torch.inference_mode():
        model(tokens)
    reference = frozen_copy(model)
    model(tokens).float().sum().backward()
    for one, other in zip(adapters(model).values(), adapters(reference).values(), strict=True):
        assert one.lora_b.grad is not None
        assert one.rounded[torch.bfloat16] is other.rounded[torch.bfloat16]


@pytest.mark.parametrize("base", ["", "."])
def test_adapters_without_a_base_are_refused(base, folders):
    _, adapter = folders
    change(adapter, base_model_name_or_path=base)
    with pytest.raises(UserError, match="which is no whole model"):
        load_checkpoint(adapter)


def test_adapters_of_another_base_are_refused(folders, tmp_path):
    _, adapter = folders
    other = GPT(GPTConfig("llama", vocab_size=300, context=16, n_layer=2, n_head=2, d_model=32))
    save_with_tokenizer(other, ByteBPE.train(["a b c " * 9], 264), tmp_path / "other")
    change(adapter, base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"belongs to another model than .*other: the update of"):
        load_checkpoint(adapter)
    gpt2 = GPT(GPTConfig("gpt2", vocab_size=300, context=16, n_layer=2, n_head=2, d_model=16))
    save_with_tokenizer(gpt2, ByteBPE.train(["a b c " * 9], 264), tmp_path / "gpt2")
    change(adapter, base_model_name_or_path=str(tmp_path / "gpt2"))
    with pytest.raises(UserError, match="belongs to another model"):
        load_checkpoint(adapter)
    change(adapter, base_model_name_or_path="nowhere/at/all")
    with pytest.raises(UserError, match="belong to nowhere/at/all, which is not here; write"):
        load_checkpoint(adapter)
    assert not list((tmp_path / "cache/seq2chat/models").glob("theirs-*"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"r": 0}, "r and lora_alpha must be positive"),
    ],
)
def test_other_features_of_peft_are_refused_by_name(folders, fields, message):
    _, adapter = folders
    change(adapter, **fields)
    with pytest.raises(UserError, match=message):
        load_checkpoint(adapter)


def test_damaged_adapters_are_named(folders):
    _, adapter = folders
    (adapter / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"adapter_model.safetensors is damaged"):
        load_checkpoint(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json is damaged"):
        load_checkpoint(adapter)
