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
    "scale",
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
def test_a_topic_prints_numbers_and_draws_a_figure(say, tmp_path, command):
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
    tokens = {
        say(f"decoding --seed {seed}").split("drawn with seed")[1].split()[1] for seed in range(3)
    }
    assert len(tokens) > 1


def test_all_topics_are_listed_in_the_order_of_history(say):
    printed = say("")
    topics = [*(command.split()[0] for command in EXACT), *MEASURED]
    found = sorted(topics, key=lambda topic: printed.index(f" {topic} "))
    assert found == [
        "lsi",
        "fixed-vector",
        "attention",
        "multihead",
        "positions",
        "embedding",
        "residual",
        "rnn-vs-transformer",
        "masks",
        "bidirectional",
        "decoding",
        "gpt3",
        "scale",
    ]


def test_a_wrong_topic_is_corrected(capsys):
    with pytest.raises(SystemExit):
        explain(["atention"])
    assert 'Did you mean "attention"?' in " ".join(capsys.readouterr().err.split())


def test_results_are_shown_without_training(say, tmp_path):
    record = {
        "topic": "fixed-vector",
        "task": "copy",
        "d_model": 8,
        "seed": 0,
        "parameters": 9,
        "steps": 1,
    }
    lines = [
        record | {"model": model, "lengths": [4], "exact": [0.25]}
        for model in ("fixed", "transformer")
    ]
    (tmp_path / "results.jsonl").write_text(
        "\n".join(map(json.dumps, [*lines, {"topic": "other"}]))
    )
    printed = say("fixed-vector --results results.jsonl")
    assert "transformer           9  0.25" in printed
    with pytest.raises(UserError, match="no result for bidirectional"):
        say("bidirectional --results results.jsonl")
    with pytest.raises(UserError, match="There is no file"):
        say("bidirectional --results none.jsonl")


def test_a_task_selects_among_results(say, tmp_path):
    record = {
        "topic": "fixed-vector",
        "d_model": 8,
        "seed": 0,
        "parameters": 9,
        "model": "fixed",
        "lengths": [4],
    }
    record |= {"steps": 1}
    lines = [
        record | {"task": "copy", "exact": [0.25]},
        record | {"task": "reverse", "exact": [0.75]},
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    both, one = (
        say(f"fixed-vector --results results.jsonl{task}") for task in ("", " --task reverse")
    )
    assert ("0.25" in both, "0.75" in both) == (True, True)
    assert ("0.25" in one, "0.75" in one) == (False, True)
    with pytest.raises(UserError, match="no result for captions"):
        say("fixed-vector --results results.jsonl --task captions")


@pytest.mark.parametrize(
    ("topic", "option"),
    [
        *((topic, option) for topic in MEASURED for option in ("--seeds 1", "--steps 1000")),
        ("fixed-vector", "--d-model 64"),
    ],
)
def test_results_cannot_be_measured_otherwise(say, topic, option):
    with pytest.raises(UserError, match=f"{option.split()[0]} cannot change it"):
        say(f"{topic} --results results.jsonl {option}")


@pytest.mark.parametrize("bad", [b"{", b"[1]", b"null", b"3", b"\xff", b""])
def test_an_invalid_line_is_named(say, tmp_path, bad):
    (tmp_path / "results.jsonl").write_bytes(b'{"topic": "other"}\n' + bad + b"\n")
    with pytest.raises(UserError, match=r"^results.jsonl, line 2, is not a JSON object; [^\n]+\.$"):
        say("bidirectional --results results.jsonl")


def test_a_result_that_lacks_a_number_is_named(say, tmp_path):
    (tmp_path / "results.jsonl").write_text('{"topic": "bidirectional", "model": "both sides"}')
    with pytest.raises(UserError, match="a result for bidirectional lacks 'text'"):
        say("bidirectional --results results.jsonl")


@pytest.mark.parametrize("bad", [{"model": "lstm"}, {"exact": None}, {"exact": [0.5, 0.5]}])
def test_a_changed_result_is_reported(say, tmp_path, bad):
    record = {
        "topic": "fixed-vector",
        "task": "copy",
        "d_model": 8,
        "seed": 0,
        "parameters": 9,
        "steps": 1,
    }
    record |= {"model": "fixed", "lengths": [4], "exact": [0.25]} | bad
    (tmp_path / "results.jsonl").write_text(json.dumps(record))
    with pytest.raises(
        UserError,
        match=r"a result for fixed-vector is not as it was measured \([^\n]+\); measure it",
    ):
        say("fixed-vector --results results.jsonl")


def test_a_prompt_without_a_model_is_refused(say):
    with pytest.raises(UserError, match="--prompt is for a model; give one with --run"):
        say("decoding --prompt robot")


@pytest.mark.parametrize("bad", ["--steps 0", "--seeds 0", "--seeds -1"])
def test_options_are_checked_before_measuring(say, monkeypatch, bad):
    from seq2chat.course import rnn_vs_transformer

    monkeypatch.setattr(rnn_vs_transformer, "measure_speed", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="write a positive number"):
        say(f"rnn-vs-transformer {bad}")


def test_speed_and_recall_are_measured_in_one_go(say, monkeypatch):
    from seq2chat.course import rnn_vs_transformer

    small = {
        "LENGTHS": (4, 8),
        "TOKENS": 16,
        "LONGEST": 12,
        "BATCH": 2,
        "UNSEEN": 2,
        "DISTANCES": (0, 9),
    }
    for name, value in (small | {"SPEED_WIDTH": 16, "RECALL_WIDTH": 16}).items():
        monkeypatch.setattr(rnn_vs_transformer, name, value)
    values = json.loads(say("rnn-vs-transformer --steps 2 --json"))
    assert values["tables"][0]["columns"] == ["", "parameters", "4", "8"]
    assert [row[0] for row in values["tables"][1]["rows"]] == ["RNN", "Transformer"]


def test_a_short_training(say, monkeypatch):
    """The whole way of a measured topic, at two steps."""
    from seq2chat.course import fixed_vector

    for name, small in {"LENGTHS": (1, 4), "BATCH": 2, "UNSEEN": 2}.items():
        monkeypatch.setattr(fixed_vector, name, small)
    printed = say("fixed-vector --steps 2 --d-model 8 --task reverse")
    assert "reverse, all as large as a fixed context of width 8" in printed
    for bad in ("--steps 0", "--seeds 0", "--d-model 2"):
        with pytest.raises(UserError):
            say(f"fixed-vector {bad}")
