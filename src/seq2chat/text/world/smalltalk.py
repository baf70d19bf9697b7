"""Families that every newcomer types first: greetings, thanks, questions about the model, and
requests from outside of the world."""

from __future__ import annotations

from seq2chat.text.world.lexicon import Draw, Pool, pick
from seq2chat.text.world.question import Draft
from seq2chat.text.world.wordings import Wordings, questions

HELLO = "Hello! How can I help you?"
WELCOME = "You are welcome."
GOODBYE = "Goodbye! Have a nice day."
# The user's words by the reply.
GREETINGS: dict[str, Wordings] = {
    HELLO: {
        "train": (
            *("Hello!", "Hello.", "Hello, friend!", "Hello, how are you?", "Hello, my friend."),
            *("Good day.", "Good day to you!", "Good day, friend!", "It is nice to meet you."),
            *("Are you there?", "Hello, I am here.", "Can you help me?", "I need help."),
        ),
        "dev": ("Hello, can you hear me?",),
        "test": ("Hello there!", "Good morning!"),
    },
    WELCOME: {
        "train": (
            *("Thank you.", "Thank you!", "Thank you, that was good.", "That was good."),
            *(
                "You are a good helper. Thank you.",
                "Thank you, you are a good helper.",
                "Thank you, friend.",
            ),
            *("I thank you for that.", "Good work, thank you.", "Thank you so much!"),
        ),
        "dev": ("Thank you for the answer.",),
        "test": ("Thank you, you are very kind.",),
    },
    GOODBYE: {
        "train": (
            *("Goodbye!", "Goodbye.", "I must go now.", "I must go. Goodbye.", "Goodbye, friend."),
            *("Goodbye until the next day.", "I have to go. Goodbye!", "I have to go home now."),
            *("Now I have to sleep. Goodbye.", "This was nice. Goodbye.", "Goodbye, my friend!"),
        ),
        "dev": ("That is all. Goodbye.",),
        "test": ("Goodbye for now.",),
    },
}
# Within the 32 tokens that answers of the demo may have.
ME = "I am a small language model with a little world."
CAN = "I can answer questions about a text, and about people, places and things."
# What the user asks about the model, and the key of the reply.
IDENTITY: dict[str, tuple[str, Wordings]] = {
    ME: (
        "language model",
        {
            "train": (
                *questions(("Who are you?", "What are you?", "What is your name?"), "who you are"),
                *("Hello. What is your name?", "Are you a person?", "Are you a computer?"),
                *("Tell me: who are you?", "And you, who are you?", "What are you called?"),
            ),
            "dev": ("Do you know who you are?",),
            "test": ("Hello! Who are you?", "Please say who you are."),
        },
    ),
    CAN: (
        "answer questions",
        {
            "train": (
                *questions(("What can you do?", "What can I ask you?"), "what you can do"),
                *("How can you help me?", "What are you good at?", "What do you know?"),
                *("What can you do for me?", "What are you for?", "What is your work?"),
            ),
            "dev": ("I want to know what you can do.",),
            "test": ("What is it that you can do?",),
        },
    ),
}
OUTSIDE_ANSWER = "I do not know. I only know my little world."
OUTSIDE: Wordings = {
    "train": (
        *(
            "Who is the president?",
            "What is the weather today?",
            "Write a poem.",
            "What year is it?",
        ),
        *("How far is the moon?", "Tell me a joke.", "What is the meaning of life?"),
        *("How tall is the king?", "What is a computer?", "Who made the first car?"),
        *("What day is it today?", "Write a song about the sun.", "How fast is a car?"),
        *("Who was the first on the moon?", "How does a computer work?", "What is money?"),
        *(
            "Why is the sky blue?",
            "What is a poem?",
            "How many people are there?",
            "Write a letter.",
        ),
        *("How much is a car?", "What is the best food?", "Who is the best doctor?"),
        *(
            "Where does the sun go at night?",
            "How do I make a cake?",
            "When was the first day?",
        ),
    ),
    "dev": ("Who is the king?", "Write me a letter.", "How old is the sun?"),
    "test": (
        "Who won the game?",
        "Write a story about a car.",
        "How deep is the sea?",
        "What is a planet?",
    ),
}


def greeting(draw: Draw, pool: Pool) -> Draft:
    """Return a greeting, thanks or a goodbye."""
    reply = pick(draw, (HELLO, WELCOME, GOODBYE))
    key = {HELLO: "how can i help", WELCOME: "welcome", GOODBYE: "goodbye"}[reply]
    return _fixed(pick(draw, GREETINGS[reply][pool.wording]), reply, key, ("Yes.", "It is good."))


def identity(draw: Draw, pool: Pool) -> Draft:
    """Return a question about the model itself."""
    reply = pick(draw, (ME, CAN))
    key, wordings = IDENTITY[reply]
    wrong = (f"I am {pick(draw, pool.people).name}.", "Yes.")
    return _fixed(pick(draw, wordings[pool.wording]), reply, key, wrong)


def outside(draw: Draw, pool: Pool) -> Draft:
    """Return a request that nothing in the world answers."""
    text = pick(draw, OUTSIDE[pool.wording])
    wrong = (f"It is {pick(draw, pool.people).name}.", f"It is in {pick(draw, pool.spots)}.")
    return Draft(
        text=text, answer=OUTSIDE_ANSWER, check="admit", key=(), wrong=wrong, template=text
    )


def _fixed(text: str, answer: str, key: str, wrong: tuple[str, str]) -> Draft:
    return Draft(text=text, answer=answer, check="phrase", key=(key,), wrong=wrong, template=text)
