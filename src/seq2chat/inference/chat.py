"""A conversation with a model: turns are kept, answers stream, and what no longer fits the context
is forgotten."""

from collections.abc import Generator
from pathlib import Path

from seq2chat.config import UserError, check
from seq2chat.device import pick_device
from seq2chat.generation.decode import stream
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.folder import require_family
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import Message, end_tokens, prompt_ids
from seq2chat.text.stream import TextStream
from seq2chat.training.checkpoint import load_checkpoint


class Conversation:
    """Messages so far, and the model that answers them. `messages` may be read at any time."""

    def __init__(self, model: GPT, tokenizer: ByteBPE, system: str = "") -> None:
        self.model, self.tokenizer = model, tokenizer
        self.messages: list[Message] = []
        self.instruct(system)

    @classmethod
    def open(cls, run: Path, system: str = "") -> "Conversation":
        """Return a conversation with the model in a run or folder. Raises UserError for one that
        can't chat."""
        model, tokenizer = load_checkpoint(run)
        require_family(model, "gpt")
        assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
        check(
            tokenizer.chat_template != "",
            f"{run} has not learned to chat; fine-tune it first: seq2chat sft --start {run}. To "
            f"continue a text: seq2chat generate {run}.",
        )
        return cls(model.to(pick_device()), tokenizer, system)

    def instruct(self, system: str) -> None:
        """Begin anew with these instructions, or without any."""
        self.messages = [Message("system", system.strip())] if system.strip() else []

    def reset(self) -> None:
        """Forget all but the instructions."""
        self.messages = [message for message in self.messages if message.role == "system"]

    def make_room(self, text: str, max_tokens: int) -> int:
        """Forget the oldest turns until `text` and an answer of `max_tokens` fit the context; how
        many messages went.

        An answer is given half of the context at most. Raises UserError for a text that does not
        fit alone.
        """
        room, forgotten = self.model.context - min(max_tokens, self.model.context // 2), 0
        while (
            n := len(prompt_ids(self.tokenizer, [*self.messages, Message("user", text)]))
        ) > room:
            first = next(
                (i for i, message in enumerate(self.messages) if message.role == "user"), None
            )
            if first is None:
                raise UserError(
                    f"The message makes {n} tokens, and the model's context of {self.model.context}"
                    f" leaves {room} beside an answer; write a shorter one."
                )
            del self.messages[first : first + 2]
            forgotten += 2
        return forgotten

    def answer(self, text: str, sampling: SamplingConfig) -> Generator[str]:
        """Yield the answer to `text` as it is written; both are then part of the conversation.

        An answer that is interrupted is kept as far as it was written. After an error the
        conversation is as before.
        """
        asked = [*self.messages, Message("user", text)]
        shown, ends = TextStream(self.tokenizer), end_tokens(self.tokenizer)
        try:
            for [token] in stream(self.model, [prompt_ids(self.tokenizer, asked)], sampling, ends):
                if token.id not in ends and (part := shown.feed(token.id)):
                    yield part
            if part := shown.flush():
                yield part
        except (KeyboardInterrupt, GeneratorExit):
            self.messages = [*asked, Message("assistant", shown.text)]
            raise
        self.messages = [*asked, Message("assistant", shown.text)]
