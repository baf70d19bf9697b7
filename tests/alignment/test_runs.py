"""Each method as a run: it learns, resumes exactly, and keeps the invariants that its metrics
promise."""

import json
import math
import shutil

import pytest
import torch

from seq2chat.alignment import reinforcement
from seq2chat.alignment.examples import ExampleLoader, split_examples
from seq2chat.alignment.judges import RewardScorer, load_scorer
from seq2chat.alignment.policy import grow_vocabulary, load_policy
from seq2chat.alignment.reward import score_texts
from seq2chat.alignment.reward_function import FunctionScorer
from seq2chat.alignment.rollout import Rollout, answer_logp, last_token, roll_out
from seq2chat.alignment.setup import prepare, prepare_alignment
from seq2chat.alignment.sft import pack, sft_loss
from seq2chat.config import GPTConfig, Recipe, UserError, recipe_tables
from seq2chat.models.folder import load_model, make_model, save_model
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import add_lora, merged
from seq2chat.models.reward import RewardModel
from seq2chat.text.batch import IGNORED
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import END, Message, chat_tokens, control_id
from seq2chat.text.conversations import Comparison, Query, read_demonstrations, read_queries
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.run_folder import open_run
from seq2chat.training.setup import start_job

QUICK = {"align__examples": 60, "train__budget": "4 steps"}
RL = QUICK | {"align__episodes": 16, "train__batch_size": 8, "align__reward": "oracle"}


def losses(run):
    return [m["loss"] for m in open_run(run).metrics() if "loss" in m]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sft", QUICK),
        ("sft", QUICK | {"align__lora_rank": 4}),
        (
            "sft",
            QUICK | {"align__ptx": 0.5, "align__ptx_corpus": "world:1MB", "align__ptx_batch": 2},
        ),
        ("sft", QUICK | {"align__reward": "oracle", "train__checkpoints": 4}),
        ("reward", QUICK),
        ("dpo", QUICK),
        (
            "sft",
            QUICK | {"align__reward": "oracle", "train__checkpoints": 4, "align__lora_rank": 4},
        ),
        ("ppo", RL | {"align__ema": 0.9, "align__kl_target": 2.0}),
        ("ppo", RL | {"align__ptx": 0.5, "align__ptx_corpus": "world:1MB", "align__ptx_batch": 2}),
        ("grpo", RL | {"align__group": 4, "align__inner_epochs": 2}),
    ],
    ids=[
        "sft",
        "lora",
        "sft-mix",
        "sft-best",
        "reward",
        "dpo",
        "lora-best",
        "ppo",
        "ppo-ptx",
        "grpo",
    ],
)
def test_a_resumed_run_has_the_losses_of_one_never_stopped(
    method, options, fine_tuned, tmp_path, align, resume
):
    align(method, tmp_path / "whole", fine_tuned, **options)
    align(method, tmp_path / "parts", fine_tuned, stop_after=2, **options)
    assert len(losses(tmp_path / "parts")) == 2
    resume(tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    kinds = {path: load_checkpoint(tmp_path / path)[0] for path in ("whole", "parts")}
    whole, parts = (dict(m.named_parameters()) for m in kinds.values())
    assert all(torch.equal(p, parts[name]) for name, p in whole.items())
    assert isinstance(kinds["whole"], RewardModel if method == "reward" else GPT)


def test_fine_tuning_learns_to_end_and_to_answer(fine_tuned, corner):
    first, *_, last = losses(fine_tuned)
    assert last < 0.5 * first
    policy, tokenizer = load_policy(str(fine_tuned))
    rollout = roll_out(policy, tokenizer, read_queries(corner, 40, 0), 40, seed=1)
    assert rollout.finished.float().mean() > 0.9


def test_checkpoint_chats_in_transformers(fine_tuned):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = open_run(fine_tuned).list_checkpoints()[-1]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    ours, own = load_policy(str(fine_tuned))
    prompt = (Message("user", "How do I steal the bike of Tom?"),)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt[0].content}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, ours(ids), rtol=0, atol=1e-4)
    assert own.decode(ids[0].tolist()).endswith("<|im_start|>assistant\n")


def test_packing_changes_no_loss_and_sees_no_neighbour(base, corner):
    model, tokenizer = load_policy(str(base))
    model = model.double()
    talks = [chat_tokens(tokenizer, d.messages) for d in read_demonstrations(corner, 12, 0)]
    batch = pack(talks, model.context, tokenizer.pad_id)
    assert batch.target.shape[0] < len(talks)
    assert int((batch.labels != IGNORED).sum()) == sum(sum(t.trained) for t in talks)
    together, n = sft_loss(model, batch)
    alone = [sft_loss(model, pack([talk], model.context, tokenizer.pad_id)) for talk in talks]
    assert int(n) == sum(int(k) for _, k in alone)
    # The loss itself is computed in float32 at least.
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in alone), rel=1e-9)


def test_obstacles_to_learning_are_logged(fine_tuned, corner, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def same(prompts, answers): return [0.5] * len(answers)\n")
    tables = {
        "data": {"corpus": str(corner)},
        "train": {"budget": "1 steps"},
        "align": {
            "method": "grpo",
            "start": str(fine_tuned),
            "reward": f"{file}:same",
            "max_tokens": 2,
            "missing_eos": 1.0,
        },
    }
    lines: list[str] = []
    start_job(Recipe.from_tables(tables), tmp_path / "run", lines.append, prepare=prepare)
    text = "\n".join(lines)
    assert "score 0.5; while scores are equal, there is nothing to learn" in text
    assert "don't end within align.max_tokens 2" in text


def test_ppo_keeps_its_invariants(fine_tuned, judge, tmp_path, align):
    align(
        "ppo",
        tmp_path / "run",
        fine_tuned,
        **RL | {"align__reward": str(judge), "align__inner_epochs": 2},
    )
    steps = [m for m in open_run(tmp_path / "run").metrics() if "score" in m]
    assert len(steps) == 4
    for m in steps:
        assert m["first_ratio_min"] == m["first_ratio_max"] == 1.0
        assert m["reward_gap"] < 1e-4  # Σ rewards = score - β Σ KL
        assert m["sampling_gap"] < 1e-4
        assert m["entropy"] >= 0 and 0 <= m["clip_fraction"] <= 1
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-4) and steps[-1]["kl"] != steps[0]["kl"]


@pytest.mark.parametrize("method", ["sft", "reward", "ppo", "grpo", "dpo"])
def test_all_that_is_trained_is_on_the_device_of_the_run(method, fine_tuned, judge, monkeypatch):
    """On a device that holds shapes only, as there may be no other: a part left behind fails at the
    first step."""
    tables = {"align": {"start": str(fine_tuned), "examples": 60}}
    if method in ("ppo", "grpo"):
        # No answer can be sampled or scored there.
        monkeypatch.setattr(reinforcement, "roll_out", lambda *arguments, **options: None)
        monkeypatch.setattr(reinforcement, "_log_obstacles", lambda *arguments: None)
        monkeypatch.setattr(
            RewardScorer, "__call__", lambda scorer, rollout: torch.tensor([0.0, 1.0])
        )
        tables["align"] |= {"reward": str(judge), "missing_eos": 1.0}
    if method == "ppo":
        tables["align"]["value_clip"] = 1.0
    recipe = Recipe.from_tables(recipe_tables(method), tables | {"train": {"precision": "fp32"}})
    task = prepare_alignment(recipe, None, torch.device("meta"), str, str)
    parts = {"model": task.model} | dict(task.modules())
    devices = {name: {p.device.type for p in part.parameters()} for name, part in parts.items()}
    assert set().union(*devices.values()) == {"meta"}, devices


def test_a_policy_that_is_not_trained_stays_where_it_is(fine_tuned, tmp_path, align):
    still = dict.fromkeys(("optim__embedding_lr", "optim__head_lr", "optim__vector_lr"), 0.0)
    # 0 stands for "the default" there, so the smallest that changes nothing in float32
    job = align("ppo", tmp_path / "run", fine_tuned, **RL | still | {"optim__matrix_lr": 1e-30})
    start, _ = load_policy(str(fine_tuned))
    assert all(
        torch.equal(p, q) for p, q in zip(job.model.parameters(), start.parameters(), strict=True)
    )
    for m in (m for m in open_run(tmp_path / "run").metrics() if "score" in m):
        assert m["kl"] == pytest.approx(0.0, abs=1e-4) and m["ratio_max"] == pytest.approx(
            1.0, abs=1e-5
        )


def test_ppo_and_grpo_raise_a_plain_reward(fine_tuned, tmp_path, align):
    """A reward that wants short answers is easy: its mean rises by much."""
    file = tmp_path / "short.py"
    file.write_text(
        "def short(prompts, answers):\n    return [-0.1 * len(a.split()) for a in answers]\n"
    )
    options = {
        "align__reward": f"{file}:short",
        "align__examples": 200,
        "align__episodes": 64,
        "train__budget": "25 steps",
        "train__batch_size": 32,
        "align__beta": 0.0,
    }
    for method in ("ppo", "grpo"):
        rates = dict.fromkeys(
            ("optim__matrix_lr", "optim__embedding_lr", "optim__vector_lr", "optim__head_lr"), 0.001
        )
        align(method, tmp_path / method, fine_tuned, **options, **rates)
        scores = [m["score"] for m in open_run(tmp_path / method).metrics() if "score" in m]
        assert sum(scores[-5:]) / 5 > sum(scores[:3]) / 3 + 0.15, method


def test_reward_model_is_centered_and_ranks(judge):
    metrics = open_run(judge).metrics()[-1]
    assert metrics["val_accuracy"] > 0.55
    model, tokenizer = load_checkpoint(judge)
    assert model.config.score_bias != 0
    assert math.isfinite(score_texts(model, tokenizer, [(Message("user", "Hi"),)], ["Yes."]).item())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_and_computed_log_probabilities_agree(temperature, fine_tuned, corner):
    policy, tokenizer = load_policy(str(fine_tuned))
    rollout = roll_out(policy, tokenizer, read_queries(corner, 20, 0), 16, temperature, n=2, seed=3)
    with torch.no_grad():
        computed = answer_logp(policy, rollout.tokens, rollout.mask, temperature)
    assert (computed - rollout.sampled_logp).abs().max() < 1e-5
    # A row alone, without its neighbours' padding, has the same.
    width = int(last_token(rollout.mask)[0]) + 1
    with torch.no_grad():
        alone = answer_logp(
            policy, rollout.tokens[:1, :width], rollout.mask[:1, :width], temperature
        )
    assert (alone - computed[:1, :width]).abs().max() < 1e-5


def test_a_temperature_divides_the_logits_of_training_too(fine_tuned, corner):
    policy, tokenizer = load_policy(str(fine_tuned))
    rollout = roll_out(policy, tokenizer, read_queries(corner, 4, 0), 8, seed=3)
    with torch.no_grad():
        logits = policy(rollout.tokens[:, :-1]) / 0.5
        expected = logits.log_softmax(-1).gather(-1, rollout.tokens[:, 1:, None])[..., 0]
        got = answer_logp(policy, rollout.tokens, rollout.mask, temperature=0.5)[:, 1:]
    mask = rollout.mask[:, 1:]
    torch.testing.assert_close(got[mask], expected[mask])


def test_lora_starts_as_identity_and_merges(base):
    model, _ = load_policy(str(base))
    model, tokens = model.double(), torch.randint(700, (2, 20))
    before = model(tokens)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    add_lora(model, 4, alpha=8.0)
    assert torch.equal(model(tokens), before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(name.endswith((".lora_a", ".lora_b")) for name in trained)
    for name, p in model.named_parameters():
        if name.endswith(".lora_b"):
            torch.nn.init.normal_(p, std=0.1)
    plain = merged(model)
    assert {name for name, _ in plain.named_parameters()} == set(weights)
    torch.testing.assert_close(plain(tokens), model(tokens), rtol=0, atol=1e-10)
    layer = model.layers[0].self_attn.q_proj
    expected = weights["layers.0.self_attn.q_proj.weight"] + 2 * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(plain.layers[0].self_attn.q_proj.weight, expected)


def test_new_tokens_leave_the_old_ones_logits_alone(base):
    model = load_model(base)
    larger, tokens = grow_vocabulary(model, 710), torch.randint(700, (2, 9))
    assert larger.config.vocab_size == 710
    torch.testing.assert_close(larger(tokens)[..., : model.config.vocab_size], model(tokens))


def test_examples_are_dealt_once_an_epoch():
    loader = ExampleLoader(10, "data", 1, 10, list)
    first, second = loader.batch(0, 10), loader.batch(10, 10)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert loader.batch(3, 4) == first[3:7] and loader.batch(8, 4) == first[8:] + second[:2]


# What can go wrong


def test_a_reward_of_the_wrong_length_or_no_number_is_told():
    rollout = Rollout(
        [(), ()],
        [{}, {}],
        ["a", "b"],
        torch.zeros(2, 1, dtype=torch.int64),
        torch.ones(2, 1, dtype=torch.bool),
        torch.ones(2, dtype=torch.bool),
        torch.zeros(2, 1),
    )
    with pytest.raises(UserError, match="returned 1 rewards for 2 answers"):
        FunctionScorer(lambda p, a: [1.0], "f")(rollout)
    with pytest.raises(UserError, match="returned nan for the answer 'b'"):
        FunctionScorer(lambda p, a: [1.0, float("nan")], "f")(rollout)


def test_nan_reward_keeps_the_checkpoint(fine_tuned, tmp_path, align):
    file = tmp_path / "bad.py"
    file.write_text(
        "n = 0\ndef bad(p, a):\n    global n\n    n += 1\n"
        "    return [float('nan') if n > 3 else 0.1 * i for i in range(len(a))]\n"
    )
    with pytest.raises(UserError, match="returned nan for the answer"):
        align(
            "ppo",
            tmp_path / "run",
            fine_tuned,
            **RL | {"align__reward": f"{file}:bad", "train__checkpoints": 4},
        )
    assert open_run(tmp_path / "run").list_checkpoints()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("", "name a reward model's run"),
        ("none.py:f", r"There is no file none\.py"),
        ("nowhere", "There is no run or model folder nowhere"),
    ],
)
def test_a_judge_that_is_not_there_is_told(source, told, fine_tuned):
    _, tokenizer = load_policy(str(fine_tuned))
    with pytest.raises(UserError, match=told):
        load_scorer(source, tokenizer, torch.device("cpu"), 10, 0)


def test_a_judge_of_another_tokenizer_is_refused(judge, fine_tuned):
    from seq2chat.text.byte_bpe import ByteBPE

    other = ByteBPE.train(["some other text"], 270)
    with pytest.raises(UserError, match="has another tokenizer than the policy"):
        load_scorer(str(judge), other, torch.device("cpu"), 10, 0)


def test_long_examples_are_left_out_or_refused(fine_tuned, tmp_path, align):
    file = tmp_path / "long.jsonl"
    rows = [
        {"prompt": "Hi", "answer": "Yes."},
        {"prompt": "Hi", "answer": "Yes. " * 200},
        {"prompt": "Ho", "answer": "No."},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        UserError,
        match=(
            r"1 of 3 conversations are longer than 128 tokens, the room in .*; the first is "
            r"number 2"
        ),
    ):
        align(
            "sft",
            tmp_path / "a",
            fine_tuned,
            data__corpus=str(file),
            align__strict=True,
            train__budget="1 step",
        )
    align(
        "sft",
        tmp_path / "b",
        fine_tuned,
        data__corpus=str(file),
        train__budget="1 step",
        train__batch_size=1,
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model__d_model": 48}, "model.d_model is 48, but align.start has 64"),
        ({"align__ptx": 1.0}, "belong together"),
        ({"align__gae_lambda": 0.5}, "align.gae_lambda is for ppo"),
        ({"train__compile": "on"}, "train.compile is for pretraining"),
    ],
)
def test_options_without_a_use_are_refused(options, told, fine_tuned, tmp_path, align):
    with pytest.raises(UserError, match=told):
        align("sft", tmp_path / "run", fine_tuned, **QUICK | options)


def test_the_dropout_of_a_run_is_the_recipes(fine_tuned, tmp_path, align):
    for share in (0.3, 0.0):
        job = align("sft", tmp_path / str(share), fine_tuned, model__dropout=share, **QUICK)
        assert {m.p for m in job.model.modules() if isinstance(m, torch.nn.Dropout)} == {share}
        assert job.model.config.dropout == share


def test_lora_learns_what_new_control_tokens_are(tmp_path, align):
    """They begin alike, and blocks alone could never make one likelier than the others."""
    folder = tmp_path / "bare"
    tokenizer = ByteBPE.train(["To be or not to be, that is the question."] * 9, 300)
    torch.manual_seed(0)
    model = make_model(
        GPTConfig(layout="gpt2", vocab_size=300, context=96, n_layer=1, n_head=2, d_model=32)
    )
    save_model(model, folder, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    tokenizer.save(folder)
    examples = tmp_path / "one.jsonl"
    examples.write_text(
        "".join(json.dumps({"prompt": f"To {i}", "answer": "be"}) + "\n" for i in range(40))
    )
    options = {"data__corpus": str(examples), "train__budget": "120 steps", "train__batch_size": 8}
    rates = dict.fromkeys(("optim__matrix_lr", "optim__vector_lr"), 0.02)
    job = align("sft", tmp_path / "sft", folder, align__lora_rank=4, **options, **rates)
    policy, chat = load_policy(str(tmp_path / "sft"))
    ids = chat_tokens(chat, [Message("user", "To 3"), Message("assistant", "be")]).ids
    end = control_id(chat, END)
    at = len(ids) - 1 - ids[::-1].index(end)
    probabilities = policy(torch.tensor([ids[:at]]))[0, -1].softmax(-1)
    assert probabilities[end] > 0.6, probabilities[sorted(chat.control.values())]
    before = load_model(folder)
    old = [i for i in range(300) if i not in chat.control.values()]
    torch.testing.assert_close(policy.embed_tokens.weight[old], before.embed_tokens.weight[old])
    assert job.task.origin


def test_lora_checkpoints_hold_the_frozen_weights_once(fine_tuned, tmp_path, align):
    align("sft", tmp_path / "run", fine_tuned, align__lora_rank=4, **QUICK)
    [checkpoint] = open_run(tmp_path / "run").list_checkpoints()
    published = (checkpoint / "model.safetensors").stat().st_size
    assert (checkpoint / "trainer" / "policy.safetensors").stat().st_size < published / 4


def test_an_edited_text_of_pretraining_does_not_resume(tmp_path, base, corner, align, resume):
    text = tmp_path / "text.txt"
    text.write_text("The river runs to the sea. " * 400)
    options = QUICK | {"data__corpus": corner, "train__batch_size": 4, "train__budget": "4 steps"}
    mix = {"align__ptx": 0.5, "align__ptx_corpus": str(text), "align__ptx_batch": 2}
    align("sft", tmp_path / "run", base, stop_after=2, **options, **mix)
    text.write_text("The river runs to the lake. " * 400)
    with pytest.raises(UserError, match=r"a mixed-in text or the starting model .* has changed"):
        resume(tmp_path / "run")


def test_no_prompt_is_on_both_sides_of_a_split():
    recipe = Recipe.from_tables(recipe_tables("dpo"), {"data": {"val_fraction": 0.2}})
    prompts = [(Message("user", f"Question {i % 10}"),) for i in range(50)]
    compared = [
        Comparison(prompt, (f"a {i}", f"b {i}"), (0, 1)) for i, prompt in enumerate(prompts)
    ]
    train, held_out = split_examples(compared, recipe)
    assert len(train) == 40 and len(held_out) == 10
    assert not {c.prompt for c in train} & {c.prompt for c in held_out}


@pytest.mark.parametrize(("method", "steps"), [("ppo", 5), ("grpo", 20)])
def test_an_epoch_of_reinforcement_asks_each_prompt_once(method, steps, fine_tuned):
    tables = {
        "align": {"start": str(fine_tuned), "reward": "oracle", "examples": 90, "episodes": 16}
    }
    tables["align"] |= {"group": 4} if method == "grpo" else {}
    tables |= {"data": {"val_fraction": 0.1}, "train": {"budget": "1 epoch", "precision": "fp32"}}
    recipe = Recipe.from_tables(recipe_tables(method), tables)
    loader = prepare_alignment(recipe, None, torch.device("cpu"), str, str).loader
    assert math.ceil(loader.epoch_batches(recipe.train.batch_size)) == pytest.approx(steps, abs=1)


def test_a_run_does_not_go_on_from_another_start(fine_tuned, base, tmp_path, align, resume):
    start = tmp_path / "start"
    shutil.copytree(fine_tuned, start)
    align("sft", tmp_path / "run", start, stop_after=2, **QUICK)
    shutil.rmtree(start)
    shutil.copytree(base, start)
    with pytest.raises(UserError, match=r"the starting model of .* has changed"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "told"), [("None", "returned nothing"), ("['good']", "a list without numbers")]
)
def test_a_reward_that_is_no_number_is_told(given, told, tmp_path, fine_tuned):
    file = tmp_path / "mine.py"
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass "
        "A:\n    x: int = 1\n"
    )
    file.write_text(f"{text}def judge(prompts, answers): return {given}\n")
    policy, tokenizer = load_policy(str(fine_tuned))
    scorer = load_scorer(f"{file}:judge", tokenizer, torch.device("cpu"), 9, 0)
    with pytest.raises(UserError, match=told):
        scorer(roll_out(policy, tokenizer, [Query((Message("user", "Hello"),))], 4, seed=0))


def test_the_value_function_has_its_own_learning_rates(fine_tuned, tmp_path, align):
    job = align("ppo", tmp_path / "run", fine_tuned, **RL, align__value_lr=10.0)
    peaks = [
        [group["peak"] for optimizer in optimizers for group in optimizer.param_groups]
        for optimizers in (job.task.policy_optimizers, job.task.value_optimizers)
    ]
    assert set(peaks[0]) and set(peaks[1]) == {10 * peak for peak in peaks[0]}
