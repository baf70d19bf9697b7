"""The line from 2014 to 2017 on Multi30k: train a recipe, translate, score in both columns. One
JSON line a run.

    SEQ2CHAT_DATA=... python benchmarks/lineage.py multi30k-transformer \\
        --pair en-de --seed 1 2 3 --keep runs/lineage
    python benchmarks/lineage.py --table benchmarks/results/LINES.jsonl > docs/results/lineage.md

The first column is sacrebleu's own: cased, tokenized as 13a, on raw text. The second is the
literature's: lowercased, normalised and tokenized by Moses, which sacrebleu then leaves as it is
(`tok:none`); sacremoses makes that form of our output, and of the references the very lines that
ship with the data set, which is checked. Decisions were made on the validation split; the test
split is only reported.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import machine

from seq2chat.inference.translate import bleu, chrf, translate
from seq2chat.models.folder import n_parameters
from seq2chat.text.parallel import read_lines
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.run_folder import open_run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="*")
    parser.add_argument("--pair", nargs="+", default=["en-de", "de-en"], help="directions")
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--data", type=Path, help="folder of Multi30k's files [$SEQ2CHAT_DATA/multi30k]"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder of the runs; what is there is resumed, then scored"
    )
    parser.add_argument(
        "--table", type=Path, help="print the page of results of these lines instead"
    )
    options = parser.parse_args()
    if options.table:
        print(page([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    data = options.data or Path(os.environ["SEQ2CHAT_DATA"]) / "multi30k"
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in options.recipe:
            for pair in options.pair:
                for seed in options.seed:
                    folder = (options.keep or Path(scratch)) / f"{recipe}-{pair}-{seed}"
                    train(recipe, pair, seed, folder)
                    print(json.dumps(score(recipe, pair, folder, data)), flush=True)


def train(recipe: str, pair: str, seed: int, folder: Path) -> None:
    """Train, or go on with what was interrupted; a run that is finished stays as it is."""
    command = [sys.executable, "-m", "seq2chat", "train"]
    if not (folder / "config.toml").exists():
        flags = [
            "--data.corpus",
            f"multi30k-{pair}",
            "--train.seed",
            str(seed),
            "--out",
            str(folder),
        ]
        subprocess.run([*command, recipe, *flags], check=True)
    else:
        subprocess.run([*command, str(folder), "--resume"], check=True)


def score(recipe: str, pair: str, run: Path, data: Path) -> dict:
    """BLEU and chrF of the run's final weights with a beam of 5, on validation and test."""
    log = open_run(run)
    model, tokenizer = load_checkpoint(run)
    last = [m for m in log.metrics() if "val_loss" in m][-1]
    from_language, to_language = pair.split("-")
    result = {
        "benchmark": "lineage",
        "machine": machine(),
        "recipe": recipe,
        "pair": pair,
        "seed": log.recipe().train.seed,
        "parameters": n_parameters(model.config),
        "budget": log.recipe().train.budget,
        "minutes": round(last["elapsed_seconds"] / 60, 1),
        "val_loss": round(last["val_loss"], 4),
        "val_loss_per_character": round(last["val_loss_per_character"], 4),
    }
    for split in ("val", "test_2016_flickr"):
        sources = read_lines(data / f"{split}.{from_language}.gz")
        references = read_lines(data / f"{split}.{to_language}.gz")
        began = time.perf_counter()
        hypotheses = [t.text for t in translate(model, tokenizer, sources, beam=5)]
        result[f"{split}_seconds"] = round(time.perf_counter() - began, 1)
        cased, theirs = (
            bleu(hypotheses, references),
            bleu(*moses(hypotheses, references, to_language), tokenize="none"),
        )
        result |= {
            f"{split}_bleu_13a": round(cased.score, 2),
            f"{split}_bleu_none": round(theirs.score, 2),
            f"{split}_chrf": round(chrf(hypotheses, references).score, 2),
            "signature_13a": cased.signature,
            "signature_none": theirs.signature,
        }
        shipped = data / f"{split}.lc.norm.tok.{to_language}"
        if shipped.exists():
            assert moses(references, [], to_language)[0] == read_lines(shipped), (
                "not the form the literature scores"
            )
    return result


def moses(
    hypotheses: list[str], references: list[str], language: str
) -> tuple[list[str], list[str]]:
    """Both sides lowercased, normalised and tokenized as Multi30k's `lc.norm.tok` files are."""
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    normalizer, tokenizer = MosesPunctNormalizer(language), MosesTokenizer(language)

    def form(line: str) -> str:
        return tokenizer.tokenize(
            normalizer.normalize(line.strip()).lower(), escape=True, return_str=True
        )

    return [form(line) for line in hypotheses], [form(line) for line in references]


def page(lines: list[dict]) -> str:
    """The results as a page: one row a recipe and direction, mean and range over the seeds."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for line in lines:
        if line["benchmark"] == "lineage":
            rows.setdefault((line["pair"], line["recipe"]), []).append(line)
    text = [HEAD]
    for (pair, recipe), runs in sorted(
        rows.items(), key=lambda row: (row[0][0] != "en-de", LADDER.index(row[0][1]))
    ):
        cells = [
            pair.replace("-", "→"),
            f"`{recipe}`",
            f"{runs[0]['parameters'] / 1e6:.1f}M",
            runs[0]["budget"],
            f"{statistics.mean(run['minutes'] for run in runs):.0f}",
            ", ".join(str(run["seed"]) for run in runs),
            *(spread([run[key] for run in runs]) for key in COLUMNS),
        ]
        text.append(f"| {' | '.join(cells)} |")
    shown = [run for runs in rows.values() for run in runs]
    signatures = {run[key] for run in shown for key in ("signature_13a", "signature_none")}
    machines = {run["machine"] for run in shown}
    text += ["", "Signatures: " + ", ".join(f"`{s}`" for s in sorted(signatures)) + "."]
    return "\n".join([*text, "", "Machine: " + "; ".join(sorted(machines)) + "."])


LADDER = ["multi30k-fixed", "multi30k-attention", "multi30k-transformer"]
COLUMNS = (
    "val_loss",
    "test_2016_flickr_bleu_13a",
    "test_2016_flickr_bleu_none",
    "test_2016_flickr_chrf",
)
HEAD = """# Results: the lineage on Multi30k

Image captions, 29,000 pairs to train on, final weights, beam of 5 with the GNMT penalty,
test_2016_flickr (1,000 sentences). *13a* is sacrebleu's cased BLEU on raw text; *literature* is
BLEU of the lowercased, normalised, tokenized text that papers on Multi30k report. Where there are
several seeds: mean (least–greatest). Loss is nats a target token on the validation split,
teacher-forced. Minutes are those of the whole command on the machine below. Made by
`benchmarks/lineage.py` from its lines in `benchmarks/results/`.

| | recipe | parameters | budget | minutes | seeds | val loss | 13a | literature | chrF |
|---|---|---|---|---|---|---|---|---|---|
"""


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    digits = 3 if mean < 10 else 1
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
