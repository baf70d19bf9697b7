"""A small text, a small recipe, one thread, and a cache of its own for every test session."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import settings

# Read once, when torch is loaded. Tests are small: a second thread costs more than it gains, most
# of all beside others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from shapes import check_shapes

from seq2chat.config import Recipe

check_shapes()

# How long an example takes says more about the machine's load than about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# The longest files, which start first: a file is run by one process, so that its fixtures are made
# once, and no process is left with a long one at the end.
LONGEST = [
    "alignment/test_doctor.py",
    "training/test_parallel.py",
    "scale/test_launch.py",
    "generation/test_engine.py",
    "alignment/test_runs.py",
    "training/test_kill.py",
    "alignment/test_parallel_alignment.py",
    "alignment/test_subject.py",
    "alignment/test_pipeline.py",
    "training/test_loop.py",
    "cli/test_cli.py",
    "training/test_stop.py",
    "generation/test_engine_failures.py",
]

WORDS = [
    "the",
    "cat",
    "dog",
    "bird",
    "sees",
    "hears",
    "a",
    "red",
    "green",
    "house",
    "tree",
    "and",
    "sun",
    "moon",
    "río",
    "straße",
    "over",
    "under",
    "runs",
    "sleeps",
]


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST)}

    def place(item):
        # The event loop of a browser runs to the end of its process, which refuses asyncio.run.
        in_browser = folder / "serving" / "web" in item.path.parents
        return in_browser, places.get(item.path, len(places))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep shards and downloads out of the user's cache, and the user's data out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SEQ2CHAT_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """About 6,000 characters of made-up sentences, with letters outside ASCII."""
    chance = random.Random(0)
    sentences = [
        " ".join(chance.choices(WORDS, k=chance.randint(3, 8))).capitalize() + "."
        for _ in range(180)
    ]
    file = tmp_path_factory.mktemp("text") / "sentences.txt"
    file.write_text("\n".join(sentences), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny_tables(text_file):
    """Tables of a recipe that trains 30 steps in about a second."""
    return {
        "data": {"corpus": str(text_file)},
        "tokenizer": {"vocab_size": 260},
        "model": {"context": 32, "n_layer": 2, "n_head": 2, "d_model": 32, "dropout": 0.1},
        "train": {
            "budget": "30 steps",
            "batch_size": 4,
            "seed": 1,
            "precision": "fp32",
            "compile": "off",
            "evals": 3,
            "checkpoints": 3,
            "samples": 1,
        },
    }


@pytest.fixture
def tiny_recipe(tiny_tables):
    return Recipe.from_tables(tiny_tables)


@pytest.fixture(scope="session")
def parallel_files(tmp_path_factory):
    """150 sentences and their word-for-word translations, last word first."""
    words = {
        "the": "die",
        "cat": "Katze",
        "sees": "sieht",
        "a": "eine",
        "moon": "Sonne",
        "red": "rote",
        "río": "straße",
    }
    chance, folder = random.Random(0), tmp_path_factory.mktemp("parallel")
    lines = [chance.choices(list(words), k=chance.randint(1, 9)) for _ in range(150)]
    (folder / "text.en").write_text(
        "\n".join(" ".join(line) for line in lines) + "\n", encoding="utf-8"
    )
    turned = [" ".join(words[word] for word in reversed(line)) for line in lines]
    (folder / "text.de").write_text("\n".join(turned) + "\n", encoding="utf-8")
    return {"source": str(folder / "text.en"), "target": str(folder / "text.de")}
