"""Serving on the command line: an address is printed, the models answer there, and a signal ends
it."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from command import fail

from seq2chat.config import GPTConfig, UserError
from seq2chat.models.folder import make_model, save_model
from seq2chat.serving.middleware import is_loopback
from seq2chat.serving.served_model import names
from seq2chat.serving.server import listen
from seq2chat.text.byte_bpe import ByteBPE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("base")
    tokenizer = ByteBPE.train(["Hello there. How are you?"] * 3, 280)
    torch.manual_seed(0)
    save_model(
        make_model(
            GPTConfig(vocab_size=tokenizer.vocab_size, context=32, n_layer=1, n_head=2, d_model=32)
        ),
        made,
    )
    tokenizer.save(made)
    return made


def serve(*arguments, **options):
    command = [sys.executable, "-m", "seq2chat", "serve", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_it_prints_its_address_and_ends_on_sigterm(folder):
    process = serve(folder, "--port", 0)
    try:
        printed = ""
        end = time.monotonic() + 60
        while (
            not (address := re.search(r"http://127\.0\.0\.1:\d+", printed))
            and time.monotonic() < end
        ):
            printed += process.stderr.readline()
        body = {"model": folder.name, "prompt": "Hello", "max_tokens": 4, "temperature": 0}
        request = urllib.request.Request(
            f"{address[0]}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 4
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=40)
    assert process.returncode == 0 and "Traceback" not in err and out == ""


def test_a_demo_is_served_with_its_finished_stages(tmp_path):
    from seq2chat.serving.served_model import stages

    assert stages(tmp_path) == [tmp_path]
    (tmp_path / "stages.json").write_text(
        '{"base": 1.0, "sft": 1.0, "comparisons": 1.0, "reward": 1.0}'
    )
    assert stages(tmp_path) == [tmp_path / "sft", tmp_path / "base"]
    (tmp_path / "stages.json").write_text('{"base": 1.0, "sft": 1.0, "ppo": 1.0, "report": 1.0}')
    assert stages(tmp_path)[0] == tmp_path / "ppo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name a run or a model folder to serve"),
        (("{folder}", "--host", "0.0.0.0"), "lets other machines in; set a key"),
        (("{folder}", "--port", "99999"), "from 0 to 65535"),
        (("{folder}", "--api-key", "clé"), "characters that a browser cannot send"),
        (("{folder}", "{folder}"), "Two of the runs would be called"),
        (("nowhere",), "There is no run or model folder"),
    ],
)
def test_errors_are_one_sentence(folder, arguments, message, monkeypatch):
    monkeypatch.setenv("SEQ2CHAT_API_KEY", "")
    assert message in fail("serve", *(a.format(folder=folder) for a in arguments))


def test_a_port_that_is_taken(folder):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "give another port" in fail("serve", folder, "--port", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["a" * 70, "no.such.host.invalid"])
def test_a_host_that_is_none(host):
    with pytest.raises(UserError, match="Cannot listen at"):
        listen(host, 0)


def test_names_and_hosts():
    paths = [
        Path("/a/runs/demo/ppo"),
        Path("/a/runs/sft/checkpoints/step-000005"),
        Path("/models/gpt2"),
    ]
    assert names(paths) == ["demo-ppo", "sft-step-000005", "gpt2"]
    with pytest.raises(UserError, match="called gpt2"):
        names([Path("/a/gpt2"), Path("/b/gpt2")])
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
