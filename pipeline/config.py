"""The settings of each command: frozen dataclasses that validate themselves.

A field is written once, here, with its default and its help. The command line, the settings
saved beside a result and the README's table of flags are all made from these fields. Fields that
decide *what the rows are* stand in ``PrepareOptions``, fields that decide *how to train on them*
in ``FitOptions``; ``TrainConfig``, the settings of both stages in one command, has them all.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config_fields import (
    LOCAL_INPUTS,
    LOCAL_OUTPUT,
    NAMED,
    REQUIRED,
    Bound,
    Settings,
    above,
    at_least,
    below,
    is_url,
    option,
    parse_kwargs,
    require,
    share,
)
from pipeline.config_views import (
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    ScheduleSettings,
    Sharding,
    StepSettings,
)
from pipeline.errors import ConfigError

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "warmup_stable_decay",
]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "adafactor", "muon"]
Strategy = Literal["no", "steps", "epoch"]
RoleName = Literal["human", "assistant", "system", "tool"]
TRACKERS = ("tensorboard", "wandb", "trackio")
_NOT_FP16 = Bound(
    lambda fp16: not fp16,
    "use --bf16 True, or neither",
    "T5 overflows in float16 and its loss becomes NaN",
)
ROLE_NAMES: tuple[RoleName, ...] = ("human", "assistant", "system", "tool")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Settings):
    """What decides the rows of a prepared folder."""

    model_max_length: int = option(
        2048,
        at_least(64, do="give 64 or more: the header and both tags must fit"),
        help="Maximum sequence length of encoder and decoder, in tokens with </s>; 64 or more.",
    )
    max_target_length: int | None = option(
        None,
        at_least(1),
        help="Maximum length of the decoder sequence, in tokens. Default: --model-max-length.",
    )
    eval_fraction: float = option(
        0.0,
        share(one=False),
        help="Share of the conversations that become the split eval, by a hash of their id.",
    )
    join_parts: bool = option(
        True, help="Join the parts that a long conversation was cut into (ids BASE_N)."
    )
    dedup: bool = option(True, help="Leave out exact repeats of an earlier conversation.")
    train_turns: Literal["all", "last"] = option(
        "all", help="Which answers of a conversation become pairs: all, or the last one alone."
    )
    clean_html: bool = option(
        False, help="Convert texts of sharegpt.com's pages from HTML to Markdown."
    )
    role: tuple[str, ...] = option(
        (), help="One more speaker name, NAME=human|assistant|system|tool. Repeatable."
    )
    num_workers: int | None = option(
        None,
        at_least(1),
        help="Processes that tokenize, this one among them. Default: one for each core.",
    )
    engine: Literal["local", "ray"] = option(
        "local", help="Where the tokenizing runs: on this machine, or on a Ray cluster."
    )
    ray_address: str | None = option(
        None,
        Bound(
            lambda address: not is_url(address),
            "run duet on a node of the cluster, and give HOST:PORT of its head, or auto",
        ),
        help="HOST:PORT of the Ray cluster, or auto. Default: the one that runs on this machine, "
        "else one is started, with --num-workers CPUs.",
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            self.target_length <= self.model_max_length,
            "max_target_length",
            self.max_target_length,
            "give no more than --model-max-length",
        )
        require(
            self.ray_address is None or self.engine == "ray",
            "ray_address",
            f"{self.ray_address} with --engine {self.engine}",
            "give --engine ray too, or leave the address out",
        )
        self.extra_roles()

    @property
    def target_length(self) -> int:
        """Most tokens of a decoder row."""
        return self.model_max_length if self.max_target_length is None else self.max_target_length

    def extra_roles(self) -> dict[str, str]:
        """Return the names that ``--role`` adds, in lower case, with the role each stands for."""
        roles = {}
        for text in self.role:
            name, _, role = text.rpartition("=")
            if not name.strip() or not text.isprintable() or role.lower() not in ROLE_NAMES:
                raise ConfigError(
                    "not a role",
                    where="--role",
                    got=text,
                    do="give NAME=ROLE, ROLE one of " + ", ".join(ROLE_NAMES),
                )
            roles[name.strip().lower()] = role.lower()
        return roles


@dataclass(frozen=True, kw_only=True)
class HubOptions(Settings):
    """What is pushed to the Hugging Face hub when all is done."""

    push_to_hub: bool = option(
        False, help="Push the result to the Hugging Face hub, once, when it is complete."
    )
    hub_model_id: str | None = option(
        None,
        NAMED,
        help="Repository to push to: OWNER/NAME, or NAME. Default: the name of --output-dir.",
    )
    hub_private_repo: bool | None = option(
        None, help="Whether a new repository is private. Default: as the account has it."
    )
    hub_token: str | None = option(
        None,
        help="Token that may write to the hub; others on the machine can see it here. Default: "
        "HF_TOKEN, or that of hf auth login.",
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        for name in ("hub_model_id", "hub_private_repo", "hub_token"):
            require(
                self.push_to_hub or getattr(self, name) is None,
                name,
                "no --push-to-hub",
                "give --push-to-hub too, or leave it out",
            )


@dataclass(frozen=True, kw_only=True)
class FitOptions(Settings):
    """What decides a training run on given rows. Defaults are the Hugging Face trainer's."""

    num_train_epochs: float = option(3.0, above(0), help="Training epochs; may be a fraction.")
    max_steps: int = option(
        -1,
        at_least(1, off=-1, do="give 1 or more, or -1 to go by --num-train-epochs"),
        help="Optimizer steps of the run; overrides --num-train-epochs. -1: off.",
    )
    per_device_train_batch_size: int = option(
        8,
        at_least(1),
        help="Micro-batch size per device, in maximum-length examples; more when they are shorter.",
    )
    per_device_eval_batch_size: int = option(8, at_least(1), help="The same for evaluation.")
    gradient_accumulation_steps: int = option(
        1, at_least(1), help="Gradient accumulation steps: multiplies the global batch size."
    )
    train_batch_size: int | None = option(
        None,
        at_least(1),
        help="Global batch size, in examples; gradient accumulation follows from it. Default: per "
        "device x processes x accumulation steps.",
    )
    auto_batch_size: bool = option(
        False,
        help="Largest micro-batches that fit in GPU memory; the global batch size stays.",
    )
    group_by_length: bool = option(
        True,
        help="Group examples of similar length into the same step: less padding, another order.",
    )
    learning_rate: float = option(5e-5, above(0), help="Peak learning rate, above 0.")
    lr_scheduler_type: Scheduler = option("linear", help="Learning-rate schedule.")
    lr_scheduler_kwargs: str | None = option(
        None,
        help="Further settings of the schedule, as JSON or NAME=VALUE with commas: min_lr_rate=0.1 "
        "with cosine_with_min_lr, num_decay_steps=100 with warmup_stable_decay.",
    )
    warmup_ratio: float = option(
        0.0, share(), help="Fraction of training steps used for linear warmup."
    )
    warmup_steps: float = option(
        0,
        at_least(0),
        help="Training steps used for linear warmup; below 1: a fraction of all steps. "
        "Overrides --warmup-ratio.",
    )
    label_smoothing_factor: float = option(
        0.0,
        share(one=False),
        help="Label smoothing of the training loss, 0 to below 1. Evaluation losses are never "
        "smoothed. 0: off.",
    )
    dropout: float | None = option(
        None, share(one=False), help="Dropout rate of the model. Default: that of its config."
    )
    weight_decay: float = option(
        0.0,
        at_least(0),
        help="Weight decay of all parameters but biases and layer norms, 0 or more.",
    )
    max_grad_norm: float = option(
        1.0, at_least(0), help="Maximum gradient norm for clipping. 0: off."
    )
    optim: Optimizer = option(
        "adamw_torch",
        help="Optimizer: adamw_torch, adamw_torch_fused, adafactor, adamw_8bit (8-bit states, "
        "bitsandbytes), or muon (for the matrices of the layers; AdamW for the rest).",
    )
    adam_beta1: float = option(0.9, share(), help="Beta1 of AdamW, 0 to 1.")
    adam_beta2: float = option(0.999, share(), help="Beta2 of AdamW, 0 to 1.")
    adam_epsilon: float = option(1e-8, above(0), help="Epsilon of AdamW.")
    bf16: bool = option(
        False, help="Mixed precision: compute in bfloat16, keep weights in float32."
    )
    fp16: bool = option(False, _NOT_FP16, help="Refused: T5 overflows in float16. Use --bf16.")
    tf32: bool | None = option(
        None, help="Use TF32 for float32 matrix products, on GPUs that have it. Default: PyTorch's."
    )
    gradient_checkpointing: bool = option(
        False,
        help="Recompute activations in the backward pass: less memory, more time.",
    )
    torch_compile: bool = option(False, help="Compile the model with torch.compile.")
    logging_steps: float = option(
        500, above(0), help="Steps between log entries; below 1: a fraction of all steps."
    )
    eval_strategy: Strategy | None = option(
        None,
        help="Evaluation strategy: no, steps or epoch. Default: steps if --eval-steps is given, "
        "and at the end of training, where there is an eval split.",
    )
    eval_steps: float | None = option(
        None, above(0), help="Steps between evaluations; below 1: a fraction of all steps."
    )
    save_strategy: Strategy = option("steps", help="Checkpoint save strategy: no, steps or epoch.")
    save_steps: float = option(
        500, above(0), help="Steps between checkpoints; below 1: a fraction of all steps."
    )
    save_total_limit: int | None = option(
        None,
        at_least(1),
        help="Maximum number of checkpoints to keep; the oldest are deleted. Default: all.",
    )
    save_only_model: bool = option(
        False, help="Save checkpoints without the optimizer's state: they cannot be resumed."
    )
    load_best_model_at_end: bool = option(
        False,
        help="Keep the best checkpoint, and write its weights as the trained model. Saves must "
        "fall on evaluations, as in the Hugging Face trainer.",
    )
    metric_for_best_model: (
        Literal["loss", "eval_loss", "bits_per_byte", "eval_bits_per_byte"] | None
    ) = option(None, help="Metric that says which evaluation is best. Default: loss.")
    greater_is_better: bool | None = option(
        None, help="Whether a larger metric is better. Default: no, the metrics are losses."
    )
    early_stopping_patience: int | None = option(
        None,
        at_least(1),
        help="Stop after so many evaluations in a row without a better one. Default: never.",
    )
    early_stopping_threshold: float = option(
        0.0, at_least(0), help="How much better an evaluation must be to count for the patience."
    )
    resume_anyway: bool = option(
        False, help="Resume from a checkpoint that was made with other settings, where possible."
    )
    seed: int = option(
        42,
        at_least(0),
        below(1 << 32),
        help="Random seed of the order of examples, of dropout and of fresh weights.",
    )
    report_to: str = option(
        "none",
        help="Trackers to report to: none, or tensorboard, wandb, trackio, separated by commas.",
    )
    run_name: str | None = option(None, help="Name of the run in the trackers.")
    from_scratch: bool = option(
        False, help="Initialize the weights at random from the model's config."
    )
    lora_r: int = option(
        0,
        at_least(0),
        help="Rank of LoRA adapters, trained with the embeddings of new pieces alone. 0: off.",
    )
    lora_alpha: int = option(16, at_least(1), help="LoRA scaling: alpha / rank.")
    lora_dropout: float = option(
        0.05, share(one=False), help="Dropout rate of LoRA adapters, 0 to below 1."
    )
    lora_target_modules: str | None = option(
        None,
        help="Modules to apply LoRA to, separated by commas. Default: those of "
        "q,k,v,o,wi,wi_0,wi_1,wo that the model has.",
    )
    quantize: Literal["4bit"] | None = option(
        None,
        help="Quantization of the frozen base model under LoRA (QLoRA): 4bit, NF4 of bitsandbytes.",
    )
    num_data: int = option(
        -1,
        at_least(1, off=-1, do="give 1 or more, or -1 for all"),
        help="Train on the first N examples. -1: all.",
    )
    cache_dir: str | None = option(
        None, help="Cache folder of models from the hub. Default: the Hugging Face cache."
    )
    fsdp: str = option(
        "",
        help="Fully Sharded Data Parallel: full_shard shards parameters, gradients and optimizer "
        "states; shard_grad_op keeps parameters gathered between forward and backward pass.",
    )
    fsdp_transformer_layer_cls_to_wrap: str = option(
        "",
        help="Transformer layer classes to wrap with FSDP, separated by commas. Default: T5Block, "
        "or the model's own.",
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            not (self.lora_r and self.from_scratch),
            "lora_r",
            self.lora_r,
            "give 0 with --from-scratch: an adapter wants a model that is saved somewhere",
        )
        require(
            self.quantize is None or self.lora_r > 0,
            "quantize",
            self.quantize,
            "give --lora-r 16 too, or leave it out: weights of four bits cannot be trained",
        )
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            value = getattr(self, name)
            require(
                self.lora_r != 0 or value == getattr(FitOptions, name),  # its default
                name,
                value,
                "give --lora-r 16 too, or leave it out: without a rank all weights are trained",
            )
        unknown = [name for name in self.trackers if name not in TRACKERS]
        require(not unknown, "report_to", self.report_to, "give none, " + ", ".join(TRACKERS))
        _ = self.sharding, self.scheduler_kwargs  # which refuse what they cannot read

    @property
    def lora(self) -> LoraSettings | None:
        """The adapter; None where all weights are trained."""
        if not self.lora_r:
            return None
        named = self.lora_target_modules
        return LoraSettings(
            r=self.lora_r,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            target_modules=None if named is None else tuple(map(str.strip, named.split(","))),
            seed=self.seed,
        )

    @property
    def sharding(self) -> Sharding | None:
        """How the model is sharded, over several processes; None where each holds it whole."""
        return Sharding.parse(self.fsdp, self.fsdp_transformer_layer_cls_to_wrap)

    @property
    def scheduler_kwargs(self) -> dict[str, Any]:
        """What ``--lr-scheduler-kwargs`` says.

        Raises:
            ConfigError: It is neither JSON of an object nor ``NAME=VALUE`` with commas.
        """
        return parse_kwargs(self.lr_scheduler_kwargs or "", "lr_scheduler_kwargs")

    @property
    def steps(self) -> StepSettings:
        """How many steps there are, and what is due when."""
        return StepSettings(**_shared(self, StepSettings))

    @property
    def optimizer(self) -> OptimizerSettings:
        """What the optimizer is made with."""
        return OptimizerSettings(**_shared(self, OptimizerSettings))

    @property
    def schedule(self) -> ScheduleSettings:
        """The learning rate at each step."""
        return ScheduleSettings(**_shared(self, ScheduleSettings))

    @property
    def trackers(self) -> list[str]:
        """The trackers to report to; empty for ``none``."""
        names = [name.strip() for name in self.report_to.split(",")]
        return [name for name in names if name not in ("", "none")]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(PrepareOptions):
    """Settings of ``duet prepare``: ShareGPT files in, a prepared folder out."""

    data_path: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        help="A file, a folder or a glob of ShareGPT records, or the URL of one. Repeatable.",
    )
    eval_data_path: tuple[str, ...] = option(
        (),
        help="A file, a folder or a glob of records that become the split eval; what repeats them "
        "is left out of train. Repeatable.",
    )
    model_name_or_path: str = option(
        REQUIRED, NAMED, help="The T5 whose tokenizer is used: a folder or a hub name."
    )
    output_dir: str = option(
        "data/processed", NAMED, help="The prepared folder is made in this one; may be a URL."
    )
    cache_dir: str | None = option(
        None, help="Cache folder of models from the hub. Default: the Hugging Face cache."
    )


@dataclass(frozen=True, kw_only=True)
class FitConfig(HubOptions, FitOptions):
    """Settings of ``duet fit``: a prepared folder and a model in, a trained folder out."""

    data_path: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        LOCAL_INPUTS,
        help="The prepared folder: what duet prepare printed. Repeatable; PATH=0.3 takes that "
        "share of a folder's rows in each epoch. The first one's split eval is evaluated.",
    )
    eval_data_path: tuple[str, ...] = option(
        (),
        LOCAL_INPUTS,
        help="NAME=FOLDER: one more prepared folder to evaluate on (its eval split, or all of it), "
        "as eval_NAME_loss and eval_NAME_bits_per_byte. Repeatable.",
    )
    model_name_or_path: str = option(
        REQUIRED, NAMED, help="The model to start from: a folder or a hub name."
    )
    output_dir: str = option(
        REQUIRED, NAMED, LOCAL_OUTPUT, help="Folder of checkpoints and of the trained model."
    )
    dry_run: bool = option(
        False, help="Estimate steps, padding, memory and time of the run; train and write nothing."
    )
    model_max_length: int | None = option(
        None, help="Maximum sequence length; only checked against that of the prepared folder."
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            not self.lora_r
            or Path(self.output_dir).resolve() != Path(self.model_name_or_path).resolve(),
            "output_dir",
            self.output_dir,
            "give another folder than the model's: an adapter is of no use without it",
        )
        _ = self.eval_folders

    @property
    def eval_folders(self) -> dict[str, str]:
        """The folders of ``--eval-data-path``, by their names.

        Raises:
            ConfigError: One has no name, or the name of another.
        """
        folders: dict[str, str] = {}
        for text in self.eval_data_path:
            name, _, folder = text.partition("=")
            ok = bool(re.fullmatch(r"\w[\w-]*", name) and folder) and name not in folders
            require(ok, "eval_data_path", text, "give NAME=FOLDER, each with a name of its own")
            folders[name] = folder
        return folders

    @property
    def model(self) -> ModelSettings:
        """What the model is built from."""
        return ModelSettings(name=self.model_name_or_path, **_shared(self, ModelSettings))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(HubOptions, PrepareOptions, FitOptions):
    """Settings of ``duet train``: both stages in one, with train_flant5's flags."""

    data_path: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        help="A file, a folder or a glob of ShareGPT records; or a prepared folder. Repeatable.",
    )
    eval_data_path: tuple[str, ...] = option(
        (),
        help="A file, a folder or a glob of records that become the split eval; what repeats them "
        "is left out of train. Repeatable.",
    )
    model_name_or_path: str = option(
        REQUIRED, NAMED, help="The model to start from: a folder or a hub name."
    )
    output_dir: str = option(
        REQUIRED, NAMED, LOCAL_OUTPUT, help="Folder of checkpoints and of the trained model."
    )
    prepared_dir: str = option(
        "data/processed", NAMED, LOCAL_OUTPUT, help="Prepared folders are made in this one."
    )
    preprocessed_path: str | None = option(None, help="Accepted; --prepared-dir took its place.")
    lazy_preprocess: bool = option(False, help="Accepted; rows are always read from disk.")

    def prepare_config(self) -> PrepareConfig:
        """Return the settings of the first stage."""
        return PrepareConfig(**_shared(self, PrepareConfig) | {"output_dir": self.prepared_dir})

    def fit_config(self, prepared: Path) -> FitConfig:
        """Return the settings of the second stage, on the folder that the first one made."""
        values = _shared(self, FitConfig) | {
            "data_path": (str(prepared),),
            "eval_data_path": (),  # records; they are the prepared folder's split eval
            "model_max_length": None,
        }
        return FitConfig(**values)


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Settings):
    """Settings of ``duet inspect``: show what a prepared folder holds."""

    prepared: str = option(help="The prepared folder.", positional=True)
    rows: int = option(3, at_least(0), help="Pairs to show, spread over the split.")
    split: Literal["train", "eval"] = option("train", help="The split to show.")
    rejected: int = option(5, at_least(0), help="Rejected records to show.")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Settings):
    """Settings of ``duet verify``: check a folder against its manifest."""

    folder: str = option(
        help="A prepared folder, a checkpoint, or the output folder of fit.", positional=True
    )


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Settings):
    """Settings of ``duet cache``: show or trim what preparations keep for later ones."""

    action: Literal["ls", "prune"] = option(
        help="ls: show what is kept. prune: delete what no prepared folder holds.", positional=True
    )
    output_dir: str = option("data/processed", help="The --output-dir of duet prepare.")
    all_parts: bool = option(
        False, help="Prune parts that a prepared folder holds too; the folder stays whole."
    )
    older_than: float = option(0.0, at_least(0), help="Prune only parts not used for so many days.")
    dry_run: bool = option(False, help="Say what would be deleted, and delete nothing.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(HubOptions):
    """Settings of ``duet export``: a trained folder in, one for other programs out."""

    model: str = option(
        REQUIRED, NAMED, help="The trained folder: the --output-dir of fit.", positional=True
    )
    output_dir: str = option(
        REQUIRED, NAMED, help="The folder to write; it must not be there, or be empty."
    )
    merge: bool = option(False, help="Merge a LoRA adapter into its base.")
    format: Literal["huggingface", "ctranslate2"] = option(
        "huggingface", help="What the folder is for."
    )


def _shared(config: Any, kind: type[Any]) -> dict[str, Any]:
    """Return the values of ``config`` for the fields that ``kind`` has too."""
    return {
        f.name: getattr(config, f.name) for f in dataclasses.fields(kind) if hasattr(config, f.name)
    }
