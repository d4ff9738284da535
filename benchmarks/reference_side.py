"""The reference's half of other benchmarks; runs where FastChat (``fschat``) is installed.

    python reference_side.py RECORDS.json TOKENIZER [--measure] [--rows ROWS.npz] [--decode]

Runs FastChat's own ``preprocess`` on the records, as ``train_flant5`` does, and prints what it
gave as JSON.
"""

import argparse
import copy
import json
import time
from pathlib import Path


def main() -> None:
    from fastchat.train.train_flant5 import preprocess
    from transformers import AddedToken, T5Tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--measure", action="store_true", help="encode and decode each answer")
    parser.add_argument("--rows", help="write the rows there")
    parser.add_argument("--decode", action="store_true", help="count the bytes of all labels' text")
    args = parser.parse_args()
    start = time.perf_counter()
    records = json.loads(args.records.read_text(encoding="utf-8"))
    tokenizer = T5Tokenizer.from_pretrained(
        args.tokenizer, model_max_length=args.max_length, padding_side="right", use_fast=False
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    for token in ["<", "{", "\n", "}", "`", " ", "\\", "^", "\t"]:
        tokenizer.add_tokens(AddedToken(token, normalized=False))
    sources = [copy.deepcopy(record["conversations"]) for record in records]
    rows = preprocess([source for source in sources if source], tokenizer)
    result = {"seconds": time.perf_counter() - start, "pairs": len(rows["labels"])}
    if args.measure:
        result |= answers(records, tokenizer)
    if args.rows:
        write_rows(args.rows, rows)
    if args.decode:
        texts = (served(ids, tokenizer) for ids in rows["labels"])
        result["label_bytes"] = sum(len(text.encode()) for text in texts)
    print(json.dumps(result))


def answers(records: list, tokenizer: object) -> dict:
    """Return tokens of all answers, and how many decode to what they were, in both ways."""
    result = dict.fromkeys(("answers", "answer_tokens", "exact_as_served", "exact_by_default"), 0)
    for record in records:
        for turn in record["conversations"]:
            if turn["from"] != "gpt" or not turn["value"].strip():
                continue
            text = turn["value"].replace("\r\n", "\n")
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            result["answers"] += 1
            result["answer_tokens"] += len(ids)
            result["exact_as_served"] += served(ids, tokenizer) == text
            result["exact_by_default"] += tokenizer.decode(ids, skip_special_tokens=True) == text
    return result


def served(ids: list, tokenizer: object) -> str:
    """Return the text of ids as FastChat's server decodes them; others decode by the defaults."""
    return tokenizer.decode(ids, skip_special_tokens=True, spaces_between_special_tokens=False)


def write_rows(path: str, rows: dict) -> None:
    """Write the ids of all rows one after another, uint16, and their lengths."""
    import numpy as np

    arrays = {}
    for name in ("input_ids", "labels"):
        arrays[f"{name}_length"] = np.array([len(ids) for ids in rows[name]])
        arrays[name] = np.concatenate([np.array(ids, np.uint16) for ids in rows[name]])
    np.savez(path, **arrays)


if __name__ == "__main__":
    main()
