"""Tokenizers as others publish them for SentencePiece, trained here on a few lines."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer

TEXT = (
    "The cat is in the house.  12 dogs aren't in it, are they? Übung macht den Meister.\n"
    "    def f(x):\n        return x + 1\n<|user|> [INST] Hello, how are you? [/INST] I am well.\n"
    "<<SYS>> The system says: you are the assistant. 北京市 北京市 Приве́т мир, Приве́т 🙂🙂\n"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
NAMES = {"bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN}
WHOLE = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
STRIPPED = [*WHOLE, decoders.Strip(content=" ", left=1, right=0)]


def control(model: tokenizers.Tokenizer) -> None:
    model.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (UNKNOWN, BEGIN, END)]
    )


def all_merges(vocabulary: dict[str, int], first: int) -> list[tuple[str, str]]:
    """Every way to make a token of two, in the order of the ids, as files made from SentencePiece
    models have them."""
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)[first:]
    pairs = [(token[:at], token[at:]) for token in tokens for at in range(len(token) - 1, 0, -1)]
    return [pair for pair in pairs if vocabulary.keys() >= set(pair)]


def bpe(size: int = 700) -> tokenizers.Tokenizer:
    """Llama's: control tokens, bytes, merges and at last characters. No word has a blank inside."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁\n]*|[^▁\n]+"), "isolated")
    trainer = BpeTrainer(vocab_size=size - 259, show_progress=False, min_frequency=2)
    learner.train_from_iterator([TEXT] * 2, trainer)
    learned = json.loads(learner.to_str())["model"]["vocab"]
    characters = [token for token in learned if len(token) == 1 and token != "\n"]
    merged = [token for token in learned if len(token) > 1]
    vocabulary = [UNKNOWN, BEGIN, END, *BYTES, *merged, *characters]
    ids = {token: token_id for token_id, token in enumerate(vocabulary)}
    model = tokenizers.Tokenizer(
        models.BPE(ids, all_merges(ids, 259), unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    )
    model.decoder = decoders.Sequence(STRIPPED)
    model.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)]
    )
    control(model)
    return model


def legacy() -> tokenizers.Tokenizer:
    """Llama 2's and TinyLlama's: a blank is prepended to every text."""
    model = bpe()
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return model


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    """Mistral's newer files."""
    model = bpe()
    model.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    model.decoder = decoders.Sequence(WHOLE if scheme == "never" else STRIPPED)
    return model


def gemma() -> tokenizers.Tokenizer:
    """No blank before the first word."""
    model = bpe()
    model.normalizer = normalizers.Replace(" ", "▁")
    model.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    model.decoder = decoders.Sequence(WHOLE)
    return model


def crossing() -> tokenizers.Tokenizer:
    """Merges across the starts of words, as nothing keeps them apart."""
    learner = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    learner.normalizer = normalizers.Replace(" ", "▁")
    trainer = BpeTrainer(vocab_size=300, show_progress=False, special_tokens=[UNKNOWN, BEGIN, END])
    learner.train_from_iterator([TEXT] * 2, trainer)
    learner.decoder = decoders.Sequence(WHOLE)
    control(learner)
    return learner


def of_the_library() -> tokenizers.Tokenizer:
    """The one that `tokenizers` trains under this name: without bytes, one piece per blank."""
    model = tokenizers.SentencePieceBPETokenizer(unk_token=UNKNOWN)
    special = [UNKNOWN, BEGIN, END]
    model.train_from_iterator([TEXT] * 2, 300, show_progress=False, special_tokens=special)
    return model._tokenizer


def unigram(byte_fallback: bool = False, nfkc: bool = False, words: bool = False):
    learner = tokenizers.Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    trainer = UnigramTrainer(
        vocab_size=200,
        show_progress=False,
        special_tokens=[BEGIN, END, UNKNOWN],  # in the order of T5
        unk_token=UNKNOWN,
    )
    learner.train_from_iterator([TEXT] * 2, trainer)
    pieces = json.loads(learner.to_str())["model"]["vocab"]
    # Published files give the control tokens and the bytes the best score of all.
    bytes_ = [(token, 0.0) for token in BYTES] if byte_fallback else []
    vocabulary = [*map(tuple, pieces[:3]), *bytes_, *map(tuple, pieces[3:])]
    model = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=byte_fallback))
    split = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    if nfkc:
        model.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
    steps = [pre_tokenizers.WhitespaceSplit(), split]
    model.pre_tokenizer = pre_tokenizers.Sequence(steps) if words else split
    metaspace = decoders.Metaspace("▁", prepend_scheme="always", split=True)
    model.decoder = decoders.Sequence(STRIPPED) if byte_fallback else metaspace
    model.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, 1)]
    )
    control(model)
    return model


def written(model: tokenizers.Tokenizer, folder: Path, tokenizer_class: str, **options) -> Path:
    """Write the files of a published tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(model.to_str(), encoding="utf-8")
    config = {"tokenizer_class": tokenizer_class, **NAMES, **options}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
