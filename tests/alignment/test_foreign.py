"""Alignment of a model that others made: its own template, its own tokens, all methods."""

import json

import peft
import pytest
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from seq2chat.alignment.policy import load_policy
from seq2chat.config import GPTConfig, UserError
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.chat import Conversation
from seq2chat.inference.export import export_adapter, export_folder, export_gguf
from seq2chat.models.folder import save_model
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.checkpoint import load_checkpoint

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helper.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALKS = [("When do you open?", "We open at nine."), ("What do you sell?", "We sell red kites.")]
HELLOS = (
    "",
    "Hi. ",
    "Hi! ",
    "Hello. ",
    "Hello! ",
    "You there. ",
    "Say: ",
    "Sir, ",
    "So. ",
    "Now, ",
)
GREEDY = SamplingConfig(max_tokens=16, temperature=0.0)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A Llama with random weights and a tokenizer like SmolLM2's."""
    folder = tmp_path_factory.mktemp("theirs")
    spec = tokenizers.Tokenizer(models.BPE())
    spec.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    spec.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<spare>"]
    text = [TEMPLATE, *(part for talk in TALKS for part in talk), "user assistant system"]
    spec.train_from_iterator(
        text * 3,
        trainers.BpeTrainer(
            vocab_size=360,
            special_tokens=control,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    spec.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    config = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE}
    tokenizer = TextTokenizer(ByteBPE, spec.to_str(), json.dumps(config))
    torch.manual_seed(0)
    shape = {"context": 128, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "d_model": 64}
    model = GPT(GPTConfig("llama", vocab_size=tokenizer.vocab_size, tie_embeddings=True, **shape))
    save_model(model, folder, eos_token_id=2)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")

    talks = [(f"{hello}{q}", a) for q, a in TALKS for hello in HELLOS]

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("talks.jsonl", [{"prompt": q, "answer": a} for q, a in talks])
    ranked = [{"prompt": q, "chosen": f"{a} Sir!", "rejected": a} for q, a in talks]
    write("ranked.jsonl", ranked)
    write("prompts.jsonl", [{"prompt": q} for q, _ in talks])
    # By turns, as a policy that knows its answers always gives the same.
    judge = "def judge(prompts, answers): return [i % 2 for i in range(len(answers))]"
    (folder / "judge.py").write_text(judge)
    return folder


@pytest.fixture(scope="module")
def taught(start, data, tmp_path_factory, align):
    run = tmp_path_factory.mktemp("runs") / "sft"
    rates = dict.fromkeys(("optim__matrix_lr", "optim__embedding_lr", "optim__vector_lr"), 0.002)
    options = {"data__corpus": str(data / "talks.jsonl"), "align__examples": 0}
    align("sft", run, start, train__budget="120 steps", train__batch_size=8, **options, **rates)
    return run


def test_it_learns_in_its_own_format(start, taught):
    model, tokenizer = load_checkpoint(taught)
    assert tokenizer.chat_template == TEMPLATE
    assert model.config == load_checkpoint(start)[0].config, "no new tokens"
    conversation = Conversation.open(taught)
    for question, answer in TALKS:
        conversation.reset()
        assert "".join(conversation.answer(question, GREEDY)) == answer
    assert tokenizer.pad_id == tokenizer.control["<spare>"]


def test_llama_cpp_says_what_it_was_taught(taught, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    export_gguf(taught, tmp_path / "a.gguf", "f16")
    theirs = llama_cpp.Llama(str(tmp_path / "a.gguf"), n_ctx=128, verbose=False)
    for question, answer in TALKS:
        reply = theirs.create_chat_completion(
            [{"role": "user", "content": question}], max_tokens=16, temperature=0.0
        )
        assert reply["choices"][0]["message"]["content"].strip() == answer


def test_a_clean_folder_has_no_training_state(taught, tmp_path):
    export_folder(taught, tmp_path / "out", "bf16")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    card = (tmp_path / "out/README.md").read_text()
    assert "| steps | 120 |" in card and "talks.jsonl" in card and "val_loss" in card
    question, answer = TALKS[0]
    assert "".join(Conversation.open(tmp_path / "out").answer(question, GREEDY)) == answer


@pytest.mark.filterwarnings("ignore")
def test_adapters_go_to_peft_and_come_back(taught, data, tmp_path, align, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"data__corpus": str(data / "ranked.jsonl"), "align__examples": 0}
    align("dpo", tmp_path / "dpo", taught, align__lora_rank=3, train__budget="9 steps", **options)
    base = export_adapter(tmp_path / "dpo", tmp_path / "adapter")
    merged, _ = load_checkpoint(tmp_path / "dpo")
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    tokens = torch.randint(300, (2, 20))
    with torch.no_grad():
        before = load_checkpoint(taught)[0](tokens)
        assert not torch.allclose(merged(tokens), before, atol=1e-3)
        torch.testing.assert_close(theirs(tokens).logits, merged(tokens), rtol=0, atol=1e-4)
        again, _ = load_checkpoint(tmp_path / "adapter")
        torch.testing.assert_close(again(tokens), merged(tokens), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="has no adapters"):
        export_adapter(taught, tmp_path / "other")


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("method", ["dpo", "ppo", "grpo"])
def test_all_methods_train_it(method, rank, taught, data, tmp_path, align):
    options = {"align__lora_rank": rank, "align__examples": 0, "train__budget": "3 steps"}
    options["data__corpus"] = str(data / ("ranked.jsonl" if method == "dpo" else "prompts.jsonl"))
    if method != "dpo":
        judge = f"{data / 'judge.py'}:judge"
        options |= {"align__reward": judge, "align__episodes": 8, "train__batch_size": 4}
    job = align(method, tmp_path / "run", taught, **options)
    before, _ = load_policy(str(taught))
    after, tokenizer = load_checkpoint(tmp_path / "run")
    assert tokenizer.chat_template == TEMPLATE
    assert after.config == before.config
    changed = [
        name
        for name, p in after.named_parameters()
        if not torch.equal(p, before.get_parameter(name))
    ]
    assert changed
    if rank:
        assert all("_proj" in name for name in changed), "the rest is frozen"
        frozen = [p for p in job.model.parameters() if not p.requires_grad]
        if method == "dpo":
            shared = {p.data_ptr() for p in job.task.reference.parameters()}
            assert all(p.data_ptr() in shared for p in frozen)


def test_a_reward_model_starts_from_it(taught, data, tmp_path, align):
    options = {"data__corpus": str(data / "ranked.jsonl"), "align__examples": 0}
    align("reward", tmp_path / "reward", taught, train__budget="20 steps", **options)
    reward, _ = load_checkpoint(tmp_path / "reward")
    assert reward.config.layout == "llama"
    rl = {"align__episodes": 8, "train__batch_size": 4, "train__budget": "2 steps"}
    align(
        "ppo",
        tmp_path / "ppo",
        taught,
        data__corpus=str(data / "prompts.jsonl"),
        align__reward=str(tmp_path / "reward"),
        align__examples=0,
        **rl,
    )
    assert load_checkpoint(tmp_path / "ppo")[0].config.layout == "llama"
