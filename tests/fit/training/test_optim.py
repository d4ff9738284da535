"""Optimizers, groups and schedules are those of the Hugging Face trainer."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, Trainer, TrainingArguments, get_scheduler

from pipeline.config import FitConfig, Scheduler
from pipeline.errors import ConfigError
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.training.optim import (
    make_optimizer,
    make_schedule,
    muon_matrices,
    parameter_groups,
    warmup_steps,
)
from tests.fit.helpers import changed


@pytest.fixture
def model(still: Path) -> Any:
    with quiet_transformers():
        return AutoModelForSeq2SeqLM.from_pretrained(still)


def names(model: Any, groups: list[dict[str, Any]]) -> list[tuple[float, set[str]]]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [(g["weight_decay"], {by_id[id(p)] for p in g["params"]}) for g in groups]


def trainer_optimizer(model: Any, tmp_path: Path, optim: str) -> torch.optim.Optimizer:
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        weight_decay=0.1,
        learning_rate=1e-2,
        optim=optim,
        report_to=[],
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-6,
        use_cpu=True,
    )
    optimizer: torch.optim.Optimizer = Trainer(model, arguments).create_optimizer()
    return optimizer


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor"])
def test_groups_and_defaults_are_the_trainers(
    model: Any, config: FitConfig, tmp_path: Path, optim: str
) -> None:
    ours = make_optimizer(
        model,
        changed(
            config,
            weight_decay=0.1,
            optim=optim,
            adam_beta1=0.8,
            adam_beta2=0.95,
            adam_epsilon=1e-6,
        ),
    )
    theirs = trainer_optimizer(model, tmp_path, optim)
    assert type(ours) is type(theirs)
    assert names(model, ours.param_groups) == names(model, theirs.param_groups)
    left_out = ("params", "param_names", "fused")  # in one pass or many: the same values
    values = [
        {name: value for name, value in group.items() if name not in left_out}
        for optimizer in (ours, theirs)
        for group in optimizer.param_groups
    ]
    assert values[:2] == values[2:]


def test_biases_and_norms_are_not_decayed(model: Any) -> None:
    (decay, decayed), (none, spared) = names(model, parameter_groups(model, 0.1))
    assert (decay, none) == (0.1, 0.0)
    assert {"shared.weight", "lm_head.weight"} <= decayed
    assert "encoder.final_layer_norm.weight" in spared
    assert all("layer_norm" in name or "relative_attention_bias" in name for name in spared)
    assert not any("norm" in name or "bias" in name for name in decayed)
    assert len(decayed) + len(spared) == len(list(model.parameters()))


def steps(model: Any, optimizer: torch.optim.Optimizer, count: int = 3) -> list[torch.Tensor]:
    for i in range(count):
        for j, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.01 * (i + 1) * (-1) ** j)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_adamw_is_plain_adamw(model: Any, still: Path, config: FitConfig, optim: str) -> None:
    config = changed(config, optim=optim, weight_decay=0.2)
    ours = steps(model, make_optimizer(model, config.optimizer))
    with quiet_transformers():
        other = AutoModelForSeq2SeqLM.from_pretrained(still)
    spared = [p for n, p in other.named_parameters() if "norm" in n or "bias" in n]
    decayed = [p for n, p in other.named_parameters() if "norm" not in n and "bias" not in n]
    plain = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.2}, {"params": spared, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    for one, two in zip(ours, steps(other, plain), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_adamw_8bit_is_near_adamw_and_keeps_embeddings_whole(
    model: Any, still: Path, config: FitConfig
) -> None:
    """Each step moves a weight by about the rate: three of them, less than a tenth apart."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = make_optimizer(
        model, changed(config, optim="adamw_8bit", weight_decay=0.2).optimizer
    )
    ours = steps(model, optimizer)
    with quiet_transformers():
        other = AutoModelForSeq2SeqLM.from_pretrained(still)
    theirs = steps(other, make_optimizer(other, changed(config, weight_decay=0.2).optimizer))
    for start, one, two in zip(before, ours, theirs, strict=True):
        assert float((one - two).abs().max()) < 0.1 * float((two - start).abs().max())
    kept = {n: optimizer.state[p]["state1"].dtype for n, p in model.named_parameters()}
    assert kept["shared.weight"] == torch.float32
    assert kept["lm_head.weight"] == torch.uint8
    assert kept["encoder.final_layer_norm.weight"] == torch.float32


def test_muon_is_torchs_for_the_matrices_of_the_layers_and_adamw_for_the_rest(
    model: Any, still: Path, config: FitConfig
) -> None:
    """Two optimizers by hand, each with its own schedule, give the same weights to the bit."""
    config = changed(config, optim="muon", weight_decay=0.2, adam_beta2=0.95, warmup_steps=2)
    optimizer = make_optimizer(model, config.optimizer)
    ours = scheduled(model, [optimizer], [make_schedule(optimizer, config.schedule, 6)])

    with quiet_transformers():
        other = AutoModelForSeq2SeqLM.from_pretrained(still)
    by_hand: dict[str, list[torch.nn.Parameter]] = {"muon": [], "decayed": [], "spared": []}
    for name, weight in other.named_parameters():
        spared = "layer_norm" in name or "relative_attention_bias" in name
        kind = "spared" if spared else "muon" if ".block." in name else "decayed"
        by_hand[kind].append(weight)
    assert [weight.dim() for weight in by_hand["muon"]] == [2] * (2 * 7 + 2 * 11)
    adjust: Any = {"adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon(by_hand["muon"], lr=1e-2, weight_decay=0.2, **adjust)
    adamw = torch.optim.AdamW(
        [
            {"params": by_hand["decayed"], "weight_decay": 0.2},
            {"params": by_hand["spared"], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    two: list[torch.optim.Optimizer] = [muon, adamw]
    theirs = scheduled(other, two, [make_schedule(each, config.schedule, 6) for each in two])
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


def scheduled(
    model: Any, optimizers: list[torch.optim.Optimizer], schedules: list[Any]
) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        for each in (*optimizers, *schedules):
            each.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_an_output_matrix_is_not_muons(tied: Path, model: Any) -> None:
    with quiet_transformers():
        models = (model, AutoModelForSeq2SeqLM.from_pretrained(tied))
    for each in models:
        found = names(each, [{"weight_decay": 0.0, "params": muon_matrices(each)}])[0][1]
        inside = {name for name, weight in each.named_parameters() if ".block." in name}
        assert found == {n for n in inside if "norm" not in n and "relative" not in n}


def test_muon_keeps_half_of_adamws_state_in_one_optimizer(model: Any, config: FitConfig) -> None:
    optimizer = make_optimizer(model, changed(config, optim="muon").optimizer)
    steps(model, optimizer)
    kept = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    of_adamw = {"step", "exp_avg", "exp_avg_sq"}
    for name, values in kept.items():
        by_muon = ".block." in name and "norm" not in name and "relative" not in name
        assert values == ({"momentum_buffer"} if by_muon else of_adamw), name
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adafactor_is_the_trainers(
    model: Any, still: Path, config: FitConfig, tmp_path: Path
) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = changed(config, optim="adafactor", weight_decay=0.1)
    ours = steps(model, make_optimizer(model, config.optimizer))
    with quiet_transformers():
        other = AutoModelForSeq2SeqLM.from_pretrained(still)
    theirs = steps(other, trainer_optimizer(other, tmp_path, "adafactor"))
    for start, one, two in zip(before, ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
        assert not torch.equal(one, start)


@pytest.mark.parametrize(
    "name", sorted({*get_args(Scheduler)} - {"cosine_with_min_lr", "warmup_stable_decay"})
)
def test_each_schedule_is_the_trainers(
    model: Any, config: FitConfig, tmp_path: Path, name: str
) -> None:
    config = changed(config, lr_scheduler_type=name, warmup_ratio=0.25)
    optimizer = make_optimizer(model, config.optimizer)
    schedule = make_schedule(optimizer, config.schedule, 10)
    other = torch.optim.AdamW(model.parameters(), lr=1e-2)
    theirs = get_scheduler(name, other, num_warmup_steps=3, num_training_steps=10)
    for _ in range(10):
        assert schedule.get_last_lr()[0] == theirs.get_last_lr()[0]
        for each in (optimizer, schedule, other, theirs):
            each.step()


def test_warmup_is_given_or_a_share_rounded_up(config: FitConfig) -> None:
    assert warmup_steps(changed(config, warmup_ratio=0.03).schedule, 100) == 3
    assert warmup_steps(changed(config, warmup_ratio=0.03).schedule, 101) == math.ceil(3.03)
    assert warmup_steps(changed(config, warmup_ratio=0.07).schedule, 100) == 7  # 7.000000000000001
    assert warmup_steps(changed(config, warmup_ratio=0.5, warmup_steps=7).schedule, 100) == 7
    assert warmup_steps(config.schedule, 100) == 0
    assert warmup_steps(changed(config, warmup_steps=0.03).schedule, 101) == math.ceil(3.03)


def test_values_that_cannot_be_are_named(model: Any, config: FitConfig) -> None:
    with pytest.raises(ConfigError, match="optimizer cannot be made"):
        make_optimizer(model, changed(config, adam_beta1=1.0).optimizer)
    config = changed(config, lr_scheduler_type="polynomial", learning_rate=1e-8)
    with pytest.raises(ConfigError, match="schedule cannot be made"):
        make_schedule(make_optimizer(model, config.optimizer), config.schedule, 10)


@pytest.mark.parametrize(
    ("name", "text", "kwargs"),
    [
        ("cosine_with_min_lr", "min_lr_rate=0.1", {"min_lr_rate": 0.1}),
        ("cosine_with_min_lr", '{"min_lr": 1e-5}', {"min_lr": 1e-5}),
        (
            "warmup_stable_decay",
            "num_decay_steps=4,decay_type=cosine",
            {"num_decay_steps": 4, "decay_type": "cosine"},
        ),
        ("polynomial", "power=2", {"power": 2}),
    ],
)
def test_a_schedule_with_further_settings_is_transformers_own(
    config: FitConfig, name: Any, text: str, kwargs: dict[str, Any]
) -> None:
    config = changed(
        config,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=text,
        warmup_steps=0.2,
        learning_rate=0.1,
    )
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1) for _ in range(2)]
    ours = make_schedule(optimizers[0], config.schedule, 10)
    theirs = get_scheduler(
        name,
        optimizers[1],
        num_warmup_steps=2,
        num_training_steps=10,
        scheduler_specific_kwargs=kwargs,
    )
    for _ in range(10):
        assert ours.get_last_lr() == theirs.get_last_lr()
        for optimizer, schedule in zip(optimizers, (ours, theirs), strict=True):
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize(
    ("name", "text"), [("warmup_stable_decay", None), ("linear", "min_lr=1"), ("cosine", "x={")]
)
def test_a_schedule_that_cannot_be_made_is_one_line(
    config: FitConfig, name: Any, text: str | None
) -> None:
    config = changed(config, lr_scheduler_type=name, lr_scheduler_kwargs=text)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ConfigError, match="schedule cannot be made"):
        make_schedule(optimizer, config.schedule, 10)
    with pytest.raises(ConfigError, match="--lr-scheduler-kwargs"):
        changed(config, lr_scheduler_kwargs="{")
