"""The pipeline on a user's text, and what a pipeline is resumed with."""

import json
import random
import threading

import pytest

from seq2chat.alignment.pipeline import STAGES, run_pipeline
from seq2chat.alignment.subject import a_text, the_world
from seq2chat.config import UserError
from seq2chat.text.world.lexicon import ALL
from seq2chat.text.world.stories import story
from seq2chat.training.run_folder import finished_stages

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


def test_the_base_reads_the_whole_text_and_questions_about_it(my_text, tmp_path):
    subject = a_text(my_text, tmp_path, 1, print)
    rows = [json.loads(line)["text"] for line in _lines(tmp_path / "text/corpus.jsonl")]
    pieces = [row for row in rows if not row.startswith("Question: ")]
    assert "".join(pieces) == my_text.read_text()
    assert len(rows) > 2 * len(pieces)
    assert subject.tables("base")["data"]["corpus"] == str(tmp_path / "text/corpus.jsonl")
    assert subject.tables("report") == {}


def test_a_pipeline_is_resumed_with_what_it_was_started_with(my_text, tmp_path):
    world, text = tmp_path / "world", tmp_path / "text"
    world.mkdir()
    the_world(world, 1)
    the_world(world, 1)
    with pytest.raises(UserError, match="was started with seed 1, and not with seed 2"):
        the_world(world, 2)
    with pytest.raises(UserError, match=r"was started with the world, and not with .*my.txt"):
        a_text(my_text, world, 1, print)
    assert [file.name for file in world.iterdir()] == ["about.json"]
    text.mkdir()
    a_text(my_text, text, 1, print)
    with pytest.raises(UserError, match=r"was started with .*my.txt, and not with the world"):
        the_world(text, 1)
    my_text.write_text(my_text.read_text() + " Tom sees a lion.")
    with pytest.raises(UserError, match="another content"):
        a_text(my_text, text, 1, print)


def test_a_pipeline_of_another_world_is_refused(tmp_path):
    (tmp_path / "about.json").write_text('{"subject": "world", "version": 7, "seed": 1}')
    with pytest.raises(UserError, match="was started with version 7 of the world"):
        the_world(tmp_path, 1)
    (tmp_path / "about.json").unlink()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.toml").touch()
    with pytest.raises(UserError, match="older version"):
        the_world(tmp_path, 1)
