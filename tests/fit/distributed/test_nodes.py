"""Several nodes: here two, of one process each, on one machine; no disk but OUT is shared."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.equalities import differences
from scripts.ranks import free_port
from tests.conftest import SAMPLE

ROOT = Path(__file__).resolve().parents[3]
TRAIN = """--data-path {data} --model-name-or-path {model} --output-dir {out} --model-max-length 256
    --train-batch-size 8 --per-device-train-batch-size 4 --learning-rate 1e-3 --logging-steps 1
    --eval-fraction 0.1 --num-workers 1 --seed 3"""


LAUNCHERS = {
    "torchrun": "torch.distributed.run --nnodes {nodes} --node-rank {rank} --nproc-per-node 1 "
    "--master-addr 127.0.0.1 --master-port {port} -m pipeline train",
    "accelerate": "accelerate.commands.accelerate_cli launch --multi_gpu --num_machines {nodes} "
    "--num_processes {nodes} --machine_rank {rank} --main_process_ip 127.0.0.1 "
    "--main_process_port {port} -m pipeline train",
}


def on_nodes(
    folders: list[Path], out: str, model: Path, *more: str, launcher: str = "torchrun"
) -> list[tuple[int, str]]:
    """Run ``duet train`` on one node for each working directory; return exit codes and stderr."""
    port = free_port()
    flags = TRAIN.format(data=SAMPLE, model=model, out=out).split()
    processes = []
    for rank, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        launch = LAUNCHERS[launcher].format(nodes=len(folders), rank=rank, port=port).split()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *launch, *flags, *more],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(out.count("\n") <= 1 for out, _ in said)
    return [(p.returncode, text) for p, (_, text) in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def still(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.fit.helpers import with_config

    return with_config(tiny_t5, tmp_path_factory.mktemp("still") / "still", dropout_rate=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_nodes_prepare_for_themselves_and_train_as_one(
    still: Path, tmp_path: Path, launcher: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    ((code, said),) = on_nodes([tmp_path / "a"], str(one), still, "--max-steps=6")
    assert code == 0, said
    nodes = [tmp_path / "b", tmp_path / "c"]
    both = on_nodes(nodes, str(two), still, "--max-steps=6", launcher=launcher)
    assert [code for code, _ in both] == [0, 0], both
    made = [
        list((tmp_path / name / "data" / "processed").glob("*/manifest.json")) for name in "abc"
    ]
    assert [len(found) for found in made] == [1, 1, 1]
    assert len({found[0].parent.name for found in made}) == 1
    assert "global batch size 8" in both[0][1]
    assert "global batch size 8" not in both[1][1]
    found = differences(one, two)
    assert max(found.values()) < 1e-4, found


@pytest.mark.slow
def test_without_a_shared_disk_one_node_writes_and_all_need_the_checkpoint(
    still: Path, tmp_path: Path
) -> None:
    nodes = [tmp_path / "a", tmp_path / "b"]
    first = on_nodes(nodes, "out", still, "--max-steps=2")
    assert [code for code, _ in first] == [0, 0], first
    assert (nodes[0] / "out" / "trainer_state.json").is_file()
    assert not (nodes[1] / "out").exists()
    # Process 0 alone sees where it writes, and writes all of it.
    assert first[0][1].count("checkpoints are written where process 0 runs") == 1
    assert {path.name for path in (nodes[0] / "out" / "checkpoint-2").glob("[mo]*[st]")} == {
        "model.safetensors",
        "optimizer.pt",
    }
    again = on_nodes(nodes, "out", still, "--max-steps=4", "--resume-anyway")
    for code, said in again:
        assert code == 1
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "a node does not see the checkpoint" in line
        assert "out/checkpoint-2" in line
    shutil.copytree(nodes[0] / "out", nodes[1] / "out")
    copied = on_nodes(nodes, "out", still, "--max-steps=4", "--resume-anyway")
    assert [code for code, _ in copied] == [0, 0], copied
    assert (nodes[0] / "out" / "checkpoint-4").is_dir()
    assert not (nodes[1] / "out" / "checkpoint-4").exists()
