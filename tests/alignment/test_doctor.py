"""The doctor: a run whose parts are sound is healthy; with one part broken, that part is named."""

import dataclasses
import itertools

import pytest
import torch

from seq2chat.alignment import doctor as doctor_module
from seq2chat.alignment import ppo as ppo_module
from seq2chat.alignment.checks import Finding, best_of, check_reading
from seq2chat.alignment.doctor import diagnose, verdict
from seq2chat.alignment.policy import load_policy
from seq2chat.config import UserError
from seq2chat.text import conversations
from seq2chat.text.chat import END, chat_tokens

RL = {
    "align__examples": 120,
    "align__episodes": 32,
    "align__max_tokens": 40,
    "align__reward": "oracle",
    "train__budget": "3 steps",
    "train__batch_size": 16,
}


@pytest.fixture(autouse=True)
def literate(monkeypatch):
    """Models as small as these can't read, which has a test of its own. A third of the prompts
    shows all faults here."""
    sound = Finding("base", True, "it reads")
    monkeypatch.setattr(doctor_module, "check_reading", lambda policy, tokenizer: sound)
    monkeypatch.setattr(doctor_module, "PROMPTS", 64)


def first_fault(run):
    findings = diagnose(run, practice=0)
    return next((f.part for f in findings if not f.sound), None), findings


def test_sound_parts_are_healthy(fine_tuned, align, tmp_path):
    align("ppo", tmp_path / "run", fine_tuned, **RL)
    fault, findings = first_fault(tmp_path / "run")
    assert fault is None, findings
    assert findings[0].part == "base"
    assert {f.part for f in findings} >= {
        "demonstrations",
        "length limit",
        "starting policy",
        "reward",
        "log probabilities",
        "updates",
        "checkpoint",
    }
    assert verdict(findings).startswith("Healthy")


@pytest.mark.parametrize(
    ("body", "evidence"),
    [
        ("return [0.5 for a in answers]", "same score"),
        (
            (
                "import random; chance = random.Random(str(answers)); return [chance.random() for a"
                " in answers]"
            ),
            "the best of 4",
        ),
    ],
    ids=["constant", "shuffled"],
)
def test_a_reward_that_tells_nothing_is_named(body, evidence, fine_tuned, align, tmp_path):
    file = tmp_path / "reward.py"
    file.write_text(f"def judge(prompts, answers):\n    {body}\n")
    align("ppo", tmp_path / "run", fine_tuned, **RL | {"align__reward": f"{file}:judge"})
    fault, findings = first_fault(tmp_path / "run")
    assert fault == "reward" and evidence in verdict(findings)


def test_demonstrations_whose_end_was_not_trained_are_named(
    base, corner, align, rates, tmp_path, monkeypatch
):
    def endless(tokenizer, messages, reply=False):
        tokens = chat_tokens(tokenizer, messages, reply)
        end = tokenizer.control[END]
        trained = [asked and i != end for i, asked in zip(tokens.ids, tokens.trained, strict=True)]
        return dataclasses.replace(tokens, trained=trained)

    with monkeypatch.context() as patch:
        patch.setattr(conversations, "chat_tokens", endless)
        align(
            "sft",
            tmp_path / "sft",
            base,
            data__corpus=corner,
            train__budget="60 steps",
            **rates(0.004),
        )
    align("ppo", tmp_path / "run", tmp_path / "sft", **RL)
    fault, findings = first_fault(tmp_path / "run")
    assert fault == "demonstrations" and "must be trained on" in verdict(findings)


def test_a_limit_that_cuts_answers_off_is_named(fine_tuned, align, tmp_path):
    """As it was in the demo once: a polite refusal was longer than the limit, so training unlearned
    it."""
    align("ppo", tmp_path / "run", fine_tuned, **RL | {"align__max_tokens": 14})
    fault, findings = first_fault(tmp_path / "run")
    assert fault == "length limit" and "--align.max-tokens" in verdict(findings), findings


def test_a_temperature_that_training_forgets_is_named(fine_tuned, align, tmp_path, monkeypatch):
    real = ppo_module.answer_logp
    with monkeypatch.context() as patch:
        patch.setattr(
            ppo_module,
            "answer_logp",
            lambda policy, tokens, mask, temperature=1.0: real(policy, tokens, mask),
        )
        align("ppo", tmp_path / "run", fine_tuned, **RL | {"align__temperature": 0.6})
    fault, findings = first_fault(tmp_path / "run")
    assert fault == "log probabilities" and "same temperature" in verdict(findings)


def test_a_base_that_cannot_read_is_named(base):
    policy, tokenizer = load_policy(str(base))
    finding = check_reading(policy, tokenizer)
    assert verdict([finding]).startswith("The fault is in the base: of two facts in a passage")
    assert "train.init" in finding.advice


def test_a_policy_that_was_not_trained_is_named(fine_tuned, align, rates, tmp_path):
    align("ppo", tmp_path / "run", fine_tuned, **RL | rates(1e-30))
    fault, findings = first_fault(tmp_path / "run")
    assert fault == "updates" and "learning rates" in verdict(findings)


def test_checkpoint_of_another_policy_is_named(fine_tuned, align, rates, tmp_path):
    """The policy saved is another than the one whose KL was measured: as when a wrapper's weights
    are written."""
    import shutil

    from seq2chat.training.run_folder import open_run

    align("ppo", tmp_path / "run", fine_tuned, **RL | rates(0.02) | {"train__budget": "6 steps"})
    align("ppo", tmp_path / "other", fine_tuned, **RL | rates(1e-5))
    saved, other = (open_run(tmp_path / name).list_checkpoints()[-1] for name in ("run", "other"))
    shutil.rmtree(saved)
    shutil.copytree(other, saved)
    fault, _ = first_fault(tmp_path / "run")
    assert fault == "checkpoint"


def test_a_reward_model_is_asked_about_held_out_preferences(fine_tuned, judge, align, tmp_path):
    align("ppo", tmp_path / "run", fine_tuned, **RL | {"align__reward": str(judge)})
    findings = diagnose(tmp_path / "run", practice=0)
    [asked] = [f for f in findings if f.part == "reward model"]
    assert asked.sound and "held-out pairs" in asked.evidence


def test_the_algorithm_is_tried_on_a_reward_that_is_right(
    fine_tuned, align, rates, tmp_path, monkeypatch
):
    align("ppo", tmp_path / "run", fine_tuned, **RL | rates(1e-30))
    real = doctor_module.gold_after
    gains = []
    arguments = []
    check_algorithm = doctor_module.check_algorithm

    def recorded_gold(*options):
        gains.append(real(*options))
        return gains[-1]

    def recorded_check(*options):
        arguments.extend(options)
        return check_algorithm(*options)

    monkeypatch.setattr(doctor_module, "gold_after", recorded_gold)
    monkeypatch.setattr(doctor_module, "check_algorithm", recorded_check)
    findings = {f.part: f for f in diagnose(tmp_path / "run", practice=2)}
    algorithm = findings["algorithm"]
    assert not algorithm.sound and "take gold from" in algorithm.evidence
    assert findings["control"].sound  # with that learning rate both are the same answers
    larger = iter([gain + 0.1 for gain in gains])
    monkeypatch.setattr(doctor_module, "gold_after", lambda *options: next(larger))
    findings = {f.part: f for f in check_algorithm(*arguments)}
    assert findings["algorithm"].sound and not findings["control"].sound


def test_another_kind_of_run_is_told(fine_tuned):
    with pytest.raises(UserError, match="a run of sft; the doctor checks runs of ppo and grpo"):
        diagnose(fine_tuned)


def test_the_best_of_n_is_the_mean_over_all_draws():
    torch.manual_seed(0)
    gold, scores = torch.rand(3, 6, dtype=torch.float64), torch.randn(3, 6)
    for n in (1, 2, 4, 6):
        draws = torch.tensor(list(itertools.combinations(range(6), n)))
        # Of each draw, for each prompt.
        best_places = draws.gather(1, scores[:, draws].argmax(2).mT).mT
        mean, best, _ = best_of(gold.flatten(), scores.flatten(), n, 6)
        expected = gold.gather(1, best_places).mean().item()
        assert (mean, best) == pytest.approx((gold.mean().item(), expected))
