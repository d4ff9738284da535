"""A Flan-T5 small enough for tests and demonstrations, made without network in seconds.

    python scripts/tiny_t5.py FOLDER

It has the shape of the real one where that matters: a Unigram vocabulary with ``<pad>``, ``</s>``
and ``<unk>`` first and without the nine characters that T5 lacks, room for 100 sentinels and some
spare embedding rows after it, a gated feed-forward and an output embedding of its own.
"""

import io
import json
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "raw" / "sample.json"
LACKING = "\n\t<\\^`{}~"  # T5's own vocabulary has no piece with one of these in it
SENTINELS = 100
SPECIALS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
MODEL_IDS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def make_tiny_t5(
    folder: Path,
    texts: Iterable[str],
    *,
    vocab_size: int = 800,
    d_model: int = 64,
    num_layers: int = 2,
    weights: bool = True,
    seed: int = 0,
) -> Path:
    """Write a tiny T5 with a vocabulary trained on ``texts`` into ``folder`` and return it.

    The vocabulary has at most ``vocab_size`` pieces, ids 0 to n-1; the sentinels are n to n+99 and
    the rows of the embedding are n + 128 rounded up to a multiple of 128 (T5: 32,000 -> 32,128).
    Without ``weights`` torch is not imported. The same arguments give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = _train_vocabulary(folder / "spiece.model", texts, vocab_size)
    config = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": -(-(pieces + SENTINELS + 28) // 128) * 128,
        "d_model": d_model,
        "d_kv": d_model // 4,
        "d_ff": 2 * d_model,
        "num_heads": 4,
        "num_layers": num_layers,
        "num_decoder_layers": num_layers,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    tokenizer = {"tokenizer_class": "T5Tokenizer", "extra_ids": SENTINELS, "model_max_length": 512}
    _write_json(folder / "config.json", config | MODEL_IDS)
    _write_json(folder / "generation_config.json", MODEL_IDS)
    _write_json(folder / "tokenizer_config.json", tokenizer | SPECIALS)
    _write_json(folder / "special_tokens_map.json", SPECIALS)
    if weights:
        _write_weights(folder, seed)
    return folder


def _train_vocabulary(path: Path, texts: Iterable[str], vocab_size: int) -> int:
    """Train a SentencePiece Unigram model like T5's, write it to ``path``; return its size."""
    import sentencepiece

    # NFKC first: it is what turns a full-width "＜" into the "<" that must not get in.
    lines = [unicodedata.normalize("NFKC", line) for text in texts for line in text.splitlines()]
    # Every character costs a piece: the most common ones get half of the vocabulary at most.
    counts = Counter(c for line in lines for c in line if c not in LACKING)
    known = {c for c, _ in counts.most_common(vocab_size // 2)}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=("".join(c if c in known else " " for c in line) for line in lines),
        model_writer=model,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=False,
        character_coverage=1.0,
        required_chars="".join(sorted(set(string.printable.strip()) - set(LACKING))),
        max_sentence_length=1 << 20,  # bytes; a longer line would be left out
        num_threads=1,  # so that sums of floats come out the same on every machine
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    path.write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size())


def _write_weights(folder: Path, seed: int) -> None:
    """Write random weights for the configuration in ``folder``, untied as Flan-T5's are.

    transformers ties a fresh T5's two embeddings whatever its configuration says, so the second is
    drawn here; loaded from a file, two that differ stay apart.
    """
    import torch
    from safetensors.torch import save
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config.from_pretrained(folder))
        state = {name: t for name, t in model.state_dict().items() if "embed_tokens" not in name}
        # Small, so that the loss starts near the logarithm of the vocabulary's size.
        state["lm_head.weight"] = torch.randn_like(state["shared.weight"]) * 0.05
    (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))


def read_texts(path: Path) -> list[str]:
    """Return the texts of all turns in a ShareGPT file; records of a wrong shape are left out."""
    records = [record["conversations"] for record in json.loads(path.read_text(encoding="utf-8"))]
    return [turn["value"] for turns in records if isinstance(turns, list) for turn in turns]


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(make_tiny_t5(Path(sys.argv[1]), read_texts(SAMPLE)))
