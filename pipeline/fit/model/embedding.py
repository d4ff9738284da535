"""Rows of the embedding for new tokens: grown where needed, started from the mean, moved along.

A model has one embedding matrix (tied), two (untied: input and output; T5Gemma's decoder shares
one with its head, its encoder has one of its own) or three. All are worked on as the parameters
they are, because ``resize_token_embeddings`` ties an untied T5 again and overwrites its output
matrix. Real Flan-T5 has 32,128 rows for 32,100 tokens: the lossless
tokenizer's nine pieces fit in the rows to spare, which are untrained, and nothing grows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.console.units import round_up
from pipeline.fit.model.families import input_embeddings
from pipeline.fit.model.sizes import set_vocabulary_rows

MULTIPLE = 128
"""Rows are grown to a multiple of this: the matrix products of GPUs like it."""


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: Mapping[str, Any],
    other_tokens: Sequence[str],
    tokenizer: Any,
    model: Any,
) -> None:
    """Add tokens to a transformers tokenizer and give each a row of the model's embedding.

    The embedding grows only when its rows do not suffice for the whole vocabulary, and then to a
    multiple of 128. Each new row, input and output, starts from the mean of the trained rows:
    those that the model had below the length that the tokenizer had. Tied matrices stay tied,
    untied ones untied. A token that is there already keeps its id and, if it had one, its row.

    Args:
        special_tokens_dict: What ``tokenizer.add_special_tokens`` takes.
        other_tokens: Further tokens, matched before the text is normalised.
        tokenizer: A transformers tokenizer; changed in place.
        model: A transformers model; changed in place.
    """
    from transformers import AddedToken

    num_trained = min(len(tokenizer), num_rows(model))
    before = tokenizer.get_vocab()
    tokenizer.add_special_tokens(dict(special_tokens_dict))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in other_tokens])
    vocabulary = tokenizer.get_vocab()
    grow_embedding(model, max(vocabulary.values()) + 1, num_trained)
    new = {token: i for token, i in vocabulary.items() if token not in before}
    carry_over_rows(model, {}, new, num_trained)


def embedding_weights(model: Any) -> list[nn.Parameter]:
    """Return the matrices [rows, d_model], each once: those of the inputs, that of the output."""
    holders = [*input_embeddings(model), model.get_output_embeddings()]
    weights = {id(each.weight): each.weight for each in holders if each is not None}
    return list(weights.values())


def is_tied(model: Any) -> bool:
    """Return whether the output shares its matrix with an input: with the encoder's or not."""
    output = model.get_output_embeddings()
    inputs = (module.weight for module in input_embeddings(model))
    return output is None or any(weight is output.weight for weight in inputs)


def num_rows(model: Any) -> int:
    """Return the rows of the input embedding."""
    return int(embedding_weights(model)[0].shape[0])


def rows_for(vocab_size: int) -> int:
    """Return the rows that an embedding grows to.

    >>> rows_for(32_109)
    32128
    """
    return round_up(vocab_size, MULTIPLE)


def untie(model: Any) -> None:
    """Give the output a matrix of its own, which transformers withholds from a fresh T5."""
    output = model.get_output_embeddings()
    # Flan-T5 does not scale the decoder's output: with the usual 1.0 logits would start at a
    # spread of sqrt(d_model) and the loss far above the logarithm of the vocabulary.
    spread = getattr(model.config, "initializer_factor", 1.0) * output.in_features**-0.5
    output.weight = nn.Parameter(torch.randn_like(output.weight) * spread)
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is output.weight:
            tied.pop(name, None)


def grow_embedding(model: Any, vocab_size: int, num_trained: int) -> None:
    """Give the model at least ``vocab_size`` rows, in place; it never shrinks.

    Each row that is added, a token's or spare, is the mean of the ``num_trained`` first: a row of
    zeros would have the logit 0, which in an untied model is far above those of unlikely tokens.
    """
    if vocab_size <= num_rows(model):
        return
    rows = rows_for(vocab_size)
    for weight in embedding_weights(model):
        grown = nn.Parameter(_with_rows(weight.detach(), rows, num_trained), weight.requires_grad)
        _replace_parameter(model, weight, grown)
    for module in input_embeddings(model):
        module.num_embeddings = rows
    output = model.get_output_embeddings()
    if output is not None:
        output.out_features = rows
        if getattr(output, "bias", None) is not None:
            bias = _with_rows(output.bias.detach(), rows, num_trained)
            output.bias = nn.Parameter(bias, output.bias.requires_grad)
    if getattr(model, "final_logits_bias", None) is not None:  # a buffer of BART's, [1, rows]
        model.final_logits_bias = _with_rows(model.final_logits_bias.T, rows, num_trained).T
    set_vocabulary_rows(model.config, rows)
    if hasattr(model, "vocab_size"):  # what T5Gemma's own loss goes by
        model.vocab_size = rows


@torch.no_grad()
def carry_over_rows(
    model: Any, old_ids: Mapping[str, int], new_ids: Mapping[str, int], num_trained: int
) -> None:
    """Give each token the row it was trained in, where a model knew it under another id.

    FastChat-T5 was extended with some of the same pieces at other ids (``<`` at 32,101, newline
    at 32,103). Tokens that the model did not know start from the mean of the trained rows. All is
    read before anything is written: a row's new place may be another's old one.

    Args:
        model: The model, with a row for each new id; changed in place.
        old_ids: The ids that the model's own tokenizer has for the tokens it knows.
        new_ids: The ids that the tokens have now. Where both agree nothing is touched.
        num_trained: The trained rows are those below this.
    """
    changed = {token: i for token, i in new_ids.items() if old_ids.get(token) != i}
    if not changed:
        return
    moves = {old_ids[token]: i for token, i in changed.items() if token in old_ids}
    fresh = [i for token, i in changed.items() if token not in old_ids]
    for weight in embedding_weights(model):
        mean, moved = mean_row(weight, num_trained), weight[list(moves)]
        weight[fresh] = mean
        weight[list(moves.values())] = moved


def mean_row(matrix: torch.Tensor, num_trained: int) -> torch.Tensor:
    """Return the mean of the first ``num_trained`` rows, summed in float32."""
    return matrix[:num_trained].float().mean(dim=0).to(matrix.dtype)


def _with_rows(matrix: torch.Tensor, rows: int, num_trained: int) -> torch.Tensor:
    """Return a matrix, or a vector, with the mean appended to its first dimension."""
    missing = rows - matrix.shape[0]
    mean = mean_row(matrix, num_trained)
    return torch.cat([matrix, mean.expand(missing, *mean.shape)])


def _replace_parameter(model: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put ``new`` wherever ``old`` is held: T5 holds its input matrix in three modules."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter is old:
                setattr(module, name, new)
