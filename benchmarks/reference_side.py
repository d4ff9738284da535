"""The reference's half of ``reference.py``; runs where FastChat (``fschat``) is installed.

    python reference_side.py RECORDS.json TOKENIZER [--measure]

Runs FastChat's own ``preprocess`` on the records, as ``train_flant5`` does, and prints what it
gave as JSON. With ``--measure`` it also encodes and decodes each answer.
"""

import copy
import json
import sys
import time
from pathlib import Path


def main() -> None:
    from fastchat.train.train_flant5 import preprocess
    from transformers import AddedToken, T5Tokenizer

    path, name = sys.argv[1:3]
    start = time.perf_counter()
    records = json.loads(Path(path).read_text(encoding="utf-8"))
    tokenizer = T5Tokenizer.from_pretrained(
        name, model_max_length=2048, padding_side="right", use_fast=False
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    for token in ["<", "{", "\n", "}", "`", " ", "\\", "^", "\t"]:
        tokenizer.add_tokens(AddedToken(token, normalized=False))
    sources = [copy.deepcopy(record["conversations"]) for record in records]
    rows = preprocess([source for source in sources if source], tokenizer)
    result = {"seconds": time.perf_counter() - start, "pairs": len(rows["labels"])}
    if "--measure" in sys.argv:
        result |= answers(records, tokenizer)
    print(json.dumps(result))


def answers(records: list, tokenizer: object) -> dict:
    """Return tokens of all answers, and how many decode to what they were, in both ways.

    FastChat's server decodes with ``spaces_between_special_tokens=False``; whoever loads the
    tokenizer elsewhere decodes with the default.
    """
    result = dict.fromkeys(("answers", "answer_tokens", "exact_as_served", "exact_by_default"), 0)
    for record in records:
        for turn in record["conversations"]:
            if turn["from"] != "gpt" or not turn["value"].strip():
                continue
            text = turn["value"].replace("\r\n", "\n")
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            served = tokenizer.decode(
                ids, skip_special_tokens=True, spaces_between_special_tokens=False
            )
            result["answers"] += 1
            result["answer_tokens"] += len(ids)
            result["exact_as_served"] += served == text
            result["exact_by_default"] += tokenizer.decode(ids, skip_special_tokens=True) == text
    return result


if __name__ == "__main__":
    main()
