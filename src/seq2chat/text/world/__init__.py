"""A small generated English world: documents for pretraining, questions, an oracle that grades
answers, and labelers that rank them."""

from seq2chat.text.world.candidates import candidates, demonstration
from seq2chat.text.world.families import FAMILIES, READING, RISKS, questions
from seq2chat.text.world.labeler import Labeler, agreement, ceiling, labelers, pairs
from seq2chat.text.world.lexicon import SPLITS
from seq2chat.text.world.oracle import WEIGHTS, Gold, gold
from seq2chat.text.world.question import Question
from seq2chat.text.world.writing import VERSION, documents

__all__ = [
    "FAMILIES",
    "READING",
    "RISKS",
    "SPLITS",
    "VERSION",
    "WEIGHTS",
    "Gold",
    "Labeler",
    "Question",
    "agreement",
    "candidates",
    "ceiling",
    "demonstration",
    "documents",
    "gold",
    "labelers",
    "pairs",
    "questions",
]
