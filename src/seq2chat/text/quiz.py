"""Questions about a text, made from its own sentences by program, with answers that a program can
grade."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from seq2chat.config import check
from seq2chat.text.chat import Message
from seq2chat.text.statements import LONG, SHORT, Statement, is_english, statements
from seq2chat.text.world import Question, gold
from seq2chat.text.world.lexicon import SPLITS, capital, shuffle, words

LEAST_SENTENCES = 200
LEAST_CHOICES = 4  # different answers in each split
TRIES = 300  # to find statements that can be told apart
UNANSWERED = 0.15  # share of questions of documents that the passage does not answer
DENIAL = "The text does not say."

FINISH = {
    "train": ("How does this sentence end: {} ...?", "Finish this sentence: {} ..."),
    "dev": ("What are the last two words here: {} ...?",),
    "test": ("Please end this sentence: {} ...",),
}
NEXT = {
    "train": ("What comes after this: {}", "Which sentence is the next one: {}"),
    "dev": ("Go on with the text: {}",),
    "test": ("Please say what follows: {}",),
}
WHO = {
    "train": ("Who {}?", "Tell me who {}.", "Say who {}.", "Can you tell me who {}?"),
    "dev": ("I want to know who {}.",),
    "test": ("Please say who {}.",),
}
WHERE = {
    "train": ("Where is it that {}?", "Tell me where it is that {}.", "Say where {}."),
    "dev": ("I want to know where {}.",),
    "test": ("Please say where it is that {}.",),
}


class Quiz:
    """The questions that a text answers, in splits that ask about different sentences.

    - `finish`: the last two words of a sentence of the text
    - `next`: the sentence after another one
    - `who` and `where`: about one of several sentences that stand in the question
    - `unanswerable`: who did something that no sentence of the question says

    The last three are for English texts that name people. `families` lists those that the text has
    enough sentences for. Raises UserError if there is none.
    """

    def __init__(self, name: str, text: str) -> None:
        self.statements = statements(text)
        check(
            len(self.statements) >= LEAST_SENTENCES,
            f"{name} has {len(self.statements)} sentences, and questions about a text take at least"
            f" {LEAST_SENTENCES}; give a longer text, or train on it without questions: seq2chat "
            f"train {name}.",
        )
        self.is_english = is_english(text)
        self._by_number = {statement.number: statement for statement in self.statements}
        self._pools = {split: self._pool(split) for split in SPLITS}
        self._makers: dict[str, Callable[[random.Random, str], Question]] = {
            "finish": self._finish,
            "next": self._next,
            "who": self._who,
            "where": self._where,
            "unanswerable": self._unanswerable,
        }
        self.families = tuple(family for family in self._makers if self._has(family))
        check(
            bool(self.families),
            f"{name} has too few sentences of {SHORT} to {LONG} words to ask about; train on it "
            f"without questions: seq2chat train {name}.",
        )

    @property
    def missing(self) -> str:
        """The reason why families are absent, or ""."""
        absent = [f for f in ("who", "where", "unanswerable") if f not in self.families]
        if not absent:
            return ""
        if not self.is_english:
            return (
                "The text is not English, so questions are only about the ends of its sentences "
                "and what comes next."
            )
        return f"The text has too few sentences for questions of the kinds {', '.join(absent)}."

    def questions(self, split: str, n: int, seed: int = 0) -> list[Question]:
        """Return `n` questions of a split ("train", "dev" or "test"), evenly distributed over the
        families and shuffled. They are a function of the text and the arguments."""
        rng = random.Random(f"quiz/{split}/{seed}")
        made = [self._make(self.families[i % len(self.families)], rng, split) for i in range(n)]
        shuffle(rng, made)
        return made

    def documents(self, n: int, seed: int) -> Iterator[str]:
        """Yield up to `n` documents of questions with right answers, several behind each passage,
        from which a base model learns to look things up."""
        rng = random.Random(f"quiz/documents/{seed}")
        kinds = [kind for kind in ("who", "where") if kind in self.families]
        for _ in range(n if kinds else 0):
            with suppress(LookupError):
                yield self._document(rng, rng.choice(kinds))

    def _document(self, rng: random.Random, kind: str) -> str:
        *facts, unsaid = self._scene(rng, "train", 3 + int(rng.random() * 2), kind)
        passage = " ".join(fact.text for fact in facts)
        parts = []
        for at in range(2 + int(rng.random() * 2)):
            fact = rng.choice(facts)
            is_place = not fact.name or (fact.place and rng.random() < 0.5)
            question = _where(rng, "train", fact) if is_place else _who(rng, "train", fact)
            answer = fact.text
            if unsaid.name and rng.random() < UNANSWERED:
                question, answer = _who(rng, "train", unsaid), DENIAL
            before = f"{passage} " if at == 0 else ""
            parts.append(f"Question: {before}{question}\nAnswer: {answer}")
        return "\n".join(parts)

    def _make(self, family: str, rng: random.Random, split: str) -> Question:
        for _ in range(TRIES):
            with suppress(LookupError):
                question = self._makers[family](rng, split)
                if _is_gradable(question):
                    return question
        raise LookupError(f"no question of the family {family}")

    # Sentences

    def _pool(self, split: str) -> dict[str, list[Statement]]:
        chosen = [s for s in self.statements if s.is_short and s.split == split]
        return {
            "finish": [s for s in chosen if len(s.words) > SHORT],
            "next": [s for s in chosen if self._follower(s) is not None],
            "who": [s for s in chosen if s.name],
            "where": [s for s in chosen if s.place],
        }

    def _has(self, family: str) -> bool:
        """Return whether each split has enough different sentences for the family."""
        kind = "who" if family == "unanswerable" else family
        for split in SPLITS:
            pool = self._pools[split][kind]
            if len({tuple(words(self._answer(kind, s))) for s in pool}) < LEAST_CHOICES:
                return False
            try:
                for seed in range(LEAST_CHOICES):
                    self._make(family, random.Random(seed), split)
                    if kind in ("who", "where"):  # for `documents`
                        self._scene(random.Random(seed), split, 4, kind)
            except LookupError:
                return False
        return True

    def _follower(self, statement: Statement) -> Statement | None:
        """Return the next sentence if it is short, too, and of the same split."""
        after = self._by_number.get(statement.number + 1)
        fits = after is not None and after.is_short and after.split == statement.split
        return after if fits else None

    def _answer(self, kind: str, statement: Statement) -> str:
        """Return the words that a question about the statement asks for."""
        if kind == "next":
            follower = self._follower(statement)
            assert follower is not None
            return follower.text
        end = " ".join(statement.words[-2:])
        return {"finish": end, "who": statement.name, "where": statement.place}[kind]

    def _lie(self, rng: random.Random, kind: str, split: str, right: str) -> str:
        """Return a wrong answer: the right one to another question."""
        for _ in range(TRIES):
            lie = self._answer(kind, rng.choice(self._pools[split][kind]))
            if " ".join(words(right)) not in " ".join(words(lie)):
                return lie
        raise LookupError("no other answer")

    def _scene(self, rng: random.Random, split: str, n: int, kind: str) -> list[Statement]:
        """Return `n` statements for questions "who" or "where" that can be told apart.

        Raises LookupError if none are found.
        """
        facts: list[Statement] = []
        for _ in range(TRIES):
            fact = rng.choice(self._pools[split][kind])
            if all(fact.differs(other) and other.differs(fact) for other in facts):
                facts.append(fact)
            if len(facts) == n:
                return facts
        raise LookupError(f"no {n} different statements")

    # Families

    def _finish(self, rng: random.Random, split: str) -> Question:
        s = rng.choice(self._pools[split]["finish"])
        end = self._answer("finish", s)
        wrong = tuple(f"{capital(self._lie(rng, 'finish', split, end))}." for _ in range(2))
        text = rng.choice(FINISH[split]).format(" ".join(s.words[:-2]))
        return _question("finish", split, text, f"{capital(end)}.", end, wrong)

    def _next(self, rng: random.Random, split: str) -> Question:
        s = rng.choice(self._pools[split]["next"])
        follower = self._answer("next", s)
        wrong = tuple(self._lie(rng, "next", split, follower) for _ in range(2))
        text = rng.choice(NEXT[split]).format(s.text)
        return _question("next", split, text, follower, follower, wrong)

    def _who(self, rng: random.Random, split: str) -> Question:
        facts = self._scene(rng, split, 2 + int(rng.random() * 2), "who")
        fact = facts[0]
        wrong = tuple(f"{other.name} {fact.deed}." for other in facts[1:])
        text = _passage(rng, facts, _who(rng, split, fact))
        return _question("who", split, text, fact.text, fact.name, wrong)

    def _where(self, rng: random.Random, split: str) -> Question:
        fact, other = facts = self._scene(rng, split, 2, "where")
        wrong = (f"{fact.text[: -len(fact.place) - 1]}{other.place}.",)
        text = _passage(rng, facts, _where(rng, split, fact))
        return _question("where", split, text, fact.text, fact.place, wrong)

    def _unanswerable(self, rng: random.Random, split: str) -> Question:
        unsaid, *facts = self._scene(rng, split, 3, "who")
        wrong = tuple(f"{fact.name} {unsaid.deed}." for fact in facts)
        text = _passage(rng, facts, _who(rng, split, unsaid))
        return _question("unanswerable", split, text, DENIAL, "", wrong)


def _is_gradable(question: Question) -> bool:
    """Return whether the oracle tells the right answer from the wrong ones. It would take "I do not
    know." for a refusal to answer."""
    grade = gold(question, question.answer)
    lies = [gold(question, wrong).correctness for wrong in question.wrong]
    return grade.correctness == 1 and grade.harmlessness == 1 and not any(lies)


def _question(
    family: str, split: str, text: str, answer: str, key: str, wrong: tuple[str, ...]
) -> Question:
    rule = "quoted" if key else "admit"
    keys = (key,) if key else ()
    return Question(family, split, (Message("user", text),), answer, rule, keys, wrong, family)


def _who(rng: random.Random, split: str, fact: Statement) -> str:
    return rng.choice(WHO[split]).format(fact.deed)


def _where(rng: random.Random, split: str, fact: Statement) -> str:
    return rng.choice(WHERE[split]).format(fact.beginning)


def _passage(rng: random.Random, facts: Sequence[Statement], question: str) -> str:
    lines = [fact.text for fact in facts]
    shuffle(rng, lines)
    return f"{' '.join(lines)} {question}"
