"""What may take long waits in a group of its own, whose limit is not the main one's."""

import time
from datetime import timedelta
from pathlib import Path

from pipeline.fit.distributed.host_group import HostGroup
from scripts.ranks import run_in

LIMIT = 1.0
"""Seconds of a collective in the main group, here; NCCL's is ten minutes."""


def wait_longer(result: Path) -> None:
    """Let one process save for longer than the main group allows."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _set_pg_timeout

    dist.init_process_group("gloo")
    group = HostGroup.join()
    # Not before: processes may come up and find each other as late as they like.
    _set_pg_timeout(timedelta(seconds=LIMIT))
    ranks = group.run_on_all(lambda: group.rank)
    done = group.run_on_first(lambda: time.sleep(1.5 * LIMIT) or "saved")
    if group.rank == 0:
        result.write_text(f"{done} {ranks} {dist.get_backend(group.group)}", "utf-8")
    dist.destroy_process_group()


def test_a_long_write_is_waited_for(tmp_path: Path) -> None:
    run_in(2, wait_longer, tmp_path / "result", folder=tmp_path / "said")
    assert (tmp_path / "result").read_text("utf-8") == "saved [0, 1] gloo"
