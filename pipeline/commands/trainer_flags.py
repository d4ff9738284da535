"""Flags of the Hugging Face trainer that are none of ours: ignored, or refused, each with a reason.

A test holds the tables against the fields of the installed ``Seq2SeqTrainingArguments``. Flags of
older versions and of scripts that people come from stand here too.
"""

from typing import NamedTuple


class Refusal(NamedTuple):
    """Why a flag of the Hugging Face trainer is refused."""

    text: str
    """What to use instead, or why there is nothing."""
    unless: tuple[str, ...] = ()
    """Values that ask for what is done anyway; those that switch it off are accepted too."""


ALIASES = {
    "--activation-checkpointing": "--gradient-checkpointing",
    "--evaluation-strategy": "--eval-strategy",
    "--max-train-samples": "--num-data",
    "--push-to-hub-model-id": "--hub-model-id",
    "--push-to-hub-token": "--hub-token",
}
"""Other names of flags that are ours."""

_KERNELS = "the loss is computed in chunks, without all logits"
_CHECKPOINTING = "checkpointing is always non-reentrant, one layer at a time"
_LOADER = "examples are memory-mapped, and batches are made in the training process"
_DDP = "PyTorch's default fits: every parameter is used in every step"
_LOSS_ALONE = "evaluation computes losses alone and keeps no logits"
_MESSAGES = "the first process reports, on stderr"
_LENGTHS = "lengths are known from the prepared folder; see --group-by-length"
_PUSH = "the model is pushed once, at the end"

IGNORED = {
    "--accelerator-config": _LOADER,
    "--activation-checkpointing-kwargs": _CHECKPOINTING,
    "--average-tokens-across-devices": "the loss is always averaged over all processes' tokens",
    "--batch-eval-metrics": _LOSS_ALONE,
    "--bf16-full-eval": "evaluation computes as training does; see --bf16",
    "--dataloader-in-order": _LOADER,
    "--dataloader-multiprocessing-context": _LOADER,
    "--dataloader-num-workers": _LOADER,
    "--dataloader-persistent-workers": _LOADER,
    "--dataloader-pin-memory": _LOADER,
    "--dataloader-prefetch-factor": _LOADER,
    "--ddp-backend": "GPUs use NCCL, CPUs Gloo",
    "--ddp-broadcast-buffers": _DDP,
    "--ddp-bucket-cap-mb": _DDP,
    "--ddp-find-unused-parameters": _DDP,
    "--ddp-static-graph": _DDP,
    "--ddp-timeout": "each wait has a limit that fits it",
    "--disable-tqdm": "a progress bar is shown on a terminal only",
    "--dispatch-batches": _LOADER,
    "--do-eval": "see --eval-strategy",
    "--do-train": "a run always trains",
    "--enable-jit-checkpoint": "SIGTERM always saves a checkpoint",
    "--eval-accumulation-steps": _LOSS_ALONE,
    "--eval-do-concat-batches": _LOSS_ALONE,
    "--eval-use-gather-object": _LOSS_ALONE,
    "--gradient-checkpointing-kwargs": _CHECKPOINTING,
    "--hub-always-push": _PUSH,
    "--hub-strategy": _PUSH,
    "--ignore-data-skip": "a resumed run finds its place at no cost",
    "--include-for-metrics": _LOSS_ALONE,
    "--include-inputs-for-metrics": _LOSS_ALONE,
    "--include-num-input-tokens-seen": "trainer_state.json always has num_input_tokens_seen",
    "--include-tokens-per-second": "the log always has tokens per second",
    "--label-names": "the targets are always in the column labels",
    "--length-column-name": _LENGTHS,
    "--liger-kernel-config": _KERNELS,
    "--local-rank": "the launcher's environment gives the rank",
    "--log-level": _MESSAGES,
    "--log-level-replica": _MESSAGES,
    "--log-on-each-node": _MESSAGES,
    "--logging-dir": "TensorBoard's files are written below --output-dir",
    "--logging-first-step": "see --logging-steps",
    "--logging-nan-inf-filter": "a loss that is not finite stops the run",
    "--logging-strategy": "see --logging-steps",
    "--overwrite-output-dir": "a run resumes from its newest checkpoint",
    "--prediction-loss-only": _LOSS_ALONE,
    "--remove-unused-columns": "only the columns that are needed are read",
    "--restore-callback-states-from-checkpoint": "a resumed run remembers its best checkpoint",
    "--save-safetensors": "weights are always saved as safetensors",
    "--skip-memory-metrics": "the log always has the peak memory",
    "--sortish-sampler": _LENGTHS,
    "--split-batches": _LOADER,
    "--torch-empty-cache-steps": "memory is tested before the first step",
    "--use-cache": "training uses no cache of keys and values",
    "--use-fast-tokenizer": "the tokenizer is the prepared folder's",
    "--use-liger-kernel": _KERNELS,
}
"""Flags that change nothing here, and why; ``fit`` and ``train`` accept them with one line."""

_OVERFLOW = "T5 overflows in float16; use --bf16"
_GENERATION = "an evaluation computes losses; ask the trained model with duet chat"
_TRACKIO = "set TRACKIO_SPACE_ID in the environment"
_RAW_DATA = "use --data-path with a folder that duet prepare made, or duet train"
_SHARDING = "use --fsdp full_shard (as ZeRO stage 3) or shard_grad_op (as stages 1 and 2)"

_RESUME = (
    "a run resumes from the newest checkpoint in --output-dir by itself; delete newer ones to "
    "resume from an older one"
)
_SWITCHED_ON = ("true", "yes", "on", "1")

REFUSED = {
    "--adafactor": Refusal("use --optim adafactor"),
    "--attn-implementation": Refusal("the attention is chosen by the device", ("sdpa", "eager")),
    "--auto-find-batch-size": Refusal(
        "use --auto-batch-size True: the largest micro-batches that fit, the same global batch size"
    ),
    "--data-seed": Refusal("use --seed, which also sets the order of examples"),
    "--dataloader-drop-last": Refusal(
        "an epoch has every example once; its last step may be smaller"
    ),
    "--dataset-name": Refusal(_RAW_DATA),
    "--debug": Refusal("there is no such mode; a loss that is not finite names its examples"),
    "--deepspeed": Refusal(_SHARDING),
    "--do-predict": Refusal("ask the trained model with duet chat"),
    "--eval-delay": Refusal("use --eval-steps; an evaluation costs no training step"),
    "--eval-on-start": Refusal("use --eval-steps; the first evaluation is after that many steps"),
    "--fp16-full-eval": Refusal(_OVERFLOW),
    "--fp16-opt-level": Refusal(_OVERFLOW),
    "--fsdp-config": Refusal(
        "use --fsdp and --fsdp-transformer-layer-cls-to-wrap, or the FSDP part of accelerate config"
    ),
    "--fsdp-min-num-params": Refusal("use --fsdp-transformer-layer-cls-to-wrap"),
    "--full-determinism": Refusal(
        "use --seed: it sets order, dropout and fresh weights; a CPU run repeats to the bit"
    ),
    "--generation-config": Refusal(_GENERATION),
    "--generation-max-length": Refusal(_GENERATION),
    "--generation-num-beams": Refusal(_GENERATION),
    "--half-precision-backend": Refusal("use --bf16", ("auto",)),
    "--hub-revision": Refusal("the model is pushed to the repository's main branch", ("main",)),
    "--load-in-4bit": Refusal("use --quantize 4bit with --lora-r 16"),
    "--load-in-8bit": Refusal("use --quantize 4bit with --lora-r 16"),
    "--lr": Refusal("use --learning-rate"),
    "--max-eval-samples": Refusal("prepare with a smaller --eval-fraction"),
    "--max-seq-length": Refusal("use --model-max-length of duet prepare"),
    "--max-source-length": Refusal("use --model-max-length of duet prepare"),
    "--model": Refusal("use --model-name-or-path"),
    "--neftune-noise-alpha": Refusal(
        "not supported; --dropout and --label-smoothing-factor regularize"
    ),
    "--no-cuda": Refusal("set CUDA_VISIBLE_DEVICES= in the environment to train on the CPU"),
    "--optim-args": Refusal("use --adam-beta1, --adam-beta2 and --adam-epsilon"),
    "--optim-target-modules": Refusal("GaLore is not available; --lora-r 16 takes less memory"),
    "--packing": Refusal("examples are not packed; batches of similar length have 2 % padding"),
    "--parallelism-config": Refusal(_SHARDING),
    "--per-gpu-eval-batch-size": Refusal("use --per-device-eval-batch-size"),
    "--per-gpu-train-batch-size": Refusal("use --per-device-train-batch-size"),
    "--predict-with-generate": Refusal(_GENERATION),
    "--project": Refusal("runs are tracked in the project duet"),
    "--push-to-hub-organization": Refusal("use --hub-model-id OWNER/NAME"),
    "--resume": Refusal(_RESUME, _SWITCHED_ON),
    "--resume-from-checkpoint": Refusal(_RESUME, _SWITCHED_ON),
    "--save-on-each-node": Refusal("one process writes; give an --output-dir that all nodes share"),
    "--source-prefix": Refusal("examples are conversations with the header of duet prepare"),
    "--tokenizer-name": Refusal("the tokenizer is the prepared folder's"),
    "--torch-compile-backend": Refusal("--torch-compile uses inductor", ("inductor",)),
    "--torch-compile-mode": Refusal("--torch-compile uses the default mode", ("default",)),
    "--trackio-bucket-id": Refusal(_TRACKIO),
    "--trackio-space-id": Refusal(_TRACKIO),
    "--trackio-static-space-id": Refusal(_TRACKIO),
    "--train-file": Refusal(_RAW_DATA),
    "--train-sampling-strategy": Refusal("use --group-by-length or --no-group-by-length"),
    "--use-cpu": Refusal("set CUDA_VISIBLE_DEVICES= in the environment to train on the CPU"),
    "--validation-file": Refusal("use --eval-fraction of duet prepare"),
}
"""Flags that would change the run, or that have another name here."""
