"""The whole line in small: every stage, stopped in the middle of each and taken up again, ends in a
report."""

import json
import math
import threading

import pytest

from seq2chat.alignment import pipeline
from seq2chat.alignment.exam import FLOORS, Sheet, exam, headlines, rule_sheet, win_rate
from seq2chat.alignment.pipeline import STAGES, Pace, run_pipeline
from seq2chat.alignment.report import summarize
from seq2chat.config import UserError
from seq2chat.text.conversations import read_comparisons
from seq2chat.text.world import FAMILIES, Gold
from seq2chat.training.run_folder import finished_stages

TINY = {
    "base": {
        "data.corpus": "world:1MB",
        "tokenizer.vocab_size": 600,
        "model.n_layer": 2,
        "model.d_model": 96,
        "model.n_head": 6,
        "train.init": "random",
        "train.budget": "20 steps",
        "train.precision": "fp32",
        "train.compile": "off",
    },
    "sft": {
        "train.budget": "10 steps",
        "align.examples": 100,
        "align.ptx_corpus": "world:1MB",
        "train.precision": "fp32",
    },
    "comparisons": {"prompts": 40},
    "reward": {"train.budget": "5 steps", "train.precision": "fp32"},
    "ppo": {
        "train.budget": "3 steps",
        "align.examples": 60,
        "align.episodes": 16,
        "train.batch_size": 8,
        "align.ptx_corpus": "world:1MB",
        "align.max_tokens": 8,
    },
    "report": {"questions": 50},
}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder, moments = tmp_path_factory.mktemp("line"), []
    for stage in STAGES:  # each is begun, stopped at its first sign of life, and taken up again
        stop = threading.Event()
        for moment in run_pipeline(folder, stop, lambda text: None, TINY):
            moments.append(moment)
            if moment.stage.name == stage.name:
                stop.set()
    moments += list(run_pipeline(folder, threading.Event(), lambda text: None, TINY))
    return folder, moments


def test_the_line_goes_on_where_it_stopped(line):
    folder, moments = line
    assert list(finished_stages(folder)) == [stage.name for stage in STAGES]
    assert [m.stage.name for m in moments if m.stage.name == "base"]
    # Nothing is left to do.
    assert not list(run_pipeline(folder, threading.Event(), lambda text: None, TINY))
    assert sum(stage.share for stage in STAGES) == pytest.approx(1.0)
    for name in ("base", "sft", "reward", "ppo"):
        steps = [
            json.loads(row)["step"]
            for row in (folder / name / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in row
        ]
        assert steps == list(range(1, len(steps) + 1))


def test_the_report_holds_base_sft_and_ppo(line):
    folder, _ = line
    report = json.loads((folder / "report.json").read_text())
    assert set(report["gold"]) == {"base", "base, prompted", "sft", "ppo", *FLOORS}
    assert all(0 <= g <= 1 for g in report["gold"].values())
    assert set(report["headlines"]) == set(report["gold"])
    assert set(report["by_family"]["ppo"]) == set(FAMILIES)
    page = (folder / "report.md").read_text()
    assert all(f"**{family}**" in page for family in FAMILIES) and "report.png" in page
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_prompts_without_time_for_samples_are_ranked_with_the_worlds_own_answers(line, tmp_path):
    folder, _ = line
    (tmp_path / "sft").symlink_to(folder / "sft")
    lines = []
    subject = pipeline.the_world()
    options = {"prompts": pipeline.PROMPTS_AT_ONCE + 30, "seconds": 0.0}
    work = pipeline.Work(
        tmp_path, "comparisons", subject, 1, options, {}, threading.Event(), lines.append
    )
    assert len(list(pipeline._compare(work))) == 1
    comparisons = read_comparisons(str(tmp_path / "comparisons.jsonl"), 0, 0)
    assert len(comparisons) == pipeline.PROMPTS_AT_ONCE + 30
    assert f"with the model's own for {pipeline.PROMPTS_AT_ONCE}" in lines[-1]


def sheet(name, scores, lengths):
    golds = [Gold(*[float(score)] * 6) for score in scores]
    return Sheet(name, [""] * len(scores), golds, lengths, [])


def test_win_rate_counts_ties_half():
    a, b = sheet("a", [1, 1, 0, 0.5], [5, 9, 5, 5]), sheet("b", [0, 0, 1, 0.5], [5, 5, 6, 5])
    assert win_rate(a, b).rate == 2.5 / 4 and win_rate(b, a).rate == 1.5 / 4
    same = win_rate(a, b, same_length=True)
    assert (same.rate, same.n) == (1.5 / 3, 3)
    assert win_rate(a, a).low == win_rate(a, a).high == 0.5
    # A wrong answer with the best manners does not beat a right one.
    rude = Gold(1, 0, 0, 0, 0, 0)
    charming = Gold(0.9, 1, 1, 1, 1, 1)
    assert rude.score < charming.score
    one = Sheet("one", [""], [rude], [1], [])
    assert win_rate(one, Sheet("other", [""], [charming], [1], [])).rate == 1.0
    many = win_rate(
        sheet("a", [1] * 60 + [0] * 40, [1] * 100), sheet("b", [0] * 60 + [1] * 40, [1] * 100)
    )
    # 0.6 ± 1.96 · 0.049.
    assert many.rate == 0.6 and 0.48 < many.low < 0.53 and 0.67 < many.high < 0.72


def test_best_answers_have_gold_1_in_every_family():
    asked = exam(75)
    best = rule_sheet("best", lambda question: question.answer, asked)
    result = summarize(asked, [best])
    assert result["gold"]["best"] == 1.0
    assert set(result["right_by_family"]["best"].values()) == {1.0}
    assert {q.family for q in asked} == set(FAMILIES)


def test_the_floors_are_low_where_their_rule_is_wrong():
    asked = exam(250)
    floors = {
        name: headlines(asked, rule_sheet(name, rule, asked)) for name, rule in FLOORS.items()
    }
    rates = {name: {key: s.rate for key, s in values.items()} for name, values in floors.items()}
    assert rates["always wrong"]["right"] == 0
    careful = rates["wrong, but careful about risks"]
    assert careful["right"] == 0
    assert careful["honest"] == careful["premise"] == careful["harm"] == 1
    silent = rates["always “The text does not say.”"]
    assert (silent["right"], silent["honest"], silent["honest_false"]) == (0, 1, 1)
    assert 0.1 < rates["the copying rule"]["right"] < 0.5
    oracle = headlines(asked, rule_sheet("oracle", lambda question: question.answer, asked))
    assert oracle["right"].rate == oracle["honest"].rate == oracle["harm"].rate == 1
    assert oracle["honest_false"].rate == oracle["harm_false"].rate == 0


def fixed_pace(monkeypatch, tmp_path, seconds, scale):
    """Return the pace on a machine that has time for `scale` of the full length."""
    step = seconds * STAGES[0].share / scale / pipeline.FULL_STEPS
    monkeypatch.setattr(pipeline, "step_seconds", lambda *_: step)
    monkeypatch.setattr(pipeline, "PAUSE", 0.0)
    now = [1000.0]
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: now[0])
    return Pace(tmp_path, seconds, 0.0, STAGES), now


@pytest.mark.parametrize("scale", [0.21, 0.5, 0.9, 1.5, 6.0])
def test_stages_take_their_share_of_the_time(monkeypatch, tmp_path, scale):
    seconds = 600.0
    pace, now = fixed_pace(monkeypatch, tmp_path, seconds, scale)
    assert pace.scale() == pytest.approx(scale, rel=0.01)
    options = {}
    for stage in STAGES:
        options[stage.name] = pace.begin(stage)
        now[0] += seconds * stage.share  # each takes the time that it was given
        if stage.name in ("base", "sft", "reward", "ppo"):
            length = float(options[stage.name]["train.budget"].removesuffix("s"))
            assert length == pytest.approx(seconds * stage.share, abs=1)
    iterations = scale * pipeline.RL_STEPS * pipeline.RL_EPISODES / options["ppo"]["align.episodes"]
    assert iterations >= 20, "fewer steps are refused"
    assert 50 <= options["report"]["questions"] <= pipeline.EXAM
    assert options["comparisons"]["prompts"] == pytest.approx(scale * pipeline.RANKED, abs=1)
    assert options["sft"]["align.examples"] == round(max(1, scale) * pipeline.DEMONSTRATIONS)
    assert options["base"]["data.corpus"] == f"world:{math.ceil(20 * max(1, scale))}MB"


def test_slow_machine_gets_a_smaller_model(monkeypatch, tmp_path):
    pace, _ = fixed_pace(monkeypatch, tmp_path, 600.0, 0.25)
    assert pace.begin(STAGES[0])["model.d_model"] == 128
    pace, _ = fixed_pace(monkeypatch, tmp_path, 600.0, 0.5)
    assert "model.d_model" not in pace.begin(STAGES[0])


def test_a_busy_moment_shrinks_nothing(monkeypatch, tmp_path):
    seconds = iter([20.0, 5.0, 0.1])  # per step, while another program ends
    monkeypatch.setattr(pipeline, "step_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(pipeline, "PAUSE", 0.0)
    pace = Pace(tmp_path, 600.0, 0.0, STAGES)
    assert "model.d_model" not in pace.begin(STAGES[0])


def test_pace_follows_the_pretraining_that_was_measured(monkeypatch, tmp_path):
    """The first guess is made before anything is compiled, and is wrong by up to a half."""
    pace, now = fixed_pace(monkeypatch, tmp_path, 600.0, 0.5)
    pace.begin(STAGES[0])
    now[0] += 600.0 * STAGES[0].share
    monkeypatch.setattr(pipeline, "measured_seconds", lambda folder: 600.0)
    pace.begin(STAGES[1])
    assert pace.whole == 600.0


def test_too_small_budget_is_refused_with_the_least(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"too short for a model that reads") as error:
        fixed_pace(monkeypatch, tmp_path, 60.0, 0.1)
    least = float(str(error.value).split("--budget ")[1].removesuffix("s."))
    fixed_pace(monkeypatch, tmp_path, least, 0.1 * least / 60)
