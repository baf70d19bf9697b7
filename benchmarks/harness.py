"""EleutherAI's lm-evaluation-harness on a model: through our class, our server, and `transformers`.

    python benchmarks/harness.py smollm2

Run it in the repository's root, in an environment with `pip install "lm-eval[api,hf]"`. The
tasks are the YAML files of `benchmarks/tasks`, which read local files only. The numbers of the
three ways are printed side by side, and are equal if they agree on every token.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from peers import machine

from seq2chat.generation.decode import generate, token_logprobs
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.load import load_gpt
from seq2chat.text.batch import pad_rows
from seq2chat.training.checkpoint import find_checkpoint

TASKS = ("seq2chat_general", "seq2chat_sums")
ROWS = 8
PORT = 8399


class Seq2ChatLM(TemplateLM):
    """A GPT of this package, as the harness wants it."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.model, self.tokenizer = load_gpt(run, device="cpu")

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.end_ids[0]

    def tok_encode(self, string: str, **kwargs: Any) -> list[int]:
        return self.tokenizer.encode(string)

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        results = []
        for first in range(0, len(requests), ROWS):
            part = [(context, target) for _, context, target in requests[first : first + ROWS]]
            tokens = pad_rows([[*context, *target] for context, target in part], 0)
            logits = self.model(tokens[:, :-1])
            logprobs = token_logprobs(logits, tokens[:, 1:])
            is_best = logits.argmax(-1) == tokens[:, 1:]
            for row, (context, target) in enumerate(part):
                span = slice(len(context) - 1, len(context) + len(target) - 1)
                total = logprobs[row, span].sum().item()
                results.append((total, bool(is_best[row, span].all())))
        return results

    def loglikelihood_rolling(self, requests: list[Any], **kwargs: Any) -> list[float]:
        rows = [(None, [self.eot_token_id], self.tok_encode(r.args[0])) for r in requests]
        return [total for total, _ in self._loglikelihood_tokens(rows)]

    def generate_until(self, requests: list[Any], **kwargs: Any) -> list[str]:
        answers = []
        for request in requests:
            context, options = request.args
            sampling = SamplingConfig(options["max_gen_toks"], temperature=0.0)
            ends = self.tokenizer.end_ids
            [[sample]] = generate(self.model, [self.tok_encode(context)], sampling, ends)
            text = self.tokenizer.decode(token for token in sample.tokens if token not in ends)
            for stop in options["until"]:
                text = text.partition(stop)[0]
            answers.append(text)
        return answers


def results_of(model: Any, model_args: Any = None) -> dict[str, dict[str, float]]:
    """Return the metrics of each task."""
    done = simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(Path(__file__).parent / "tasks")),
        bootstrap_iters=0,
    )
    return {
        task: {
            name: value
            for name, value in metrics.items()
            if isinstance(value, float) and "stderr" not in name
        }
        for task, metrics in done["results"].items()
    }


def served(run: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Return the metrics through `seq2chat serve`."""
    command = [sys.executable, "-m", "seq2chat", "serve", str(run), "--port", str(PORT)]
    server = subprocess.Popen(command)
    try:
        for _ in range(120):
            try:
                address = f"http://127.0.0.1:{PORT}/v1/models"
                name = json.load(urllib.request.urlopen(address))["data"][0]["id"]
                break
            except OSError:
                time.sleep(1)
        arguments = {
            "base_url": f"http://127.0.0.1:{PORT}/v1/completions",
            "model": name,
            "tokenizer": str(folder),
            "tokenizer_backend": "huggingface",
            "num_concurrent": 1,
            "max_length": 2048,
        }
        return results_of("local-completions", arguments)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run, model folder or published model")
    options = parser.parse_args()
    folder = find_checkpoint(options.run)
    theirs = {"pretrained": str(folder), "dtype": "float32", "device": "cpu"}
    ways = {
        "class": results_of(Seq2ChatLM(folder)),
        "server": served(options.run, folder),
        "transformers": results_of("hf", theirs),
    }
    print(json.dumps({"benchmark": "harness", "machine": machine()} | ways))


if __name__ == "__main__":
    main()
