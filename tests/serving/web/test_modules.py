"""Computations of the modules of the page, without a browser: by node."""

import json
import shutil
import subprocess
from importlib.resources import as_file, files

import pytest
import torch

from seq2chat.generation.sampling import SamplingConfig, next_token_logits

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@pytest.fixture
def run(tmp_path):
    """Run a script next to the modules, and return its output as JSON."""
    with as_file(files("seq2chat.serving") / "web") as web:
        shutil.copytree(web, tmp_path / "web")
    (tmp_path / "web" / "package.json").write_text('{"type": "module"}')

    def run(script):
        command = ["node", "--input-type=module", "--eval", script]
        done = subprocess.run(
            command, cwd=tmp_path / "web", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


END = "<|endoftext|>"
ANSWERED = """
import { Api } from "./api.js";
import { textOf, texts } from "./tokens.js";

globalThis.sessionStorage = { getItem: () => null };
globalThis.fetch = async () => new Response(EVENTS);
const tokens = [];
let prompt;
for await (const part of new Api().answer("base", { prompt: "x" }, {})) {
  tokens.push(...part.tokens);
  prompt ??= part.prompt;
}
const names = tokens.map(({ text }) => text);
console.log(JSON.stringify({ prompt, names, text: textOf(tokens), texts: texts(tokens) }));
"""


def test_completion_characters_are_whole(run):
    """Each chunk has the name of a token, which is no text where it is a part of a character."""
    bytes_of = {"é": "é".encode(), "漢": "漢".encode()}
    parts = [
        (f"bytes:\\x{byte:02x}", letter if byte == raw[-1] else "")
        for letter, raw in bytes_of.items()
        for byte in raw
    ]
    chunks_sent = [("h", "h"), *parts, (END, "")]
    chunks = []
    for index, (name, text) in enumerate(chunks_sent):
        logprobs = {
            "tokens": [name],
            "token_logprobs": [-1.0],
            "top_logprobs": [{name: -1.0}],
            "text_offset": [0],
        }
        choice = {
            "index": 0,
            "text": text,
            "logprobs": logprobs,
            "token_ids": [index],
            "finish_reason": None,
        }
        choice |= {"prompt_token_ids": [7]} if index == 0 else {}
        chunks.append(json.dumps({"choices": [choice]}))
    events = "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])
    result = run(ANSWERED.replace("EVENTS", json.dumps(events)))
    assert (
        result["prompt"] == [7]
        and result["text"] == "hé漢"
        and result["texts"] == [text for _, text in chunks_sent]
    )
    hexes = [f"‹{byte:02X}›" for raw in bytes_of.values() for byte in raw]
    # By which the door knows them among their alternatives.
    assert result["names"] == ["h", *hexes, END]


PREPARED = """
import { prepare } from "./prompt.js";
import { addAnswer, ask, begin, laneOf } from "./conversation.js";

const conversation = begin(["base"]);
let turn = null;
for (let i = 0; i <= PAIRS; i++) {
  turn = ask(conversation, "q", turn);
  const answer = addAnswer(laneOf(turn, "base"));
  answer.tokens.push({ id: 1, text: "a", logprob: 0 });
}
const model = { id: "base", chat: false, context: 20 };
let asked = 0;
const refusal = Object.assign(new Error(), { code: "context_length_exceeded" });
const tokenize = async (_, { prompt }) => {
  asked++;
  if (prompt.length > 100) throw refusal;
  return { tokens: [...prompt] };
};
const api = { tokenize };
const options = { maxTokens: 10, frame: "text" };
const { sent, forgotten } = await prepare(api, model, conversation, turn, options);
console.log(JSON.stringify({ text: sent.text, forgotten, asked }));
"""


@pytest.mark.parametrize(("pairs", "most"), [(0, 0), (1, 1), (4, 1), (5, 4), (6, 4), (200, 9)])
def test_oldest_turns_are_forgotten_in_few_tries(run, pairs, most):
    """Ten tokens are left for the prompt: a question, and four earlier question-answer pairs."""
    result = run(PREPARED.replace("PAIRS", str(pairs)))
    kept = min(pairs, 4)
    assert (
        result["text"] == "qa" * kept + "q"
        and result["forgotten"] == pairs - kept
        and result["asked"] <= most
    )


DISTRIBUTION = """
import { distribution } from "./next.js";
const logits = Float32Array.from(LOGITS);
console.log(JSON.stringify(OPTIONS.map((one) => [...distribution(logits, one)])));
"""


def test_the_sliders_cut_what_the_sampler_cuts(run):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 2
    logits[7] = logits.topk(5).values[-1]  # tokens that are equally likely
    options = [
        {"temperature": temperature, "topK": top_k, "topP": top_p, "minP": min_p}
        for temperature in (0.5, 1.0, 2.0)
        for top_k in (0, 5, 100)
        for top_p in (0.3, 0.8, 1.0)
        for min_p in (0.0, 0.05, 0.4)
    ]
    script = DISTRIBUTION.replace("OPTIONS", json.dumps(options))
    found = run(script.replace("LOGITS", json.dumps(logits.tolist())))
    for one, row in zip(options, found, strict=True):
        config = SamplingConfig(
            temperature=one["temperature"],
            top_k=one["topK"],
            top_p=one["topP"],
            min_p=one["minP"],
        )
        expected = next_token_logits(logits[None], config)[0].double().softmax(-1)
        torch.testing.assert_close(torch.tensor(row, dtype=torch.float64), expected)
