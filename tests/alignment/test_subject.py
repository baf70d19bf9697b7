"""The pipeline on a user's text, and what a pipeline is resumed with."""

import json
import random
import threading

import pytest

from seq2chat.alignment import pipeline
from seq2chat.alignment.pipeline import STAGES, run_pipeline
from seq2chat.alignment.subject import a_text, check_same, record, the_world
from seq2chat.config import UserError
from seq2chat.text.world.lexicon import ALL
from seq2chat.text.world.stories import story
from seq2chat.training.run_folder import finished_stages, open_run

SMALL = {"train.precision": "fp32", "train.compile": "off"}
TINY = {
    "base": {
        **SMALL,
        "tokenizer.vocab_size": 500,
        "model.n_layer": 2,
        "model.d_model": 64,
        "model.n_head": 4,
        "train.init": "random",
        "train.budget": "8 steps",
    },
    "sft": {**SMALL, "train.budget": "5 steps", "align.examples": 100},
    "comparisons": {"prompts": 40},
    "reward": {**SMALL, "train.budget": "5 steps"},
    "ppo": {
        "train.budget": "3 steps",
        "align.examples": 60,
        "align.episodes": 16,
        "train.batch_size": 8,
        "align.max_tokens": 8,
    },
    "report": {"questions": 50},
}


@pytest.fixture(scope="module")
def my_text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "my.txt"
    draw = random.Random(1).random
    file.write_text("\n\n".join(story(draw, ALL) for _ in range(300)))
    return file


def _lines(file):
    return file.read_text().splitlines()


def test_a_text_goes_through_all_stages(my_text, tmp_path):
    lines: list[str] = []
    for _ in run_pipeline(tmp_path, threading.Event(), lines.append, TINY, text=my_text):
        pass
    assert list(finished_stages(tmp_path)) == [stage.name for stage in STAGES]
    report = json.loads((tmp_path / "report.json").read_text())
    families = ["who", "where", "unanswerable", "finish", "next"]
    assert list(report["right_by_family"]["ppo"]) == families
    assert set(report["headlines"]["ppo"]) == {"right", "honest", "honest_false", "form"}
    assert report["headlines"]["always wrong"]["right"]["rate"] == 0
    page = (tmp_path / "report.md").read_text()
    assert "harm" not in page
    assert any("families of questions: finish, next, who" in line for line in lines)
    mix = open_run(tmp_path / "sft").recipe().align.ptx_corpus
    assert mix.endswith("text/corpus.jsonl")


def test_the_base_reads_the_text_and_as_much_about_it(my_text, tmp_path):
    subject = a_text(my_text, tmp_path, print)
    assert not list(tmp_path.iterdir()), "nothing is written before the pipeline is accepted"
    subject.prepare()
    rows = [json.loads(line)["text"] for line in _lines(tmp_path / "text/corpus.jsonl")]
    pieces = [row for row in rows if not row.startswith("Question: ")]
    text = my_text.read_text()
    assert all(piece in text for piece in pieces)
    assert sum(map(len, set(pieces))) == len(text)
    assert 0.4 < sum(map(len, pieces)) / sum(map(len, rows)) < 0.8
    assert subject.tables("base")["data"]["corpus"] == str(tmp_path / "text/corpus.jsonl")
    assert subject.tables("report") == {}


def test_a_pipeline_is_resumed_with_what_it_was_started_with(my_text, tmp_path):
    world, text = tmp_path / "world", tmp_path / "text"
    record(world, the_world(), 1)
    (world / "stages.json").write_text("{}")
    check_same(world, the_world(), 1)
    with pytest.raises(UserError, match="was started with seed 1, and not with seed 2"):
        check_same(world, the_world(), 2)
    mine = a_text(my_text, text, print)
    with pytest.raises(UserError, match=r"with version \d+ of the world, and not with .*my.txt"):
        check_same(world, mine, 1)
    record(text, mine, 1)
    (text / "stages.json").write_text("{}")
    moved = tmp_path / "moved.txt"
    moved.write_text(my_text.read_text())
    check_same(text, a_text(moved, text, print), 1)
    with pytest.raises(UserError, match=r"was started with .*my.txt, and not with version"):
        check_same(text, the_world(), 1)
    moved.write_text(my_text.read_text() + " Tom sees a lion.")
    with pytest.raises(UserError, match=r"was started with .*my.txt, and not with .*moved.txt"):
        check_same(text, a_text(moved, text, print), 1)


def test_a_pipeline_of_another_world_is_refused(tmp_path):
    old = {"name": "version 7 of the world", "identity": {"world": 7}, "seed": 1}
    (tmp_path / "about.json").write_text(json.dumps(old))
    (tmp_path / "stages.json").write_text("{}")
    with pytest.raises(UserError, match="was started with version 7 of the world"):
        check_same(tmp_path, the_world(), 1)
    (tmp_path / "about.json").unlink()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.toml").touch()
    with pytest.raises(UserError, match="older version"):
        check_same(tmp_path, the_world(), 1)


def test_a_refused_start_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "step_seconds", lambda *_: 10.0)
    with pytest.raises(UserError, match="too short for a model that reads"):
        list(run_pipeline(tmp_path / "demo", threading.Event(), print, seconds=60.0))
    assert not (tmp_path / "demo").exists()


def test_a_timed_pipeline_is_resumed_in_the_time_that_is_left(tmp_path, monkeypatch):
    """Its stages are stopped when they have begun, and none forgets the time it used."""
    monkeypatch.setattr(pipeline, "step_seconds", lambda *_: 0.001)
    changes = {**TINY, "base": {**TINY["base"], "data.corpus": "world:1MB"}}
    mix = {"align.ptx_corpus": "world:1MB"}
    changes |= {name: {**TINY[name], **mix} for name in ("sft", "ppo")}
    for name in ("sft", "sft", "ppo"):
        stop = threading.Event()
        for moment in run_pipeline(tmp_path, stop, print, changes, seconds=3000.0):
            if moment.stage.name == name and moment.text.startswith("step"):
                stop.set()
    used = json.loads((tmp_path / "stages.json").read_text())
    newest = max((tmp_path / "sft" / "checkpoints").iterdir())
    progress = json.loads((newest / "trainer" / "progress.json").read_text())
    assert used["sft"] >= progress["seconds"] - 0.1
    assert pipeline.measured_seconds(tmp_path) > 0
    mix = open_run(tmp_path / "sft").recipe().align.ptx_corpus
    assert mix.endswith("world:1MB")
    for _ in run_pipeline(tmp_path, threading.Event(), print, changes, seconds=3000.0):
        pass
    assert list(finished_stages(tmp_path)) == [stage.name for stage in STAGES]


def test_no_time_is_left_for_the_next_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "step_seconds", lambda *_: 0.001)
    (tmp_path / "stages.json").write_text(json.dumps({"base": 500.0, "sft": 90.0}))
    record(tmp_path, the_world(), 1)
    with pytest.raises(UserError, match=r"too short after the 590s already used .*--budget"):
        list(run_pipeline(tmp_path, threading.Event(), print, seconds=590.0))


def test_a_demo_that_an_older_version_finished_is_left_alone(tmp_path):
    (tmp_path / "stages.json").write_text(json.dumps({stage.name: 1.0 for stage in STAGES}))
    assert not list(run_pipeline(tmp_path, threading.Event(), print))
    assert [file.name for file in tmp_path.iterdir()] == ["stages.json"]
