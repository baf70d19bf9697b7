"""BLEU of a checkpoint of a translation run, on the first pairs of its validation split."""

from seq2chat.config import Recipe
from seq2chat.inference.translate import bleu, translate
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.parallel import load_parallel
from seq2chat.text.text_tokenizer import TextTokenizer

PAIRS = 100


def validation_bleu(
    model: Seq2Seq | Transformer, tokenizer: TextTokenizer, recipe: Recipe, n_pairs: int = PAIRS
) -> tuple[float, int]:
    """Return BLEU by greedy search on the first `n_pairs` validation pairs, and their number.

    The sample is small, so compare checkpoints of one run with it, and use `seq2chat translate` for
    a result to report. Raises UserError if the text of the run is gone.
    """
    pairs = load_parallel(recipe.data).val[:n_pairs]
    sources = [source for source, _ in pairs]
    hypotheses = [one.text for one in translate(model, tokenizer, sources, beam=1)]
    return bleu(hypotheses, [target for _, target in pairs]).score, len(pairs)
