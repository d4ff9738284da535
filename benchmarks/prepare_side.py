"""One run of ``duet prepare``, and what it took: the parent's processor time and its workers'.

    python prepare_side.py --data-path … --output-dir …

Prints a JSON object: seconds of the processor in this process and in those that it started, and
the most memory of each kind, in MB.
"""

import contextlib
import json
import os
import resource
import sys
from pathlib import Path

from pipeline.cli import run


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        code = run(["prepare", *sys.argv[1:]])
    own, others = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    found = {
        "parent": own.ru_utime + own.ru_stime,
        "workers": others.ru_utime + others.ru_stime,
        "parent_mb": peak_of_this_process() / 1024,
        "worker_mb": others.ru_maxrss / 1024,
    }
    print(json.dumps(found), flush=True)
    os._exit(code)  # as the command does


def peak_of_this_process() -> int:
    """Return the most memory, in kB; ``ru_maxrss`` begins with that of whoever started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main()
