"""The careful script that ``prepare`` is compared with: ``datasets.map`` in several processes.

    python prepare_map.py RECORDS.json TOKENIZER OUTPUT [--processes 2]

It takes the tokenizer of a prepared folder, tokenizes each turn once with the Rust tokenizer's
batch call, cuts pairs to the window as the contract says, and saves with ``save_to_disk``. It
neither joins parts nor leaves out repeats, nor looks at what is wrong with a record: less work
than ``prepare`` does.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

HEADER = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions.\n\n"
)
TAGS = {"human": "### Human:", "user": "### Human:", "system": "### System:"}
LENGTH = 2048


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("records")
    parser.add_argument("tokenizer")
    parser.add_argument("output")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from datasets import Dataset

    records = json.loads(Path(args.records).read_text(encoding="utf-8"))
    conversations = [record["conversations"] for record in records]
    table = {
        "who": [[turn["from"] for turn in turns] for turns in conversations],
        "text": [[turn["value"] for turn in turns] for turns in conversations],
    }
    rows = Dataset.from_dict(table).map(
        encode,
        batched=True,
        batch_size=200,
        num_proc=args.processes,
        remove_columns=["who", "text"],
        fn_kwargs={"path": args.tokenizer},
    )
    rows.save_to_disk(args.output)
    print(len(rows))


_tokenizers: dict[str, Any] = {}


def encode(batch: dict[str, list[list[str]]], path: str) -> dict[str, list[list[int]]]:
    """Return the pairs of a batch of conversations."""
    from tokenizers import Tokenizer

    if path not in _tokenizers:
        _tokenizers[path] = Tokenizer.from_file(f"{path}/tokenizer.json")
        _tokenizers[path].encode_special_tokens = True
    tokenizer = _tokenizers[path]
    header, prompt = ids_of(tokenizer, [HEADER, "### Assistant:"])
    texts = [
        f"{TAGS.get(who, '### Assistant:')} {text}\n"
        for whos, texts in zip(batch["who"], batch["text"], strict=True)
        for who, text in zip(whos, texts, strict=True)
    ]
    ids = iter(ids_of(tokenizer, texts))
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for whos in batch["who"]:
        turns = [next(ids) for _ in whos]
        for at, who in enumerate(whos):
            if who in TAGS or not any(w in ("human", "user") for w in whos[:at]):
                continue
            answer = turns[at][len(prompt) : -1]
            rows["input_ids"].append([*header, *cut(turns[:at], LENGTH, header), *prompt, 1])
            rows["labels"].append([*answer, 1][:LENGTH])
    return rows


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def cut(turns: list[list[int]], length: int, header: list[int]) -> list[int]:
    """Return the last whole turns that fit, or the end of the last one."""
    room, kept = length - len(header) - 4, []
    for turn in reversed(turns):
        if len(turn) > room:
            break
        kept.insert(0, turn)
        room -= len(turn)
    if not kept:
        return turns[-1][-room:]
    return [i for turn in kept for i in turn]


if __name__ == "__main__":
    main()
