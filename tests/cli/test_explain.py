"""`seq2chat explain` as users type it."""

import json

import pytest

from seq2chat.cli.explain import explain
from seq2chat.config import UserError

EXACT = (
    "lsi",
    "attention",
    "multihead",
    "positions",
    "embedding",
    "masks",
    "decoding",
    "gpt3",
    "residual --depths 2 3",
)
MEASURED = ("fixed-vector", "rnn-vs-transformer", "bidirectional")


@pytest.fixture
def say(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> str:
        explain(command.split(), result_action="return_value")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("command", EXACT)
def test_a_topic_prints_its_numbers_and_leaves_its_figure(say, tmp_path, command):
    printed = say(command)
    figure = f"explain-{command.split()[0]}.png"
    assert printed.splitlines()[-1] == figure
    assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    assert max(map(len, printed.splitlines())) <= 110


def test_json_holds_the_same_numbers_unrounded(say):
    values = json.loads(say("attention --json"))
    assert values["topic"] == "attention"
    assert values["figure"] == "explain-attention.png"
    z = next(table for table in values["tables"] if table["title"].startswith("Z"))
    assert z["columns"] == ["", "1", "2", "3", "4"]
    assert z["rows"][3] == ["d", 8.25, 7.25, 7.75, 6.75]


def test_out_is_a_folder_or_a_file(say, tmp_path):
    assert say("masks --out new/folder").splitlines()[-1] == "new/folder/explain-masks.png"
    assert say("masks --out one.svg").splitlines()[-1] == "one.svg"
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")


def test_options_reach_their_topics(say, tmp_path):
    (tmp_path / "own.toml").write_text("x = [[1]]\nw_q = [[1]]\nw_k = [[1]]\nw_v = [[7]]")
    assert "x1  7.000" in say("attention --matrices own.toml")
    assert "-∞" in say("attention --causal")
    assert "head 4" in say("multihead --heads 4")
    assert "n = 50, d_model = 6" in say("positions --n 50 --d-model 6")
    assert "hello" in say("masks --text hello-there")
    hot = say("decoding --temperature 2 --top-k 0")
    assert "logit / 2 " in hot
    assert "-∞" not in hot
    tokens = {say(f"decoding --seed {seed}").split("drawn with seed")[1].split()[1] for seed in range(3)}
    assert len(tokens) > 1


def test_all_topics_are_listed_in_the_order_of_history(say):
    printed = say("")
    topics = [*(command.split()[0] for command in EXACT), *MEASURED]
    found = sorted(topics, key=lambda topic: printed.index(f" {topic} "))
    assert found == [
        "lsi", "fixed-vector", "attention", "multihead", "positions", "embedding", "residual", "rnn-vs-transformer",
        "masks", "bidirectional", "decoding", "gpt3",
    ]  # fmt: skip


def test_a_wrong_topic_is_corrected(capsys):
    with pytest.raises(SystemExit):
        explain(["atention"])
    assert 'Did you mean "attention"?' in " ".join(capsys.readouterr().err.split())


def test_results_of_others_are_shown_without_training(say, tmp_path):
    record = {"topic": "fixed-vector", "task": "copy", "d_model": 8, "seed": 0, "parameters": 9, "steps": 1}
    lines = [record | {"model": model, "lengths": [4], "exact": [0.25]} for model in ("fixed", "transformer")]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"topic": "other"}])))
    printed = say("fixed-vector --results results.jsonl")
    assert "transformer           9  0.25" in printed
    with pytest.raises(UserError, match="no result for bidirectional"):
        say("bidirectional --results results.jsonl")
    with pytest.raises(UserError, match="There is no file"):
        say("bidirectional --results none.jsonl")


def test_a_short_training(say, monkeypatch):
    """The whole way of a measured topic, at two steps."""
    from seq2chat.inside.lecture import fixed_vector

    for name, small in {"LENGTHS": (1, 4), "BATCH": 2, "UNSEEN": 2}.items():
        monkeypatch.setattr(fixed_vector, name, small)
    printed = say("fixed-vector --steps 2 --d-model 8 --task reverse")
    assert "reverse, all as large as a fixed context of width 8" in printed
    for bad in ("--steps 0", "--seeds 0", "--d-model 2"):
        with pytest.raises(UserError):
            say(f"fixed-vector {bad}")
