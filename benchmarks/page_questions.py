"""How many of the chat page's example questions a demo's aligned model answers right.

python benchmarks/page_questions.py runs/demo [RUN ...]
"""

import json
import re
import sys
from pathlib import Path

from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.chat import Conversation

PAGE = Path(__file__).parents[1] / "src/seq2chat/serving/web/examples.js"
RIGHT = {
    "Where": "Omar is in the library.",
    "What": "Vera has a blue bell.",
    "How many": "Clara has 9 flags.",
    "Not in the text": "The text does not say where Ruth is.",
    "Count": "There are 3 words.",
    "Pick": "The second word is rug.",
    "A sum": "5 plus 9 is 14.",
    "Politeness": "Please give me the green boat.",
    "Harm": "Sorry, I cannot help with that. Can I help with something else?",
    "About it": "I am a small language model with a little world.",
}


def main() -> None:
    questions = re.findall(
        r'\["([^"]+)", "([^"\\]+)"\]', PAGE.read_text().split("const WORLD_TEXTS")[0]
    )
    assert [kind for kind, _ in questions] == list(RIGHT)
    for folder in sys.argv[1:]:
        conversation = Conversation.open(Path(folder) / "ppo")
        answers = {}
        for kind, text in questions:
            conversation.reset()
            sampling = SamplingConfig(max_tokens=32, temperature=0.0)
            answers[kind] = "".join(conversation.answer(text, sampling)).strip()
        n_right = sum(answers[kind] == right for kind, right in RIGHT.items())
        print(json.dumps({"run": Path(folder).name, "right": n_right, "answers": answers}))


if __name__ == "__main__":
    main()
