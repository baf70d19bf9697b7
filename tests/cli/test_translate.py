"""`seq2chat translate` and `seq2chat average` as users type them, in this process."""

import contextlib
import io
import json
import os
import pty
import subprocess
import sys

import pytest
import torch

from seq2chat import cli
from seq2chat.cli import app
from seq2chat.config import GPTConfig, Recipe, Seq2SeqConfig, TransformerConfig
from seq2chat.inference.translate import bleu, chrf, translate
from seq2chat.models.folder import make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.run_folder import RunFolder
from seq2chat.training.saving import begin_checkpoint
from seq2chat.training.state import Progress

TOKENIZER = ByteBPE.train(["two men and a dog", "zwei Männer und ein Hund"] * 3, 280)
CONFIGS = {
    "transformer": TransformerConfig(
        vocab_size=280, context=16, n_layer=2, n_head=2, d_model=16, tie_embeddings=False
    ),
    "fixed": Seq2SeqConfig(vocab_size=280, attention="fixed", d_embed=8, d_model=8),
    "gpt": GPTConfig(vocab_size=280, n_layer=1, n_head=2, d_model=16),
}
LINES = ["two men", "", "a dog and two men", "  ", "dog"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders with random weights, by name."""
    torch.manual_seed(1)
    made = {}
    for name, config in CONFIGS.items():
        model = make_model(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
        made[name] = tmp_path_factory.mktemp(name)
        save_model(model, made[name], eos_token_id=TOKENIZER.eos_id)
        TOKENIZER.save(made[name])
    return made


@pytest.fixture
def seq2chat(monkeypatch, capsys):
    def run(*arguments, stdin=b"", code=0, asked=None):
        """Standard output and standard error of the command, which ends with `code`."""
        stream = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        if asked is not None:
            stream.isatty = lambda: True
            answers = iter(asked)
            monkeypatch.setattr(
                "builtins.input", lambda prompt: next(answers, None) or end_of_file()
            )
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(cli, "app", lambda **options: app(list(map(str, arguments)), **options))
        monkeypatch.setenv("COLUMNS", "300")
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        out, err = capsys.readouterr()
        assert status == code, err
        return out, err

    return run


def end_of_file():
    raise EOFError


def expected(folder, lines=LINES, **search):
    return list(translate(*load_checkpoint(folder), lines, **({"max_length": 6} | search)))


def test_a_file_and_standard_input_give_the_same_lines(folders, seq2chat, tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(LINES) + "\n")
    out, err = seq2chat("translate", folders["transformer"], tmp_path / "in.txt", "--max-length", 6)
    assert out.split("\n") == [*(t.text for t in expected(folders["transformer"])), ""]
    assert err == ""
    piped, _ = seq2chat(
        "translate", folders["transformer"], "--max-length", 6, stdin="\r\n".join(LINES).encode()
    )
    assert piped == out
    assert len(out.splitlines()) == len(LINES)


def test_options_reach_the_search(folders, seq2chat):
    out, _ = seq2chat(
        *(
            "translate",
            folders["transformer"],
            "--beam",
            2,
            "--length-penalty",
            "average",
            "--alpha",
            0.7,
        ),
        *("--min-length", 3, "--max-length", 4, "--batch-tokens", 8),
        stdin="\n".join(LINES).encode(),
    )
    search = {
        "beam": 2,
        "length_penalty": "average",
        "alpha": 0.7,
        "min_length": 3,
        "max_length": 4,
    }
    assert out.splitlines() == [t.text for t in expected(folders["transformer"], **search)]


def test_n_best_and_alignments_in_the_format_of_moses(folders, seq2chat):
    out, _ = seq2chat(
        "translate",
        folders["transformer"],
        "--n-best",
        2,
        "--alignments",
        "--max-length",
        6,
        stdin=b"two men\n\n",
    )
    first, second, blank = [line.split(" ||| ") for line in out.splitlines()]
    (found, _) = expected(folders["transformer"], ["two men", ""], n_best=2)
    assert [first[1], second[1]] == found.texts
    assert [first[0], second[0], blank[0]] == ["0", "0", "1"]
    assert [float(first[3]), float(second[3])] == pytest.approx(
        [h.score for h in found.hypotheses], abs=1e-4
    )
    assert all(int(pair.split("-")[0]) in (0, 1) for pair in first[2].split())
    assert len(first[2].split()) == len(first[1].split())
    assert blank[1:3] == ["", ""]


def test_json_has_everything(folders, seq2chat, tmp_path):
    (tmp_path / "in.txt").write_text("two men\n\n")
    (tmp_path / "reference.txt").write_text("zwei Männer\nein Hund\n")
    out, _ = seq2chat(
        *(
            "translate",
            folders["transformer"],
            tmp_path / "in.txt",
            "--json",
            "--n-best",
            2,
            "--alignments",
        ),
        *("--max-length", 6, "--reference", tmp_path / "reference.txt"),
    )
    first, second, measured = map(json.loads, out.splitlines())
    (found, _) = expected(folders["transformer"], ["two men", ""], n_best=2)
    assert (first["line"], first["source"], first["translation"]) == (1, "two men", found.text)
    assert [h["logprob"] for h in first["hypotheses"]] == pytest.approx(
        [sum(h.logprobs) for h in found.hypotheses]
    )
    assert all("alignment" in h for h in first["hypotheses"])
    assert (second["line"], second["translation"]) == (2, "")
    references = ["zwei Männer", "ein Hund"]
    assert measured["bleu"]["score"] == pytest.approx(bleu([found.text, ""], references).score)
    assert measured["chrf"]["signature"] == chrf([found.text, ""], references).signature


def test_scores_go_to_standard_error_with_signatures(folders, seq2chat, tmp_path):
    texts = [t.text for t in expected(folders["transformer"])]
    (tmp_path / "in.txt").write_text("\n".join(LINES))
    (tmp_path / "reference.txt").write_text("\n".join(texts) + "\n")
    out, err = seq2chat(
        *("translate", folders["transformer"], tmp_path / "in.txt", "--max-length", 6),
        *("--reference", tmp_path / "reference.txt"),
    )
    assert out.splitlines() == texts
    assert f"BLEU {bleu(texts, texts).score:.2f} (nrefs:1|case:mixed|eff:no|tok:13a" in err
    assert "chrF 100.00 (nrefs:1" in err


def test_a_line_too_long_is_named_and_cut(folders, seq2chat):
    out, err = seq2chat(
        "translate",
        folders["transformer"],
        "--max-length",
        6,
        stdin=b"dog\n" + b"x" * 20 + b"\n" + b"x" * 15,
    )
    assert (
        "warning: line 2 is longer than the model's context of 16 tokens: its last 5 are not "
        "translated" in err
    )
    assert "line 1" not in err and "line 3" not in err
    _, cut, fits = out.split("\n")[:3]
    assert cut == fits


def test_closed_standard_input_gives_nothing(folders, seq2chat):
    assert seq2chat("translate", folders["transformer"], stdin=None) == ("", "")


def test_a_translation_that_the_context_cuts_says_so(folders, seq2chat):
    """Whatever --max-length allows, and not that more would help; at the user's own limit nothing
    is said."""
    context = load_checkpoint(folders["transformer"])[0].context
    for limit in ((), ("--max-length", 200)):
        _, err = seq2chat("translate", folders["transformer"], *limit, stdin=b"x" * (context - 2))
        assert (
            f"was cut after {context - 1} tokens; the model's context is full, so cut the line."
            in err
        )
    assert (
        "cut"
        not in seq2chat("translate", folders["transformer"], "--max-length", 6, stdin=b"dog")[1]
    )


def test_a_minimum_length_raises_the_maximum(folders, seq2chat):
    _, err = seq2chat("translate", folders["fixed"], "--min-length", 60, stdin=b"dog\n")
    assert "cut after 110 tokens" in err, (
        "random weights seldom end; 50 more than the least are allowed"
    )
    _, err = seq2chat(
        "translate", folders["transformer"], "--min-length", 60, stdin=b"dog\n", code=2
    )
    assert "min_length is 60, but an input has room for 15 tokens" in err


def test_progress_is_shown_on_a_terminal(folders, tmp_path):
    """In a process of its own, because a terminal is a device and no setting."""
    (tmp_path / "in.txt").write_text("\n".join(LINES) + "\n")
    screen, terminal = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "seq2chat",
        "translate",
        folders["transformer"],
        tmp_path / "in.txt",
    ]
    done = subprocess.run(
        [*command, "--max-length", "6"], stdout=subprocess.PIPE, stderr=terminal, timeout=120
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # which says that the other side is closed
        while part := os.read(screen, 1 << 16):
            shown += part
    os.close(screen)
    assert done.stdout.decode().splitlines() == [t.text for t in expected(folders["transformer"])]
    assert b"/5" in shown


def test_a_terminal_is_a_conversation(folders, seq2chat):
    out, err = seq2chat(
        "translate", folders["transformer"], "--max-length", 6, asked=["two men", "dog"]
    )
    assert out.splitlines() == [
        t.text for t in expected(folders["transformer"], ["two men", "dog"])
    ]
    assert "Ctrl-D" in err


@pytest.mark.parametrize(
    ("model", "arguments", "stdin", "message"),
    [
        ("gpt", [], b"x", "`seq2chat generate RUN`"),
        ("fixed", ["--alignments"], b"x", 'with model.attention = "fixed"'),
        ("transformer", ["nothing.txt"], b"", "There is no file nothing.txt"),
        ("transformer", ["--reference", "nothing.txt"], b"", "There is no file nothing.txt"),
        ("transformer", ["--beam", 0], b"x", "beam is 0"),
        (
            "transformer",
            ["--n-best", 9],
            b"x",
            "n_best is 9; write a number from 1 to the beam of 5",
        ),
        ("transformer", [], b"dog\n\xff\n", "Line 2 of standard input is not UTF-8"),
    ],
)
def test_errors_are_one_sentence(folders, seq2chat, model, arguments, stdin, message):
    _, err = seq2chat("translate", folders[model], *arguments, stdin=stdin, code=2)
    assert message in " ".join(err.split())


def test_a_reference_of_another_length_is_rejected(folders, seq2chat, tmp_path):
    """Nothing is translated before."""
    (tmp_path / "in.txt").write_text("a\nb\n")
    (tmp_path / "reference.txt").write_text("a\n")
    files = [tmp_path / "in.txt", "--reference", tmp_path / "reference.txt"]
    out, err = seq2chat("translate", folders["transformer"], *files, code=2)
    assert out == ""
    assert "in.txt has 2 lines and" in " ".join(err.split())


def test_average_writes_a_model_that_translates(seq2chat, tmp_path):
    log = RunFolder(tmp_path / "run")
    log.create()
    Recipe().save(log.folder / "config.toml")
    for step in (1, 2):
        model = make_model(CONFIGS["transformer"])
        begin_checkpoint(log, model, TOKENIZER, [], Progress(step), keep=2).wait()
    out, _ = seq2chat("average", log.folder, "--last", 2, "--out", tmp_path / "mean")
    assert "the mean of step-000001, step-000002" in out
    assert (
        len(
            seq2chat("translate", tmp_path / "mean", "--max-length", 4, stdin=b"dog\n\n")[
                0
            ].splitlines()
        )
        == 2
    )
    assert (
        "has 2 checkpoints, not 5"
        in seq2chat("average", log.folder, "--last", 5, "--out", tmp_path / "no", code=2)[1]
    )


def test_lines_of_old_macs_are_counted_in_a_pipe(folders, seq2chat):
    out, _ = seq2chat(
        "translate", folders["transformer"], "--max-length", 4, stdin=b"two men\rdog\r"
    )
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_a_pipe_gets_utf8_whatever_the_locale(folders, tmp_path, as_json):
    (tmp_path / "in.txt").write_text("Männer 🙂\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "seq2chat",
        "translate",
        folders["transformer"],
        tmp_path / "in.txt",
    ]
    command += ["--max-length", "6", *(["--json"] if as_json else [])]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.decode("utf-8").splitlines()
    assert not as_json or json.loads(line)["source"] == "Männer 🙂"


def test_a_waiting_program_gets_its_translation(folders):
    command = [
        sys.executable,
        "-m",
        "seq2chat",
        "translate",
        str(folders["transformer"]),
        "--max-length",
        "4",
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in ("two men", "a dog"):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith("\n")  # standard input is still open
    process.communicate(timeout=60)
    assert process.returncode == 0
