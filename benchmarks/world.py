"""How fast the built-in world is written and graded, on one core.

python benchmarks/world.py
"""

import json
import random
import time
from collections.abc import Callable

from peers import machine

from seq2chat.text.corpus import load_corpus
from seq2chat.text.world import candidates, gold, questions

MEGABYTES = 8


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of the fastest of three runs: what else runs on the machine does not
    count."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def main() -> None:
    corpus = load_corpus(f"world:{MEGABYTES}MB")
    asked = questions("train", 2100)
    generator = random.Random(0)
    answers = [
        (question, answer) for question in asked for answer in candidates(question, generator)
    ]
    line = {
        "benchmark": "world",
        "machine": machine(),
        "documents_mb_per_second": round(
            MEGABYTES / seconds(lambda: sum(map(len, corpus.documents()))), 1
        ),
        "questions_per_second": round(len(asked) / seconds(lambda: questions("train", len(asked)))),
        "grades_per_second": round(
            len(answers) / seconds(lambda: [gold(*answer) for answer in answers])
        ),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
