"""Models for other programs: one GGUF file, or a model folder with a card."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open

from seq2chat.config import GPTConfig, check
from seq2chat.config.align import lora_alpha
from seq2chat.inference.load import load, load_gpt
from seq2chat.models import hub
from seq2chat.models.folder import COMMAND, Model, load_config, n_parameters
from seq2chat.models.gguf import GGUFType, write_gguf
from seq2chat.models.gpt import LAYOUTS
from seq2chat.models.hub import push_folder
from seq2chat.models.lora import write_adapter
from seq2chat.models.published import PUBLISHED
from seq2chat.text.shares import map_names
from seq2chat.training.checkpoint import find_checkpoint, save_with_tokenizer
from seq2chat.training.run_folder import RunFolder, open_run

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def export_gguf(run: Path, file: Path, kind: GGUFType) -> None:
    """Write the GPT in a run or model folder as a GGUF file.

    Raises UserError for a model that llama.cpp lacks, and for a file that exists.
    """
    check(file.suffix == ".gguf", f"{file} is not a name of a GGUF file; write {file}.gguf.")
    check(not file.exists(), f"{file} exists; choose another name or remove it.")
    model, tokenizer = load_gpt(run, device="cpu")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(model, tokenizer, file, kind, name=run.resolve().name)


def export_folder(run: Path, folder: Path, kind: str) -> None:
    """Write the model in a run or model folder as a folder without training state, with a model
    card. Raises UserError for a folder that is not empty."""
    _check_free(folder)
    model, tokenizer = load(run, device="cpu")
    save_with_tokenizer(model.to(DTYPES[kind]), tokenizer, folder)
    (folder / "README.md").write_text(model_card(run, folder.name, model), encoding="utf-8")


def export_adapter(run: Path, folder: Path) -> Path:
    """Write the adapters of a run of LoRA as a folder of `peft`, and return the folder of their
    base. Raises UserError for another run, and for a folder that is not empty."""
    _check_free(folder)
    check((run / "config.toml").exists(), f"{run} is no run of LoRA, so it has no adapters.")
    align = open_run(run).recipe().align
    rank = getattr(align, "lora_rank", 0)
    check(rank > 0, f"{run} has no adapters; export it with --safetensors or --gguf.")
    assert align is not None
    run_checkpoint = find_checkpoint(run)
    base = find_checkpoint(Path(align.start)).resolve()
    config = load_config(run_checkpoint)
    assert isinstance(config, GPTConfig)
    check(
        LAYOUTS[config.layout].rotary,
        f"peft adapts the stacked maps of a {config.layout} together; write --safetensors instead.",
    )
    # The published model is the best or the average of the policy, if there is one.
    files = [run_checkpoint / "trainer" / f"{n}.safetensors" for n in ("best", "average", "policy")]
    weights = next(file for file in files if file.exists())
    with safe_open(weights, "pt") as file:
        trained = {
            name.removeprefix("model."): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 (safe_open is not iterable)
            if ".lora_" in name or ".shift" in name
        }
    # The name on the Hub, where other machines find the base.
    known = PUBLISHED.get(align.start)
    name = align.start.removeprefix(hub.PREFIX) if known is None else known.hub_name
    is_public = known is not None or align.start.startswith(hub.PREFIX)
    write_adapter(trained, folder, name if is_public else str(base), rank, lora_alpha(align))
    return base


def push(run: Path, name: str, private: bool = False) -> str:
    """Upload the model in a run or model folder to the Hugging Face Hub as `owner/name`, and return
    its address. Raises UserError if that is refused."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / name.rpartition("/")[2]
        export_folder(run, folder, "f32")
        return push_folder(folder, name, private)


def _check_free(folder: Path) -> None:
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    check(is_free, f"{folder} exists; choose another name or remove it.")


def model_card(run: Path, name: str, model: Model) -> str:
    """Return a model card in Markdown: shape, data, steps and scores of the run, and how to use
    the model."""
    family = model.config.family
    lines = [
        "---",
        "library_name: transformers" if family in ("gpt", "bert") else "library_name: seq2chat",
        *_origin(run),
        "---",
        f"# {name}",
        "",
        f"A {family} with {n_parameters(model.config):,} parameters and a context of "
        f"{model.context} tokens, made with seq2chat.",
        "",
    ]
    lines += _training(run)
    is_served = model.config.objective != "score"
    command = f"serve {name}" if is_served else f"{COMMAND[model.config.objective]} {name}"
    lines += ["## Use", "", "```sh", f"seq2chat {command}", "```", ""]
    if family == "gpt":
        lines += [
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```",
            "",
        ]
    return "\n".join(lines)


def _origin(run: Path) -> list[str]:
    """Return the lines of a card's header about a published model that the run started from."""
    align = open_run(run).recipe().align if (run / "config.toml").is_file() else None
    start = str(run) if align is None else align.start
    if start not in PUBLISHED:
        return []
    model = PUBLISHED[start]
    return [f"license: {model.licence.lower()}", f"base_model: {model.hub_name}"]


def _training(run: Path) -> list[str]:
    """Return the lines about how a run was trained, none for another folder."""
    if not (run / "config.toml").is_file():
        return []
    recipe = open_run(run).recipe()
    progress = RunFolder(run).list_checkpoints()[-1] / "trainer" / "progress.json"
    done = json.loads(progress.read_text(encoding="utf-8"))
    method = recipe.align.method if recipe.align else "pretraining"
    start = recipe.align.start if recipe.align else recipe.train.start
    rows = {
        "method": method,
        # Names without folders, which are nobody else's business.
        "data": map_names(recipe.data.corpus, lambda name: Path(name).name)
        or f"{Path(recipe.data.source).name}, {Path(recipe.data.target).name}",
        "started from": (start if start in PUBLISHED else Path(start).name) or "random weights",
        "steps": f"{done['step']:,}",
        "tokens": f"{done['tokens']:,}",
        "seed": str(recipe.train.seed),
    }
    scores = RunFolder(run).summary()
    rows |= {
        key: f"{value:.4g}"
        for key, value in scores.items()
        if key.startswith("val_") and isinstance(value, int | float)
    }
    table = [f"| {key} | {value} |" for key, value in rows.items()]
    return ["## Training", "", "| | |", "|---|---|", *table, ""]
