"""Statements: the sentences of a text that questions are made from, with the person who acts and
the place, as far as a program can tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from seq2chat.text.world.lexicon import capital

SHORT, LONG = 4, 14  # words of a sentence that is asked about
MOST_CHARACTERS = 64  # of such a sentence, so that several fit into a question
BLOCK = 20  # sentences in a row that belong to one split
HELD_OUT = 10  # of ten blocks, one is for tests and one for development
ENGLISH = frozenset(("the", "and", "of", "to", "a", "in", "was", "is", "that", "it"))
ENGLISH_SHARE = 0.12  # of the words of a text that is taken for English
SUBJECTS = ("He", "She", "It", "They", "The", "A", "An")  # of sentences about places
NAMED = 2  # times that a word has to be capitalized within a sentence to be a name

_END = re.compile(r"(?<=[.!?…])\s+")
_PARAGRAPH = re.compile(r"\n\s*\n")
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Prof|vs|[A-HJ-Z])\.(?=\s)")
_ODD = re.compile(r"[\"“”„«»‘()\[\]{}_*<>|=@#]|(?<!\w)['’]|['’](?!\w)")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_PLACE = re.compile(
    r"^(.{8,}?),? ((?:in|on|under|near|behind|at(?= the| a)) "
    r"(?:the|a|an|his|her|my|its|their) (?:\w+ )?(\w+))\.$"
)
# What such a phrase may end with without being a place: "in the morning", "in a low voice".
_NO_PLACE = (
    *("morning", "evening", "afternoon", "night", "day", "week", "month", "year", "time", "moment"),
    *("end", "beginning", "voice", "whisper", "hurry", "way", "tone", "manner", "fact", "case"),
    *("joke", "mind", "life", "sense", "part"),
)
_PAST = re.compile(
    r"\w+ed|was|had|went|said|came|saw|took|gave|got|made|felt|ran|sat|stood|told|knew|thought|"
    r"began|found|put|spoke|heard|left|kept|met|held|brought|wrote"
)
_VERB = re.compile(rf"{_PAST.pattern}|\w{{2,}}s|read")


@dataclass(frozen=True)
class Statement:
    """A sentence with its number in the text. If it begins with a name and a verb, `name` is the
    name, and if it ends with a place, `place` is that."""

    number: int
    text: str
    name: str = ""
    place: str = ""

    @property
    def split(self) -> str:
        """The split whose questions are about this sentence."""
        return {0: "test", 1: "dev"}.get(self.number // BLOCK % HELD_OUT, "train")

    @property
    def words(self) -> list[str]:
        return self.text[:-1].split()

    @property
    def is_short(self) -> bool:
        return SHORT <= len(self.words) <= LONG and len(self.text) <= MOST_CHARACTERS

    @property
    def deed(self) -> str:
        """The sentence without its name and full stop, or "" without a name."""
        return self.text[len(self.name) : -1].strip() if self.name else ""

    @property
    def beginning(self) -> str:
        """The sentence without its place, as it stands within a sentence, or "" without a place."""
        if not self.place:
            return ""
        text = self.text[: -len(self.place) - 1].strip().rstrip(",")
        return text if self.name else f"{text[0].lower()}{text[1:]}"

    def differs(self, other: Statement) -> bool:
        """Return whether a question about this statement is not also one about the other."""
        theirs = other.text.lower()
        parts = (self.name, self.place, self.deed, self.beginning)
        return not any(part and part.lower() in theirs for part in parts)


def statements(text: str) -> list[Statement]:
    """Return the sentences of a text that end with a full stop or the like, without those that
    contain quotes or brackets. Sentences in a row have numbers in a row."""
    numbered = list(_sentences(text))
    english = is_english(text)
    names = _names([sentence for _, sentence in numbered]) if english else set()
    return [_statement(number, sentence, names, english) for number, sentence in numbered]


def is_english(text: str) -> bool:
    words = [word.lower() for word in _WORD.findall(text[:200_000])]
    return sum(word in ENGLISH for word in words) >= ENGLISH_SHARE * max(1, len(words))


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    number = 0
    for paragraph in _PARAGRAPH.split(text):
        # A text may be split into words, with a space before each full stop.
        line = re.sub(r" ([.,;:!?])", r"\1", " ".join(paragraph.split()))
        line = _ABBREVIATION.sub(r"\1", line)
        for sentence in _END.split(line):
            number += 1
            is_whole = sentence[-1:] in tuple(".!?…") and not _ODD.search(sentence)
            if is_whole and len(_WORD.findall(sentence)) > 1:
                yield number, sentence
        number += 1  # the first sentence of a paragraph does not follow the last of another


def _names(sentences: Sequence[str]) -> set[str]:
    """Return words that are nearly always capitalized within a sentence."""
    upper: Counter[str] = Counter()
    lower: Counter[str] = Counter()
    for sentence in sentences:
        for word in _WORD.findall(sentence)[1:]:
            (upper if word[0].isupper() else lower)[word.lower()] += 1
    return {
        capital(word)
        for word, n in upper.items()
        if n >= NAMED and lower[word] * 10 < n and len(word) > 1 and word.isalpha()
    }


def _statement(number: int, text: str, names: set[str], english: bool) -> Statement:
    words = text.split()
    n = 1  # words of a name, such as "William Button"
    while n < min(3, len(words) - 1) and words[n][:1].isupper():
        n += 1
    is_about = words[0] in names and n < len(words) - 1 and _VERB.fullmatch(words[n])
    # "German soldiers marched" is not about somebody called German.
    is_plural = words[n].endswith("s") and _PAST.fullmatch(words[min(n + 1, len(words) - 1)])
    name = " ".join(words[:n]) if is_about and (words[n] == "was" or not is_plural) else ""
    match = _PLACE.match(text) if english and (name or words[0] in SUBJECTS) else None
    is_place = match is not None and match[3].lower() not in _NO_PLACE
    return Statement(number, text, name, match[2] if match and is_place else "")
