"""Model and rows fit each other: found out from files alone, before anything is made."""

from typing import Any

import torch

from pipeline.config.views import ModelSettings
from pipeline.errors import ModelError
from pipeline.fit.model.adapter import base_name
from pipeline.fit.model.loading import load_config, model_errors, quiet_transformers
from pipeline.fit.model.sizes import UNLIMITED, most_positions, vocabulary_rows
from pipeline.fit.model.token_ids import check_vocabulary, first_new_id, model_token_ids
from pipeline.model_kind import check_model_kind
from pipeline.store.fingerprint import sha256_of_text
from pipeline.template import is_chat_template
from pipeline.tokenizer import TextTokenizer, own_part, template_of

_SIDES, _LENGTHS = ("encoder", "decoder"), ("--model-max-length", "--max-target-length")


def check_model(
    settings: ModelSettings,
    tokenizer: TextTokenizer,
    *,
    longest: tuple[int, int],
    any_template: bool = False,
) -> None:
    """Refuse a model that the rows cannot be trained with, by its files without its weights.

    Args:
        settings: Which model.
        tokenizer: The rows', with their template.
        longest: Tokens of the longest encoder row, and of the longest decoder row.
        any_template: Whether the rows may be of another template than the model's.

    Raises:
        ModelError: It is no encoder-decoder, reads bytes, or the rows have another vocabulary or
            another chat template, or are too long for it.
    """
    name = base_name(settings.name, settings.cache_dir)
    check_model_kind(name, settings.cache_dir)
    _check_positions(name, longest, settings.cache_dir)
    if settings.from_scratch:
        return
    with model_errors(name), quiet_transformers():
        own_ids = model_token_ids(name, settings.cache_dir)
    check_vocabulary(name, tokenizer, own_ids)
    rows = vocabulary_rows(load_config(name, settings.cache_dir))
    known = first_new_id(tokenizer)
    if own_ids is None and rows < known:
        raise ModelError(
            "the data were prepared for another model",
            where=name,
            got=f"no tokenizer, and {rows} embedding rows for {known} tokens in the data",
            do="give the model that the data were prepared for",
        )
    if not any_template:
        _check_template(name, tokenizer, settings.cache_dir)


def check_writes(model: Any, where: object, do: str) -> None:
    """Refuse a model with which transformers cannot write.

    In 5.23 that is ProphetNet, whose positions are refused from the second id on.

    Args:
        model: With its weights; with an adapter, too.
        where: What it is to write for.
        do: What to do without.

    Raises:
        ModelError: Two ids cannot be written.
    """
    if most_positions(model.config) == (UNLIMITED, UNLIMITED):
        return  # T5's kin and others, which are known to write
    source = torch.full((1, 1), model.config.pad_token_id or 0, device=model.device)
    training = model.training
    try:
        with quiet_transformers():
            model.eval().generate(
                input_ids=source,
                attention_mask=torch.ones_like(source),
                min_new_tokens=2,
                max_new_tokens=2,
            )
    except Exception as error:
        raise ModelError(
            "transformers cannot write answers with this model",
            where=where,
            got=f"{model.config.model_type}: {str(error).strip().partition(chr(10))[0]}",
            do=do,
        ) from error
    finally:
        model.train(training)


def _check_positions(name: str, longest: tuple[int, int], cache_dir: str | None) -> None:
    """Refuse rows that are longer than a model has positions for."""
    most = most_positions(load_config(name, cache_dir))
    for side, flag, rows, positions in zip(_SIDES, _LENGTHS, longest, most, strict=True):
        if rows > positions:
            raise ModelError(
                "the data have rows that are too long for the model",
                where=name,
                got=f"{side} rows of up to {rows:,} tokens, and {positions:,} positions",
                do=f"run duet prepare with {flag} {positions}",
            )


def _check_template(name: str, tokenizer: TextTokenizer, cache_dir: str | None) -> None:
    """Refuse rows of one template for a model of another; a model without one takes any."""
    said = template_of(name, cache_dir)
    if said is None:
        return
    model = None if is_chat_template(said) else own_part(said)
    rows = tokenizer.template.own if tokenizer.template else None
    if rows != model:
        raise ModelError(
            "the data were prepared with another chat template than the model's",
            where=name,
            got=f"{_named(rows)} in the data, {_named(model)} with the model",
            do=f"run duet prepare with --model-name-or-path {name}; with --chat-template duet, "
            "too, if it is to learn the tagged text",
        )


def _named(template: str | None) -> str:
    """Return a template's name: how it begins, and a hash of all of it."""
    if template is None:
        return "the tagged text (### Human:)"
    beginning = " ".join(template.split())[:40]
    return f"{beginning!r}… ({sha256_of_text(template)[:8]})"
