"""A small model of each family, with random weights and a tokenizer of its kind, in a folder.

Each is written by transformers itself, so that the folder is what one from the hub would be. The
sizes are as small as what is typical of the family allows: grouped queries, windows shorter than
the rows, caps low enough to bend the logits.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    LongT5Config,
    MT5Config,
    PreTrainedConfig,
    SwitchTransformersConfig,
    T5Config,
    T5Gemma2Config,
    T5GemmaConfig,
    T5Tokenizer,
    UMT5Config,
)

from scripts.tiny_t5 import make_tiny_t5
from tests.chat_models import mt5_like
from tests.fit.helpers import TEXTS

IDS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
    "dropout_rate": 0.0, **IDS,
}  # fmt: skip
_GATED = {"feed_forward_proj": "gated-gelu"}
_GEMMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 128,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
}  # fmt: skip


def _t5(rows: int) -> PreTrainedConfig:
    return T5Config(vocab_size=rows, feed_forward_proj="relu", **_T5)


def _flan_t5(rows: int) -> PreTrainedConfig:
    return T5Config(vocab_size=rows, tie_word_embeddings=False, **_T5, **_GATED)


def _ul2(rows: int) -> PreTrainedConfig:
    gated = {"feed_forward_proj": "gated-silu"}
    return T5Config(vocab_size=rows, tie_word_embeddings=False, **_T5, **gated)


def _mt5(rows: int) -> PreTrainedConfig:
    return MT5Config(vocab_size=rows, tie_word_embeddings=False, **_T5, **_GATED)


def _umt5(rows: int) -> PreTrainedConfig:
    return UMT5Config(vocab_size=rows, tie_word_embeddings=False, **_T5, **_GATED)


def _long_t5(rows: int, kind: str = "transient-global") -> PreTrainedConfig:
    return LongT5Config(
        vocab_size=rows, tie_word_embeddings=False, encoder_attention_type=kind, local_radius=7,
        global_block_size=4, **_T5, **_GATED,
    )  # fmt: skip


def _long_t5_local(rows: int) -> PreTrainedConfig:
    return _long_t5(rows, "local")


def _switch(rows: int) -> PreTrainedConfig:
    return SwitchTransformersConfig(
        vocab_size=rows, num_experts=4, expert_capacity=8, num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1, router_jitter_noise=0.0, **_T5,
    )  # fmt: skip


def _bart_untied(rows: int) -> PreTrainedConfig:
    config = _bart(rows)
    config.tie_word_embeddings = False  # three matrices, and one that nobody uses
    return config


def _bart(rows: int) -> PreTrainedConfig:
    return BartConfig(
        vocab_size=rows, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, dropout=0.0,
        max_position_embeddings=128, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip


def _t5gemma(rows: int) -> PreTrainedConfig:
    return T5GemmaConfig(
        encoder=_GEMMA | {"vocab_size": rows},
        decoder=_GEMMA | {"vocab_size": rows},
        vocab_size=rows,
    )


def _t5gemma2(rows: int) -> PreTrainedConfig:
    text = _GEMMA | {"vocab_size": rows}
    text |= {"final_logit_softcapping": None, "attn_logit_softcapping": None}  # as published
    encoder = {"text_config": text, "vision_config": _VISION, "mm_tokens_per_image": 4}
    encoder |= {"boi_token_index": 4, "eoi_token_index": 5, "image_token_index": 6}
    return T5Gemma2Config(encoder=encoder, decoder=text, image_token_index=6, eoi_token_index=5)


FAMILIES: dict[str, tuple[Callable[[int], PreTrainedConfig], str, bool]] = {
    "t5": (_t5, "t5", True),
    "t5-untied": (_t5, "t5", False),  # logits are scaled all the same, and in Switch
    "flan-t5": (_flan_t5, "t5", False),
    "flan-t5-tied": (_flan_t5, "t5", True),
    "ul2": (_ul2, "t5", False),
    "mt5": (_mt5, "mt5", False),
    "umt5": (_umt5, "umt5", False),
    "longt5": (_long_t5, "t5", False),
    "longt5-local": (_long_t5_local, "t5", False),
    "switch": (_switch, "t5", True),
    "switch-untied": (_switch, "t5", False),
    "bart": (_bart, "bart", True),
    "bart-untied": (_bart_untied, "bart", False),
    "t5gemma": (_t5gemma, "gemma", True),
    "t5gemma2": (_t5gemma2, "gemma", True),
}
"""Of each its config, its kind of tokenizer, and whether head and embedding are one matrix."""


def make_family(name: str, folder: Path) -> Path:
    """Write a small model of a family, with its tokenizer, into a folder and return it."""
    config_of, kind, tied = FAMILIES[name]
    rows = _TOKENIZERS[kind](folder, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForSeq2SeqLM.from_config(config_of(rows))
        if not tied and model.get_output_embeddings().weight is model.get_input_embeddings().weight:
            head = model.get_output_embeddings()
            head.weight = torch.nn.Parameter(torch.randn_like(head.weight) * 0.05)
            model.all_tied_weights_keys.pop("lm_head.weight")
        for weight in model.parameters():  # as after training: no norm, no bias at its start
            if weight.dim() == 1:
                weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def _t5_tokenizer(folder: Path, _: str) -> int:
    make_tiny_t5(folder, TEXTS, vocab_size=200, weights=False)
    return int(json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"])


def _mt5_tokenizer(folder: Path, kind: str) -> int:
    """mT5's: SentencePiece with bytes for what it does not know, and no ``tokenizer.json``."""
    pieces = mt5_like(folder, TEXTS)
    if kind == "umt5":  # comes with its fast form, and from its pieces alone it is not made
        T5Tokenizer.from_pretrained(folder).save_pretrained(folder)
    return -(-pieces // 128) * 128


def _bpe_tokenizer(folder: Path, kind: str) -> int:
    """BART's and Gemma's: byte-level pairs, between ``<s>`` and ``</s>`` or behind ``<bos>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = {
        "bart": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<boi>", "<eoi>", "<image>"],
    }[kind]
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    start, single = ("<s>", "<s> $A </s>") if kind == "bart" else ("<bos>", "<bos> $A")
    eos = "</s>" if kind == "bart" else "<eos>"
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, eos)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start, "eos_token": eos,
        "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return 384


_TOKENIZERS = {
    "t5": _t5_tokenizer,
    "mt5": _mt5_tokenizer,
    "umt5": _mt5_tokenizer,
    "bart": _bpe_tokenizer,
    "gemma": _bpe_tokenizer,
}
