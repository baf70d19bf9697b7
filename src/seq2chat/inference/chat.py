"""A conversation with a model: it keeps the turns, streams the answers, and drops the oldest turns
when the context is full."""

from collections.abc import Generator
from pathlib import Path

from seq2chat.config import UserError, check
from seq2chat.generation.decode import stream
from seq2chat.generation.fast_gpt import with_fast_steps
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.load import load_gpt
from seq2chat.models.gpt import GPT
from seq2chat.text.chat import Message, end_tokens, prompt_ids
from seq2chat.text.stream import TextStream
from seq2chat.text.text_tokenizer import TextTokenizer


class Conversation:
    """The messages so far, in `messages`, and the model that answers them."""

    def __init__(self, model: GPT, tokenizer: TextTokenizer, system: str = "") -> None:
        self.model = with_fast_steps(model)
        self.tokenizer = tokenizer
        self.messages: list[Message] = []
        self.instruct(system)

    @classmethod
    def open(cls, run: Path | str, system: str = "") -> "Conversation":
        """Return a conversation with the model in a run or model folder.

        Raises UserError for a model that is not a GPT or has no chat template.
        """
        model, tokenizer = load_gpt(Path(run))
        check(
            tokenizer.chat_template != "",
            f"{run} has not learned to chat; fine-tune it first: seq2chat sft --start {run}. To "
            f"continue a text: seq2chat generate {run}.",
        )
        return cls(model, tokenizer, system)

    def instruct(self, system: str) -> None:
        """Start over with `system` as the instructions, or with none if it is blank."""
        self.messages = [Message("system", system.strip())] if system.strip() else []

    def reset(self) -> None:
        """Remove all messages except the instructions."""
        self.messages = [message for message in self.messages if message.role == "system"]

    def make_room(self, text: str, max_tokens: int) -> int:
        """Remove the oldest turns until `text` and an answer of `max_tokens` fit the context, and
        return the number of removed messages.

        At most half of the context is reserved for the answer. Raises UserError for a text that
        does not fit on its own.
        """
        room = self.model.context - min(max_tokens, self.model.context // 2)
        n_removed = 0
        while (n_tokens := self._prompt_length(text)) > room:
            first = self._first_user_message()
            if first is None:
                raise UserError(
                    f"The message has {n_tokens} tokens, and the model's context of "
                    f"{self.model.context} leaves room for {room} in addition to an answer; write "
                    "a shorter one."
                )
            # A question goes together with its answer, so that the roles still alternate.
            del self.messages[first : first + 2]
            n_removed += 2
        return n_removed

    def answer(self, text: str, sampling: SamplingConfig = SamplingConfig()) -> Generator[str]:
        """Yield the answer to `text` piece by piece, then add both to the conversation.

        If the answer is interrupted, the part written so far is kept. After an error the
        conversation is unchanged.
        """
        history = [*self.messages, Message("user", text)]
        prompt = prompt_ids(self.tokenizer, history)
        written = TextStream(self.tokenizer)
        end_ids = end_tokens(self.tokenizer)
        try:
            for [token] in stream(self.model, [prompt], sampling, end_ids):
                piece = "" if token.id in end_ids else written.feed(token.id)
                if piece:
                    yield piece
            rest = written.flush()
            if rest:
                yield rest
        except (KeyboardInterrupt, GeneratorExit):
            self.messages = [*history, Message("assistant", written.text)]
            raise
        self.messages = [*history, Message("assistant", written.text)]

    def _prompt_length(self, text: str) -> int:
        return len(prompt_ids(self.tokenizer, [*self.messages, Message("user", text)]))

    def _first_user_message(self) -> int | None:
        for index, message in enumerate(self.messages):
            if message.role == "user":
                return index
        return None
