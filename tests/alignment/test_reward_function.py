"""A reward function of the user's gets the columns of the data that it takes by name."""

import json
from pathlib import Path

import pytest
import torch

from seq2chat.alignment.doctor import diagnose
from seq2chat.alignment.policy import load_policy
from seq2chat.alignment.reinforcement import load_prompts
from seq2chat.alignment.reward_function import FunctionScorer, load_function
from seq2chat.alignment.rollout import Rollout
from seq2chat.config import Recipe, UserError, recipe_tables

QUICK = {"align__max_tokens": 4, "train__budget": "1 steps"}
RL = QUICK | {"align__episodes": 8, "train__batch_size": 8}

REWARD = """
import json

def matches(prompts, answers, solution, level=None, **others):
    assert len(prompts) == len(answers) == len(solution) and level is None
    assert "id" in others and "prompt" not in others and "messages" not in others
    for prompt, right in zip(prompts, solution):
        assert prompt[-1].content == f"What is {right}?", (prompt, right)
    return [float(right in answer) for answer, right in zip(answers, solution)]

def plain(p, a):
    return [float(len(text)) for text in a]

def reward_len(completions, **kwargs):
    assert len(kwargs["prompts"]) == len(kwargs["solution"]) == len(completions)
    assert "answers" not in kwargs
    return [float(len(text)) for text in completions]

def proven(prompts, answers, proof):
    return [0.0] * len(answers)
"""


@pytest.fixture
def reward(tmp_path):
    file = tmp_path / "reward.py"
    file.write_text(REWARD)
    return str(file)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": f"What is {i}?", "answer": f"{i}.", "solution": str(i), "id": i}
        for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(
    ("method", "options"),
    [("ppo", RL), ("grpo", RL | {"align__group": 4}), ("sft", QUICK | {"train__batch_size": 4})],
)
@pytest.mark.parametrize("function", ["matches", "plain", "reward_len"])
def test_columns_reach_the_function(
    method, options, function, base, prompts, reward, align, tmp_path
):
    options = options | {"data__corpus": prompts, "align__reward": f"{reward}:{function}"}
    align(method, tmp_path / "run", base, **options)
    if method == "ppo":
        findings = diagnose(tmp_path / "run", practice=0)
        assert any(finding.part == "reward" for finding in findings)


@pytest.mark.parametrize("method", ["ppo", "sft"])
def test_a_column_that_is_missing_is_named_before_training(
    method, base, prompts, reward, align, tmp_path
):
    options = {
        **(RL if method == "ppo" else QUICK),
        "data__corpus": prompts,
        "align__reward": f"{reward}:proven",
    }
    with pytest.raises(
        UserError, match=r"needs the column 'proof', which 12 of 12 prompts in .* do not have"
    ):
        align(method, tmp_path / "run", base, **options)


def test_the_signature_says_which_columns_are_taken():
    def several(questions, texts, solution, *, level=1):
        return [0.0]

    def everything(prompts, answers, **columns):
        return [0.0]

    assert FunctionScorer(several, "f").columns == {"solution", "level"}
    assert FunctionScorer(several, "f").required == ["solution"]
    assert FunctionScorer(everything, "f").columns is None
    assert FunctionScorer(lambda p, a: [0.0], "f").columns == set()


def test_a_column_that_a_row_lacks_is_none():
    def takes(prompts, answers, level=0):
        return [0.0 if value is None else value for value in level]

    rollout = Rollout(
        [(), ()],
        [{"level": 3}, {}],
        ["a", "b"],
        torch.zeros(2, 1, dtype=torch.int64),
        torch.ones(2, 1, dtype=torch.bool),
        torch.ones(2, dtype=torch.bool),
        torch.zeros(2, 1),
    )
    assert FunctionScorer(takes, "f")(rollout).tolist() == [3.0, 0.0]


def call(function):
    """The scores of the answers "a" and "bb", with the columns that the function takes, and those
    that it needs."""
    scorer = FunctionScorer(function, "f")
    rows = [{"solution": 1}, {"solution": 2}]
    if scorer.columns is not None:
        rows = [{name: row[name] for name in scorer.columns} for row in rows]
    rollout = Rollout(
        [(), ()],
        rows,
        ["a", "bb"],
        torch.zeros(2, 1, dtype=torch.int64),
        torch.ones(2, 1, dtype=torch.bool),
        torch.ones(2, dtype=torch.bool),
        torch.zeros(2, 1),
    )
    return scorer(rollout).tolist(), scorer.required


LENGTHS = [1.0, 2.0]


@pytest.mark.parametrize(
    ("source", "required"),
    [
        ("lambda completions, **kwargs: lengths(completions)", []),
        ("lambda completions: lengths(completions)", []),
        ("lambda completions, solution, **kwargs: lengths(completions)", ["solution"]),
        (
            "lambda solution, completions: lengths(completions) if solution == [1, 2] else None",
            ["solution"],
        ),
        ("lambda answers, prompts: lengths(answers) if prompts == [(), ()] else None", []),
        ("lambda *, prompts, answers: lengths(answers)", []),
        (
            (
                "lambda **kwargs: lengths(kwargs['completions']) if kwargs['prompts'] == [(), ()] "
                "else None"
            ),
            [],
        ),
        ("lambda prompts, **kwargs: lengths(kwargs['completions'])", []),
        ("lambda p, a: lengths(a)", []),
        ("lambda prompts, texts, **kwargs: lengths(texts)", []),
        ("lambda prompts, answers, /: lengths(answers)", []),
        ("lambda *both: lengths(both[1])", []),
    ],
)
def test_function_is_called_by_parameter_names(source, required):
    function = eval(source, {"lengths": lambda texts: [float(len(text)) for text in texts]})
    assert call(function) == (LENGTHS, required)


@pytest.mark.parametrize(
    "function", [lambda: [0.0], lambda texts: [0.0], lambda prompts: [0.0], lambda *, a=1: [0.0]]
)
def test_a_function_that_takes_no_answers_is_refused(function):
    with pytest.raises(
        UserError,
        match=r"^f takes no prompts and answers; write it as def reward\(prompts, answers\)",
    ):
        FunctionScorer(function, "f")


def test_an_edited_column_is_other_data(base, prompts):
    def score(prompts, answers, solution):
        return [0.0] * len(answers)

    policy, tokenizer = load_policy(str(base))
    tables = {"data": {"corpus": prompts}, "align": {"max_tokens": 4}}
    recipe = Recipe.from_tables(recipe_tables("ppo"), tables)

    def fingerprint(function):
        scorer = FunctionScorer(function, "f")
        loader, _ = load_prompts(recipe, tokenizer, policy.context, scorer, lambda line: None)
        return loader.fingerprint

    plain = fingerprint(lambda p, a: [0.0])
    before = fingerprint(score)
    assert fingerprint(score) == before != plain
    file = Path(prompts)
    file.write_text(file.read_text().replace('"solution": "0"', '"solution": "zero"'))
    assert fingerprint(score) != before
    assert fingerprint(lambda p, a: [0.0]) == plain


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def judge(prompts, answers:\n", r"Line 1 of .*mine.py failed \(SyntaxError"),
        ("\nimport no_such_module\n", r"Line 2 of .*mine.py failed \(ModuleNotFoundError"),
        ("raise SystemExit(0)\n", r"Line 1 of .*mine.py failed \(SystemExit: 0\)"),
        (
            "def judge(prompts, answers):\n\n    return [1 / 0]\n",
            r"Line 3 of .*mine.py failed \(ZeroDivisionError",
        ),
        ("def judge(prompts, answers):\n    exit()\n", r"Line 2 of .*mine.py failed \(SystemExit"),
    ],
)
def test_an_error_in_the_file_is_one_sentence_with_its_line(body, message, tmp_path):
    (tmp_path / "mine.py").write_text(body)
    rollout = Rollout(
        [()],
        [{}],
        ["a"],
        torch.zeros(1, 1, dtype=torch.int64),
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, dtype=torch.bool),
        torch.zeros(1, 1),
    )
    with pytest.raises(UserError, match=message):
        FunctionScorer(load_function(f"{tmp_path / 'mine.py'}:judge"), "judge")(rollout)
