"""Tokenizers of Gemma's and of mT5's kind in model folders, and chat templates."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, processors
from tokenizers.trainers import BpeTrainer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
TEXTS = (
    "The sea, the wind and the stars. What is 2 + 2? It is 4.",
    "def f(x):\n\tif x < 2:\n\t\treturn {x}\n\n### Human: why\n",
    "user model system turn of start end bos eos pad unk im Tools: [{}]",
)

STRICT = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system text') }}{% endif %}\n"
    "{% for m in messages %}\n"
    "  {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "{{ raise_exception('speakers must take turns') }}\n"
    "  {% endif %}\n"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n'"
    " + (m['content'] | trim) + '<end_of_turn>\\n' }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
"""Of Gemma's kind: speakers alternate, a human begins, nothing but what they say."""

FREE = (
    "{%- for m in messages -%}"
    "{{ '<start_of_turn>' ~ m['role'] ~ '\\n' ~ m['content'] ~ '<end_of_turn>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>assistant\\n' }}{%- endif -%}"
)
"""Of ChatML's kind: whoever speaks, in any order."""


@functools.cache
def _pieces(single: str) -> str:
    tokenizer: Any = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = BpeTrainer(
        vocab_size=460, special_tokens=special, show_progress=False,
        initial_alphabet=list(map(chr, range(33, 127))),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][: len(SPECIAL)]  # bytes are no such tokens
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return str(tokenizer.to_str())


def gemma_like(
    folder: Path,
    template: str | None = STRICT,
    *,
    ends: Any = (1, 5),
    special: bool = True,
    more: Iterable[dict[str, Any]] = (),
    single: str = "<bos> $A",
    start: int = 2,
    **settings: Any,
) -> Path:
    """Write the tokenizer of a model of Gemma's kind, and what the model says beside it.

    Args:
        folder: Made for it.
        template: Its chat template.
        ends: The ids at which generation stops.
        special: Whether the tokens of turns say that they are special.
        more: Further added tokens, what each says of itself.
        single: What the tokenizer puts around a text.
        start: What the decoder starts with.
        **settings: Of its ``tokenizer_config.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = json.loads(_pieces(single))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for i, token in enumerate(more, len(spec["model"]["vocab"])):
        spec["added_tokens"].append(flags | {"id": i, "special": True} | token)
    for token in spec["added_tokens"]:
        if "_of_turn" in token["content"]:
            token["special"] = special
    (folder / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>",
    } | settings  # fmt: skip
    if template is not None:
        settings["chat_template"] = template
    ids = {"decoder_start_token_id": start, "eos_token_id": 1, "pad_token_id": 0}
    said = {
        "tokenizer_config.json": settings,
        "config.json": {"model_type": "t5gemma", "is_encoder_decoder": True} | ids,
        "generation_config.json": ids
        | {"eos_token_id": list(ends) if isinstance(ends, tuple) else ends},
    }
    for name, values in said.items():
        (folder / name).write_text(json.dumps(values), "utf-8")
    return folder


def mt5_like(folder: Path, texts: Iterable[str] = TEXTS, *, spare: int | None = None) -> int:
    """Write the tokenizer of a model of mT5's kind: SentencePiece with a piece for each byte.

    Args:
        folder: Made for it.
        texts: What it is trained on.
        spare: Rows of the embedding beyond the pieces, for a config; None: no config.

    Returns:
        How many pieces there are.
    """
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.splitlines()]),
        model_prefix=str(folder / "spiece"), vocab_size=420, hard_vocab_limit=False,
        byte_fallback=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        num_threads=1,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    settings = {
        "tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>",
        "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    loaded = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    pieces = int(loaded.vocab_size())
    if spare is not None:
        said = {"model_type": "mt5", "vocab_size": pieces + spare, "decoder_start_token_id": 0}
        (folder / "config.json").write_text(json.dumps(said), "utf-8")
    return pieces
