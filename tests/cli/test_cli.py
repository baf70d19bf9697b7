"""The command as users type it: what it prints, what it leaves behind, and one sentence for every
mistake."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import pytest
from command import fail, seq2chat, succeed

from seq2chat import cli
from seq2chat.cli import app
from seq2chat.cli.train import _overfitting
from seq2chat.config import Recipe
from seq2chat.training.types import Job


@pytest.fixture(scope="module")
def run(tiny_tables, tmp_path_factory):
    """A run made by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    Recipe.from_tables(tiny_tables).save(folder / "recipe.toml")
    succeed("train", folder / "recipe.toml", "--out", folder / "run", "--budget", "20 steps")
    return folder / "run"


def test_help_loads_no_torch():
    commands = [
        "train",
        "generate",
        "translate",
        "fill-mask",
        "attention",
        "average",
        "eval",
        "explain",
        "plan",
        "simulate",
    ]
    for arguments in (
        [],
        *([command] for command in commands),
        ["tokenizer", "encode"],
        ["runs", "list"],
    ):
        code = (
            f"import sys; sys.argv = ['seq2chat', *{arguments}, '--help']\n"
            "from seq2chat.cli import main\n"
            "try: main()\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "assert 'torch' not in sys.modules and 'tokenizers' not in sys.modules"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "Usage: seq2chat" in done.stdout


def test_help_lists_every_command_with_its_docstring():
    from seq2chat.cli import app

    lines = succeed("--help").splitlines()
    for name, command in app.resolved_commands().items():
        if not name.startswith("-"):
            first = command.help.strip().splitlines()[0] if command.help else ""
            assert first, name
            assert any(name in line and first[:40] in line for line in lines), name


def test_a_run_folder_is_complete(run):
    assert {p.name for p in run.iterdir()} == {
        "config.toml",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        "log.txt",
        "loss.png",
        "tokenizer",
    }
    steps = [
        m for m in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in m
    ]
    assert [m["step"] for m in steps] == list(range(1, 21))
    assert {
        "tokens",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "peak_share",
        "elapsed_seconds",
    } < set(steps[0])
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_its_configuration_makes_the_same_run_again(run, tmp_path):
    succeed("train", run / "config.toml", "--out", tmp_path / "again")
    first, second = (
        [
            json.loads(line).get("loss")
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (run, tmp_path / "again")
    )
    assert first == second


def test_generate_streams_prompt_and_continuation(run):
    out = succeed("generate", run, "--prompt", "The río ", "--max-tokens", 15, "--seed", 1)
    assert out.startswith("The río ")
    assert out == succeed("generate", run, "--prompt", "The río ", "--max-tokens", 15, "--seed", 1)
    assert out != succeed("generate", run, "--prompt", "The río ", "--max-tokens", 15, "--seed", 2)


def test_a_prompt_may_be_positional(run):
    options = ("--seed", 1, "--max-tokens", 5)
    by_name = seq2chat("generate", run, "--prompt", "the cat", *options)
    assert seq2chat("generate", run, "the cat", *options).stdout == by_name.stdout != ""


def test_help_shows_the_options_of_the_method():
    ppo = seq2chat("ppo", "--help").stdout
    assert "--align.gae-lambda" in ppo
    assert "--model.dropout" in ppo
    for other in ("--align.group", "--model.n-layer", "--train.prompt", "--tokenizer."):
        assert other not in ppo
    assert "--align." not in seq2chat("train", "--help").stdout


def test_a_rising_validation_loss_is_reported():
    def warning(*losses: float) -> str:
        metrics = [{"step": i, "val_loss": loss} for i, loss in enumerate(losses)]
        run = SimpleNamespace(metrics=lambda: metrics)
        return _overfitting(cast(Job, SimpleNamespace(recipe=Recipe(), run=run)))

    assert "lowest at step 1 (2.0000) and rose to 2.1000" in warning(3.0, 2.0, 2.1, 2.0)
    assert warning(3.0, 2.0, 2.02, 9.0) == ""  # noise, and the last one scores another text
    assert warning() == ""


def test_generate_reads_a_pipe_and_prints_json(run):
    lines = succeed(
        "generate", run, "-n", 3, "--max-tokens", 5, "--seed", 1, "--json", stdin="The cat"
    ).splitlines()
    texts = [json.loads(line) for line in lines]
    assert [t["prompt"] for t in texts] == ["The cat"] * 3
    assert len({t["text"] for t in texts}) > 1
    assert {t["finish_reason"] for t in texts} <= {"length", "stop"}


@pytest.mark.parametrize("command", [["generate"], ["tokenizer", "encode"]])
def test_input_that_is_no_utf8_is_told_with_its_line(command, run):
    message = fail(*command, run, stdin=b"fine\n\xff\n")
    assert message.startswith("error: Line 2 of standard input is not UTF-8")


def test_generate_stops_before_a_stop_string(run):
    arguments = [
        "generate",
        run,
        "--prompt",
        "The cat",
        "--temperature",
        0,
        "--max-tokens",
        15,
        "--json",
    ]
    whole = json.loads(succeed(*arguments))["text"]
    stop = whole[4:6]
    stopped = json.loads(succeed(*arguments, "--stop", stop))
    assert stopped == {
        "prompt": "The cat",
        "text": whole[: whole.index(stop)],
        "finish_reason": "stop",
    }


def test_eval_prints_one_object(run, text_file):
    values = json.loads(succeed("eval", run, "--data", text_file, "--json"))
    text = text_file.read_text()
    assert (values["bytes"], values["characters"], values["tokens"]) == (
        len(text.encode()),
        len(text),
        len(text.encode()),
    )
    assert {"loss", "perplexity", "bits_per_byte"} < set(values)


def test_eval_matches_the_validation_of_training(run):
    values = json.loads(succeed("eval", run, "--json"))
    last = [
        m
        for m in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "val_loss" in m
    ][-1]
    assert values["loss"] == pytest.approx(last["val_loss"], abs=0.01)
    assert values["tokens"] == last["val_tokens"]


def test_runs_list_show_and_compare(run, tmp_path):
    [row] = json.loads(succeed("runs", "list", run.parent, "--json"))
    assert (row["run"], row["step"]) == (str(run), 20)
    shown = json.loads(succeed("runs", "show", run, "--json"))
    assert shown["config"]["train"]["budget"] == "20 steps"
    assert shown["checkpoints"][-1].endswith("step-000020")
    succeed(
        "train",
        run / "config.toml",
        "--out",
        tmp_path / "b",
        "--optim.clip",
        0.5,
        "--budget",
        "2 steps",
    )
    rows = json.loads(succeed("runs", "compare", run, tmp_path / "b", "--json"))
    assert [r["optim.clip"] for r in rows] == [1.0, 0.5]
    assert "model.d_model" not in rows[0]
    assert "optim.clip" in succeed("runs", "compare", run, tmp_path / "b")
    assert "20" in succeed("runs", "list", run.parent)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_draws_every_run(run, tmp_path, ending):
    file = tmp_path / f"curve.{ending}"
    assert str(file) in succeed("plot", run, run, "--out", file)
    assert file.stat().st_size > 5000


def test_tokenizer_commands(text_file, tmp_path):
    succeed("tokenizer", "train", text_file, "--out", tmp_path, "--vocab-size", 280)
    ids = succeed("tokenizer", "encode", tmp_path, "The <|endoftext|> río").strip()
    assert max(json.loads(ids)) < 276
    assert succeed("tokenizer", "decode", tmp_path, stdin=ids) == "The <|endoftext|> río\n"
    assert succeed("tokenizer", "decode", tmp_path, *json.loads(ids)) == "The <|endoftext|> río\n"
    # A shell cuts the list that `encode` prints into words.
    assert succeed("tokenizer", "decode", tmp_path, *ids.split()) == "The <|endoftext|> río\n"
    assert succeed("tokenizer", "decode", tmp_path, ids) == "The <|endoftext|> río\n"
    pieces = succeed("tokenizer", "encode", tmp_path, "The", "--pieces").splitlines()
    assert all("\t" in line for line in pieces)


def test_one_dial_chooses_everything_and_says_why(text_file, tmp_path):
    done = seq2chat("train", text_file, "--budget", "20s", "--train.samples", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "GFLOP/s" in done.stderr and "characters to train on" in done.stderr
    recipe = Recipe.load(tmp_path / "runs" / "sentences" / "config.toml")
    assert recipe.train.budget == "20s"
    metrics = [
        json.loads(line)
        for line in (tmp_path / "runs" / "sentences" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [m["loss"] for m in metrics if "loss" in m]
    assert losses[-1] < losses[0] - 1


def test_a_preset_replaces_the_chosen_shape(text_file, tmp_path):
    flags = [
        "--model.preset",
        "gpt3-small",
        "--model.n-layer",
        1,
        "--model.context",
        32,
        "--train.samples",
        0,
    ]
    succeed("train", text_file, "--budget", "1 step", "--out", tmp_path / "run", *flags)
    model = Recipe.load(tmp_path / "run" / "config.toml").model
    assert (model.layout, model.n_layer, model.d_model, model.n_head, model.d_ff) == (
        "gpt2",
        1,
        768,
        12,
        3072,
    )


def test_generation_says_when_the_context_is_full(run):
    # The most likely token, because a sample may be the end of the text.
    done = seq2chat("generate", run, "--prompt", "The cat", "--max-tokens", 999, "--temperature", 0)
    assert "context of 32 tokens is full" in done.stderr
    both = seq2chat(
        "generate", run, "--prompt", "x", "--max-tokens", 40, "--temperature", 0, "-n", 2
    )
    assert "context of 32 tokens is full" in both.stderr, "each text counts its own tokens"


def test_a_prompt_beyond_the_context_is_not_printed(run):
    done = seq2chat("generate", run, "--prompt", "word " * 100)
    assert done.returncode == 2 and done.stdout == ""
    assert "shorten it to 31 or fewer" in " ".join(done.stderr.split())


def test_a_second_run_gets_a_new_folder(text_file, tiny_tables, tmp_path):
    Recipe.from_tables(tiny_tables).save(tmp_path / "small.toml")
    for _ in range(2):
        succeed("train", "small.toml", "--budget", "1 step", cwd=tmp_path)
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["small", "small-2"]


def mistake(monkeypatch, capsys, *arguments: object) -> str:
    """The same message, of the command run in this process: importing torch takes longer than most
    commands."""
    monkeypatch.setattr(cli, "app", lambda **options: app(list(map(str, arguments)), **options))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    message = capsys.readouterr().err
    assert ended.value.code == 2, message
    return " ".join(message.split())


def test_errors_are_one_sentence(run, text_file, tmp_path, monkeypatch, capsys):
    short = tmp_path / "short.txt"
    short.write_text("Hello there.")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"ab\x00\x01" * 50)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("straße ".encode("latin-1") * 50)
    toml = tmp_path / "bad.toml"
    toml.write_text("[optim]\nmomentun = 0.9\n")
    unknown = tmp_path / "unknown.toml"
    unknown.write_text("[optim]\nzzz = 0.9\n")
    cases = [
        (["train", tmp_path / "nothing.txt"], ["nothing.txt"]),
        (["train", empty], ["empty.txt", "empty"]),
        (["train", binary], ["binary.txt"]),
        (["train", latin], ["latin.txt", "UTF-8"]),
        (["train", short], ["10 characters", "at least 1,000"]),
        (["train", run / "config.toml", "--data.corpus", short], ["context"]),
        (["train", toml], ["optim.momentun", "Did you mean optim.momentum?", "bad.toml"]),
        (["train", unknown], ["optim.zzz", "[optim] knows matrices"]),
        (
            ["train", text_file, "--out", empty / "run", "--budget", "1 step"],
            ["Not a directory", "empty.txt"],
        ),
        (["train", text_file, "--budget", "soon"], ["'soon'", '"10m"']),
        (["train", run / "config.toml", "--out", run], ["already holds a run", "resume it"]),
        (["train", tmp_path / "nowhere", "--resume"], ["is not a run folder"]),
        (["train", "--resume"], ["No run to resume"]),
        (["train", run], ["is a run", "--resume"]),
        (["train", run, "--out", run, "--resume"], ["once"]),
        (["train", text_file, "--data.corpus", "pydocs"], ["Name the text once"]),
        (["eval", run, "--batch-size", 0], ["batch_size is 0"]),
        (["eval", run, "--context", 0], ["context is 0"]),
        (["train", run, "--resume", "--train.seed", 3], ["train.seed", "order of its data"]),
        (["generate", tmp_path / "nowhere"], ["There is no run or model folder"]),
        (["generate", run, "--prompt", "a" * 500], ["tokens", "context"]),
        (["generate", run, "--temperature", -1], ["temperature is -1"]),
        (["generate", run, "-n", 0], ["-n is 0"]),
        (["eval", run, "--data", tmp_path / "nothing.txt"], ["nothing.txt"]),
        (["eval", run, "--context", 9999], ["context is 9999"]),
        (["plot", tmp_path], ["is not a run folder"]),
        (["plot", run, "--out", "x.bmp"], [".png, .svg or .pdf"]),
        (["runs", "list", tmp_path], ["There is no run"]),
        (["tokenizer", "encode", tmp_path, "hi"], ["no tokenizer"]),
        (["tokenizer", "decode", run, 99999], ["There is no token 99999"]),
        (
            ["tokenizer", "decode", run, "[1,", "two]"],
            ["'two' is not a token id; write for example [72, 105]"],
        ),
        (["explain", "bidirectional", "--out", "x.bmp"], [".png, .svg or .pdf"]),
    ]
    for arguments, words in cases:
        message = mistake(monkeypatch, capsys, *arguments)
        assert all(word in message for word in words), (arguments, message)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--optim.momentun", "1"], ["Did you mean --optim.momentum?"]),
        (["trian"], ["Did you mean", "train"]),
        (["train", "--learning_rate", "1"], ["--learning-rate", "--optim.matrix-lr"]),
        (["generate", "x", "--batch-size", "1"], ["Unknown option: --batch-size"]),
        (["generate", "x", "two", "[/b] words"], ["[/b] words"]),
        (["train", "--optim.clip", "abc"], ["--optim.clip", "abc"]),
    ],
)
def test_flags_that_do_not_exist(arguments, words):
    done = seq2chat(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr + done.stdout for word in words), done.stderr


# Translation and BERT, from a text of one's own to a translation and its picture

TINY = [
    "--model.n-layer",
    1,
    "--model.n-head",
    2,
    "--model.d-model",
    32,
    "--model.d-ff",
    64,
    "--tokenizer.vocab-size",
    300,
]


@pytest.fixture(scope="module")
def translator(parallel_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator") / "run"
    data = ["--data.source", parallel_files["source"], "--data.target", parallel_files["target"]]
    succeed("train", *data, "--out", folder, "--budget", "4 epochs", *TINY)
    return folder


@pytest.fixture(scope="module")
def bert(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "run"
    options = ["--model.family", "bert", "--model.context", 32, "--budget", "20 steps"]
    succeed("train", text_file, *options, "--out", folder, *TINY)
    return folder


def test_own_pairs_become_a_translator(translator, tmp_path):
    assert succeed("translate", translator, stdin="the cat\n\nthe moon\n").count("\n") == 3
    written = json.loads(succeed("translate", translator, "--json", stdin="the cat\n"))
    assert written["source"] == "the cat"
    picture = tmp_path / "alignment.png"
    succeed("attention", translator, "--text", "the cat sees", "--out", picture)
    assert picture.stat().st_size > 1000
    succeed("average", translator, "--last", 2, "--out", tmp_path / "averaged")
    assert succeed("translate", tmp_path / "averaged", stdin="the cat\n").count("\n") == 1


def test_a_translation_is_measured_token_by_token(translator, parallel_files):
    own = json.loads(succeed("eval", translator, "--json"))
    metrics = map(json.loads, (translator / "metrics.jsonl").read_text().splitlines())
    last = [m for m in metrics if "val_loss" in m][-1]
    assert own["loss"] == pytest.approx(last["val_loss"], rel=1e-3)
    files = ["--source", parallel_files["source"], "--target", parallel_files["target"]]
    assert json.loads(succeed("eval", translator, *files, "--json"))["tokens"] > own["tokens"]


def test_own_text_becomes_a_bert(bert):
    guesses = json.loads(succeed("fill-mask", bert, "the [MASK] sees a red house", "--json"))
    assert guesses
    assert "bits_per_byte" not in json.loads(succeed("eval", bert, "--json"))


def test_each_command_names_the_one_that_was_meant(translator, bert, parallel_files):
    assert "seq2chat translate" in fail("generate", translator, "--prompt", "the")
    assert "seq2chat fill-mask" in fail("translate", bert, stdin="the cat\n")
    assert "seq2chat translate" in fail("fill-mask", translator, "the [MASK]")
    assert "data.source and data.target" in fail("train", "--data.source", parallel_files["source"])
    message = fail("train", parallel_files["source"], "--model.family", "transformer")
    assert "is not parallel text" in message


def test_info_prints_measurements_and_choices():
    facts = json.loads(succeed("info", "--json"))
    assert facts["fp32_flops"] > 1e8 and facts["bandwidth"] > 1e7
    assert facts["precision"] in ("float32", "bfloat16")
    assert facts["decoding"] == "one call of C++ per token" or "torch" in facts["decoding"]
    assert set(facts["extras"]) == {"gguf", "hub", "json", "parquet", "smollm2"}
