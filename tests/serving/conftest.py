"""Tiny models with random weights, served by a real server on a free port."""

import asyncio
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
import torch
import uvicorn

from seq2chat.config import BERTConfig, GPTConfig, Seq2SeqConfig, TransformerConfig
from seq2chat.models.folder import make_model, save_model
from seq2chat.serving.app import create_app
from seq2chat.serving.engine_thread import EngineThread
from seq2chat.serving.served_model import open_model
from seq2chat.serving.server import LoadingApp, Server, listen
from seq2chat.serving.timeouts import TimedProtocol
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import CHAT_TEMPLATE, END, START
from seq2chat.text.wordpiece import WordPiece

TEXT = ["user assistant system Hello there. How are you?\nFine, and you? straße río 日本 🙂"] * 3
PLAIN = ByteBPE.train(TEXT, 300)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A model of each kind: one that chats, one that does not, two that translate, and a BERT."""
    torch.manual_seed(0)
    chats, words = (
        PLAIN.with_chat((START, END), "<|pad|>", CHAT_TEMPLATE),
        WordPiece.train(TEXT, 200),
    )
    gpt = {"context": 96, "n_layer": 2, "n_head": 2, "d_model": 32}
    kinds = {
        "chats": (GPTConfig(vocab_size=chats.vocab_size, **gpt), chats),
        # Room for tokens that have no text.
        "base": (GPTConfig(vocab_size=PLAIN.vocab_size + 20, **gpt), PLAIN),
        "translates": (TransformerConfig(PLAIN.vocab_size, 48, 1, 2, 32), PLAIN),
        "rnn": (Seq2SeqConfig(PLAIN.vocab_size, d_embed=12, d_model=8), PLAIN),
        "bert": (BERTConfig(words.vocab_size, context=48, n_layer=1, n_head=2, d_model=32), words),
    }
    paths = {}
    for name, (config, tokenizer) in kinds.items():
        paths[name] = tmp_path_factory.mktemp("models") / name
        model = make_model(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        save_model(model, paths[name], eos_token_id=tokenizer.eos_id)
        tokenizer.save(paths[name])
    return paths


class Running:
    """A server in a thread of this process, with access to its parts."""

    def __init__(
        self, folders, api_key="", names=("chats", "base", "translates", "bert"), n_slot=4
    ):
        self.served = [open_model(folders[name], name, n_slot) for name in names]
        self.engine_thread = EngineThread(
            [one.engine for one in self.served if one.engine is not None]
        )
        self.engine_thread.start()
        loading_app = LoadingApp()
        loading_app.app = create_app(self.served, self.engine_thread, api_key)
        self.state = loading_app.app.state.serving
        config = uvicorn.Config(
            loading_app, lifespan="off", log_level="error", access_log=False, http=TimedProtocol
        )
        self.server = Server(config, loading_app)
        listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve(sockets=[listener])), daemon=True
        )
        self.thread.start()
        self.until(lambda: self.server.started)

    def engine(self, name):
        return next(one.engine for one in self.served if one.id == name)

    def until(self, condition, seconds=20):
        """Wait until `condition` holds; whether it came to that."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.005)
        return condition()

    def close(self):
        self.server.should_exit = True
        self.thread.join(20)
        self.engine_thread.stop()
        self.engine_thread.join(20)


@pytest.fixture(scope="module")
def server(folders):
    running = Running(folders)
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def start(folders):
    """Start servers with other options than `server`."""
    servers = []

    def begin(**options):
        servers.append(Running(folders, **options))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def slow(monkeypatch):
    """Make the steps of every engine take some time, so that others can come in between."""
    from seq2chat.generation.engine import Engine

    step, control = Engine.step, SimpleNamespace(seconds=0.02)

    def slower(self):
        time.sleep(control.seconds)
        step(self)

    monkeypatch.setattr(Engine, "step", slower)
    return control
