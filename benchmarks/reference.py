"""Ours against FastChat's ``train_flant5``: time to prepare, tokens of answers, exact answers.

    just bench reference EXPORT.json T5_TOKENIZER --reference-python PYTHON [--records 1200]

``EXPORT.json`` is a ShareGPT export, ``T5_TOKENIZER`` a folder with Flan-T5's ``tokenizer.json``
and ``spiece.model``, ``PYTHON`` the interpreter of an environment with ``fschat`` and the
``transformers`` 4 that it needs. Both sides run as whole processes, in turn; medians are printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fit_reference import first_records

from pipeline.prepare.read.records import clean
from pipeline.tokenizer import load_tokenizer

SIDE = Path(__file__).with_name("reference_side.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--reference-python", required=True)
    parser.add_argument("--records", type=int, default=1200)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.json"
        records = first_records(args.export, args.records)
        path.write_text(json.dumps(records), encoding="utf-8")
        reference = [args.reference_python, str(SIDE), str(path), args.tokenizer]
        times: dict[str, list[float]] = {"ours": [], "reference": []}
        for run in range(args.runs):
            ours = [
                sys.executable,
                "-m",
                "pipeline",
                "prepare",
                "--data-path",
                str(path),
                "--model-name-or-path",
                args.tokenizer,
                "--output-dir",
                f"{folder}/{run}",
            ]
            times["ours"].append(seconds(ours))
            times["reference"].append(seconds(reference))
        theirs = json.loads(output([*reference, "--measure"]).splitlines()[-1])
    print_table(times, our_answers(records, args.tokenizer), theirs, len(records))


def our_answers(records: list[Any], name: str) -> dict[str, int]:
    """Return tokens of all answers, and how many decode to what they were."""
    tokenizer = load_tokenizer(name)
    texts = [
        clean(turn["value"])
        for record in records
        for turn in record["conversations"]
        if turn["from"] == "gpt" and turn["value"].strip()
    ]
    ids = tokenizer.encode_batch(texts)
    exact = sum(tokenizer.decode(i) == text for i, text in zip(ids, texts, strict=True))
    return {"answer_tokens": sum(map(len, ids)), "answers": len(texts), "exact": exact}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    output(command)
    return time.perf_counter() - start


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def print_table(
    times: dict[str, list[float]], ours: dict[str, int], theirs: dict[str, int], records: int
) -> None:
    ratios = [t / o for o, t in zip(times["ours"], times["reference"], strict=True)]
    medians = {side: statistics.median(values) for side, values in times.items()}
    print(f"| {records:,} records, {ours['answers']:,} answers | duet | train_flant5 | |")
    print("| --- | --- | --- | --- |")
    rows = [
        (
            f"seconds to prepare, whole process, median of {len(ratios)}",
            f"{medians['ours']:.1f}",
            f"{medians['reference']:.1f}",
            f"{statistics.median(ratios):.1f} times as fast",
        ),
        (
            "tokens of all answers",
            f"{ours['answer_tokens']:,}",
            f"{theirs['answer_tokens']:,}",
            f"{ours['answer_tokens'] / theirs['answer_tokens']:.2f} of them",
        ),
        *(
            (
                f"answers back to the letter, `decode` {how}",
                f"{ours['exact'] / ours['answers']:.1%}",
                f"{theirs[key] / theirs['answers']:.1%}",
                "",
            )
            for how, key in (
                ("with the options of FastChat's server", "exact_as_served"),
                ("by its defaults", "exact_by_default"),
            )
        ),
    ]
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
