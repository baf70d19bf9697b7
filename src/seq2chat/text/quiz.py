"""Questions about a text, made from its own sentences by program, with answers that a program can
grade."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from seq2chat.config import check
from seq2chat.text.chat import Message
from seq2chat.text.world import Question
from seq2chat.text.world.lexicon import SPLITS, shuffle

LEAST_SENTENCES = 200
HELD_OUT = 10  # every tenth sentence is asked about in the test split only, and as many in dev
ENGLISH = frozenset(("the", "and", "of", "to", "a", "in", "was", "is", "that", "it"))
ENGLISH_SHARE = 0.12  # of the words of a text that is taken for English
SHORT, LONG = 4, 14  # words of a sentence that is asked about
TRIES = 300  # to find statements that can be told apart
UNANSWERED = 0.15  # share of questions of documents that the passage does not answer
LEAST_CHOICES = 4  # different names, places or sentences of each split
SUBJECTS = ("He", "She", "It", "They", "The", "A", "An")  # of sentences about places
NAMED = 2  # times that a word has to be capitalized within a sentence to be a name

_SENTENCE = re.compile(r"[^.!?。！？…\n][^.!?。！？…]*[.!?。！？…]")
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Prof|No|vs|[A-Z])\.")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_PLACE = re.compile(
    r"^(.{8,}?),? ((?:in|at|on|under|near|into|behind|by) "
    r"(?:the|a|an|his|her|my|its|their) (?:\w+ )?\w+)\.$"
)
_VERB = re.compile(
    r"\w+ed|\w{2,}s|was|had|went|said|came|saw|took|gave|got|made|felt|ran|sat|stood|told|knew|"
    r"thought|began|found|put|spoke|heard|left|kept|met|held|brought|read|wrote"
)


@dataclass(frozen=True)
class Statement:
    """A sentence with its number in the text. If it begins with a name and a verb, `name` is the
    name, and if it ends with a place, `place` is that."""

    number: int
    text: str
    name: str = ""
    place: str = ""

    @property
    def words(self) -> list[str]:
        return self.text[:-1].split()

    @property
    def is_short(self) -> bool:
        return SHORT <= len(self.words) <= LONG

    @property
    def rest(self) -> str:
        """The sentence without its name and full stop."""
        return self.text[len(self.name) : -1].strip()


class Quiz:
    """The questions that a text answers, in splits that ask about different sentences.

    - `finish`: the last two words of a sentence of the text
    - `next`: the sentence after another one
    - `who` and `where`: about one of several sentences that stand in the question
    - `unanswerable`: who did something that no sentence of the question says

    The last three are for English texts that name people. `families` lists those that the text has
    enough sentences for, and `missing` says why the others are absent.
    """

    def __init__(self, name: str, text: str) -> None:
        sentences = list(_sentences(text))
        check(
            len(sentences) >= LEAST_SENTENCES,
            f"{name} has {len(sentences)} sentences, and questions about a text take at least "
            f"{LEAST_SENTENCES}; give a longer text, or train on it without questions: seq2chat "
            f"train {name}.",
        )
        self.is_english = _is_english(text)
        names = _names(sentences) if self.is_english else set()
        self.statements = [_statement(at, text, names) for at, text in enumerate(sentences)]
        makers: dict[str, Callable[[random.Random, str], Question]] = {
            "finish": self._finish,
            "next": self._next,
            "who": self._who,
            "where": self._where,
            "unanswerable": self._unanswerable,
        }
        self._pools = {split: self._pool(split) for split in SPLITS}
        self.makers = {f: maker for f, maker in makers.items() if self._has(f)}
        self.families = tuple(self.makers)
        check(
            bool(self.families),
            f"{name} has no sentence of {SHORT} to {LONG} words to ask about; train on it without "
            f"questions: seq2chat train {name}.",
        )

    @property
    def missing(self) -> str:
        """Why some families are absent, or ""."""
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
        *facts, unsaid = self._scene(rng, "train", 3 + int(rng.random() * 3), kind)
        passage = " ".join(fact.text for fact in facts)
        parts = []
        for at in range(2 + int(rng.random() * 3)):
            fact = rng.choice(facts)
            question, answer = _ask(rng, fact), fact.text
            if unsaid.name and rng.random() < UNANSWERED:
                question, answer = _asked(rng, "train", f"who {unsaid.rest}"), _denial(unsaid)
            before = f"{passage} " if at == 0 else ""
            parts.append(f"Question: {before}{question}\nAnswer: {answer}")
        return "\n".join(parts)

    def _make(self, family: str, rng: random.Random, split: str) -> Question:
        for _ in range(TRIES):
            with suppress(LookupError):
                return self.makers[family](rng, split)
        raise AssertionError(f"{family} was tried before it was offered")

    # Pools

    def _pool(self, split: str) -> dict[str, list[Statement]]:
        chosen = [s for s in self.statements if s.is_short and _split(s.number) == split]
        return {
            "finish": [s for s in chosen if len(s.words) > SHORT],
            "next": [s for s in chosen if self._follower(s) is not None],
            "who": [s for s in chosen if s.name],
            "where": [s for s in chosen if s.place],
        }

    def _has(self, family: str) -> bool:
        """Return whether each split has sentences for the family, with different names."""
        kind = "who" if family == "unanswerable" else family
        if any(
            len({self._answer(kind, s) for s in pool[kind]}) < LEAST_CHOICES
            for pool in self._pools.values()
        ):
            return False
        if kind not in ("who", "where"):
            return True
        try:
            for split in SPLITS:
                for seed in range(LEAST_CHOICES):
                    self._scene(random.Random(seed), split, 3, kind)
        except LookupError:
            return False
        return True

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
        while True:
            lie = self._answer(kind, rng.choice(self._pools[split][kind]))
            if lie.lower() != right.lower():
                return lie

    def _follower(self, statement: Statement) -> Statement | None:
        after = statement.number + 1
        if after < len(self.statements) and self.statements[after].is_short:
            return self.statements[after]
        return None

    def _scene(self, rng: random.Random, split: str, n: int, kind: str) -> list[Statement]:
        """Return `n` statements for questions "who" or "where" that can be told apart.

        Raises LookupError if none are found.
        """
        facts: list[Statement] = []
        for _ in range(TRIES):
            fact = rng.choice(self._pools[split][kind])
            if all(_differ(fact, other) and _differ(other, fact) for other in facts):
                facts.append(fact)
            if len(facts) == n:
                return facts
        raise LookupError(f"no {n} different statements")

    # Families

    def _question(
        self, family: str, split: str, text: str, answer: str, key: str, wrong: tuple[str, ...]
    ) -> Question:
        rule = "admit" if family == "unanswerable" else "quoted"
        keys = () if family == "unanswerable" else (key,)
        message = Message("user", text)
        return Question(family, split, (message,), answer, rule, keys, wrong, family)

    def _finish(self, rng: random.Random, split: str) -> Question:
        s = rng.choice(self._pools[split]["finish"])
        end = self._answer("finish", s)
        wrong = tuple(f"{_capital(self._lie(rng, 'finish', split, end))}." for _ in range(2))
        ask = rng.choice(FINISH[split]).format(" ".join(s.words[:-2]))
        return self._question("finish", split, ask, f"{_capital(end)}.", end, wrong)

    def _next(self, rng: random.Random, split: str) -> Question:
        s = rng.choice(self._pools[split]["next"])
        follower = self._answer("next", s)
        wrong = tuple(self._lie(rng, "next", split, follower) for _ in range(2))
        ask = rng.choice(NEXT[split]).format(s.text)
        return self._question("next", split, ask, follower, follower, wrong)

    def _who(self, rng: random.Random, split: str) -> Question:
        facts = self._scene(rng, split, 2 + int(rng.random() * 2), "who")
        fact = facts[0]
        wrong = tuple(f"{other.name} {fact.rest}." for other in facts[1:])
        text = _passage(rng, facts, _asked(rng, split, f"who {fact.rest}"))
        return self._question("who", split, text, fact.text, fact.name, wrong)

    def _where(self, rng: random.Random, split: str) -> Question:
        facts = self._scene(rng, split, 2, "where")
        fact, other = facts
        wrong = (f"{fact.text[: -len(fact.place) - 1]}{other.place}.",)
        clause = f"where it is that {_beginning(fact)}"
        text = _passage(rng, facts, _asked(rng, split, clause))
        return self._question("where", split, text, fact.text, fact.place, wrong)

    def _unanswerable(self, rng: random.Random, split: str) -> Question:
        facts = self._scene(rng, split, 3, "who")
        target, *told = facts
        wrong = tuple(f"{other.name} {target.rest}." for other in told)
        text = _passage(rng, told, _asked(rng, split, f"who {target.rest}"))
        return self._question("unanswerable", split, text, _denial(target), "", wrong)


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
ASK = {
    "train": ("Tell me {}.", "Say {}.", "Can you tell me {}?", "I ask you {}.", "So, {}?"),
    "dev": ("I want to know {}.",),
    "test": ("Please say {}.",),
}


def _asked(rng: random.Random, split: str, clause: str) -> str:
    if split == "train" and rng.random() < 0.4:
        return f"{_capital(clause.replace('where it is that', 'where is it that'))}?"
    return rng.choice(ASK[split]).format(clause)


def _ask(rng: random.Random, fact: Statement) -> str:
    if fact.place and (not fact.name or rng.random() < 0.5):
        return _asked(rng, "train", f"where it is that {_beginning(fact)}")
    return _asked(rng, "train", f"who {fact.rest}")


def _beginning(fact: Statement) -> str:
    """Return the statement without its place, as it stands within a sentence."""
    text = fact.text[: -len(fact.place) - 1].strip().rstrip(",")
    return text if fact.name else f"{text[0].lower()}{text[1:]}"


def _denial(target: Statement) -> str:
    return f"The text does not say who {target.rest}."


def _passage(rng: random.Random, facts: Sequence[Statement], question: str) -> str:
    lines = [fact.text for fact in facts]
    shuffle(rng, lines)
    return f"{' '.join(lines)} {question}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _differ(one: Statement, other: Statement) -> bool:
    """Return whether `other` does not mention the name, the place and the deed of `one`."""
    deed = one.rest if one.name else ""
    return all(not words or words not in other.text for words in (one.name, one.place, deed))


def _split(number: int) -> str:
    return {0: "test", 1: "dev"}.get(number % HELD_OUT, "train")


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, each in one line, without those that contain quotes or
    brackets."""
    text = re.sub(r"\s+", " ", text)
    text = _ABBREVIATION.sub(r"\1", text)
    text = re.sub(r" ([.,;:!?])", r"\1", text)  # of a text that is split into words
    for found in _SENTENCE.findall(text):
        sentence = found.strip(" \"'“”‘’«»_*-—")
        if len(_WORD.findall(sentence)) > 1 and not re.search(r"[\"“”()\[\]{}_*<>|]", sentence):
            yield sentence


def _is_english(text: str) -> bool:
    words = [word.lower() for word in _WORD.findall(text[:200_000])]
    return sum(word in ENGLISH for word in words) >= ENGLISH_SHARE * max(1, len(words))


def _names(sentences: Sequence[str]) -> set[str]:
    """Return words that are nearly always capitalized within a sentence."""
    upper: Counter[str] = Counter()
    lower: Counter[str] = Counter()
    for sentence in sentences:
        for word in _WORD.findall(sentence)[1:]:
            (upper if word[0].isupper() else lower)[word.lower()] += 1
    return {
        _capital(word)
        for word, n in upper.items()
        if n >= NAMED and lower[word] * 10 < n and len(word) > 1 and word != "i"
    }


def _statement(number: int, text: str, names: set[str]) -> Statement:
    words = text.split()
    n = 1  # words of a name, such as "William Button"
    while n < min(3, len(words) - 1) and words[n][:1].isupper():
        n += 1
    is_about = words[0] in names and n < len(words) - 1 and _VERB.fullmatch(words[n])
    name = " ".join(words[:n]) if is_about else ""
    found = _PLACE.match(text) if names and (name or words[0] in SUBJECTS) else None
    return Statement(number, text, name, found[2] if found else "")
