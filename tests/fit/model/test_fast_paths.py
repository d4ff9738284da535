"""Each way of being fast gives the loss and every gradient of plain transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from pipeline.config import FitConfig
from pipeline.fit.data.collate import Batch, DataCollatorForSupervisedDataset
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.model.fast_paths.attention import share_bias
from pipeline.fit.model.fast_paths.compile import BUCKET, compile_layers
from pipeline.fit.model.fast_paths.layers import checkpoint_activations, fuse_layers
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from tests.fit.helpers import NOT_A_LEAF, changed, log_of, pad_to_multiple, tiny_bart, with_config

Result = tuple[float, dict[str, torch.Tensor]]
ROWS = (3, 1, 8, 0, 12, 5, 19, 7)
CHUNK_BYTES = 4 * 512 * 7
"""Seven positions of 512 pieces: a batch is many chunks, the last of them not full."""


@pytest.fixture(scope="module", params=["untied", "tied"])
def folder(
    request: pytest.FixtureRequest, tiny: Path, tied: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    source = tied if request.param == "tied" else tiny
    return with_config(source, tmp_path_factory.mktemp("kind") / request.param, dropout_rate=0.0)


@pytest.fixture
def batch(prepared: Path) -> Batch:
    """Eight rows of very different lengths."""
    dataset = SupervisedDataset(prepared)
    collate = DataCollatorForSupervisedDataset(T5Config())
    batch = collate([dataset[row] for row in ROWS])
    assert (batch["attention_mask"] == 0).any()
    assert (batch["labels"] == -100).any()
    return batch


def load(folder: Path, **settings: Any) -> Any:
    with quiet_transformers():
        return AutoModelForSeq2SeqLM.from_pretrained(folder, **settings).train()


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def plain(model: Any, batch: Batch) -> Result:
    """Return the model's own loss, made a sum, and its gradients."""
    loss = model(**batch).loss * (batch["labels"] != -100).sum()
    loss.backward()
    return float(loss.detach()), gradients_of(model)


def fast(model: Any, batch: Batch) -> Result:
    loss = SummedTokenLoss(model, chunk_bytes=CHUNK_BYTES)(**batch)
    assert loss.dtype == torch.float32
    loss.backward()
    return float(loss.detach()), gradients_of(model)


def assert_same(found: Result, wanted: Result, tolerance: float = 1e-5) -> None:
    """Compare the loss, and each gradient relative to the largest of its values."""
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        error = float((found[1][name] - gradient).abs().max()) / scale
        assert error < tolerance, (name, error)


def as_it_is(model: Any) -> None: ...


def everything(model: Any) -> None:
    checkpoint_activations(model)
    share_bias(model)
    fuse_layers(model)


WAYS: list[Callable[[Any], object]] = [
    as_it_is,
    share_bias,
    fuse_layers,
    checkpoint_activations,
    everything,
]


@pytest.mark.parametrize("change", WAYS)
@pytest.mark.parametrize("bucket", [None, pytest.param(16, marks=pytest.mark.slow)])
def test_loss_and_every_gradient(
    folder: Path, batch: Batch, change: Callable[[Any], None], bucket: int | None
) -> None:
    wanted = plain(load(folder), batch)
    model = load(folder)
    names = [name for name, _ in model.named_parameters()]
    change(model)
    assert [name for name, _ in model.named_parameters()] == names
    padded = batch if bucket is None else pad_to_multiple(batch, 0, bucket)
    assert bucket is None or padded["labels"].shape != batch["labels"].shape
    assert_same(fast(model, padded), wanted)


@pytest.mark.slow
@NOT_A_LEAF
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("change", [as_it_is, everything])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_layers_give_them_too(
    folder: Path, batch: Batch, change: Callable[[Any], None], backend: str
) -> None:
    wanted = plain(load(folder), batch)
    model = load(folder)
    change(model)
    compile_layers(model, backend)
    assert_same(fast(model, pad_to_multiple(batch, 0, BUCKET)), wanted)


def with_dropout(tiny: Path, batch: Batch, *changes: Callable[[Any], Any]) -> Result:
    model = load(tiny, attn_implementation="eager")
    assert model.config.dropout_rate > 0
    for change in changes:
        change(model)
    torch.manual_seed(0)
    return fast(model, batch)


def test_dropout_is_drawn_in_the_same_order(tiny: Path, batch: Batch) -> None:
    torch.manual_seed(0)
    wanted = plain(load(tiny, attn_implementation="eager"), batch)
    assert_same(with_dropout(tiny, batch), wanted)
    assert_same(with_dropout(tiny, batch, fuse_layers), wanted)
    assert_same(with_dropout(tiny, batch, checkpoint_activations), wanted)


def test_dropout_is_the_same_when_layers_are_computed_again(tiny: Path, batch: Batch) -> None:
    """Attention on a CPU draws in its own way, but the same in both passes."""
    wanted = with_dropout(tiny, batch, share_bias)
    assert_same(with_dropout(tiny, batch, share_bias, checkpoint_activations), wanted)


SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
OTHERS: list[Callable[[], Any]] = [
    lambda: T5ForConditionalGeneration(T5Config(**SIZES)),  # with ReLU
    lambda: MT5ForConditionalGeneration(MT5Config(**SIZES)),
    lambda: UMT5ForConditionalGeneration(UMT5Config(**SIZES)),
    lambda: UMT5ForConditionalGeneration(UMT5Config(**SIZES, tie_word_embeddings=True)),
]


@pytest.mark.parametrize("make", OTHERS)
def test_models_like_t5(batch: Batch, make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, other = make().train(), make().train()
    other.load_state_dict(model.state_dict())
    share_bias(other)
    fuse_layers(other)
    assert_same(fast(other, batch), plain(model, batch))


def test_a_model_that_adds_to_its_logits(batch: Batch) -> None:
    torch.manual_seed(0)
    config = tiny_bart(512)
    config.max_position_embeddings, config.dropout = 64, 0.0
    model, other = (BartForConditionalGeneration(config).train() for _ in range(2))
    model.final_logits_bias.normal_()
    other.load_state_dict(model.state_dict())
    assert not share_bias(other)
    fuse_layers(other)
    found, wanted = fast(other, batch), plain(model, batch)
    for _, gradients in (found, wanted):  # zero but for rounding: it moves all scores alike
        for name in [name for name in gradients if name.endswith("k_proj.bias")]:
            assert float(gradients.pop(name).abs().max()) < 1e-4
    assert_same(found, wanted)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(config: FitConfig, still: Path, tmp_path: Path) -> None:
    """The same 40 steps, five times through the data: each loss within 2 %."""
    config = changed(config, model_name_or_path=str(still), max_steps=40, learning_rate=3e-3)
    full = [entry["loss"] for entry in log_of(fit(config))[:40]]
    config = changed(config, bf16=True, output_dir=str(tmp_path / "half"))
    half = [entry["loss"] for entry in log_of(fit(config))[:40]]
    assert full[-1] < 0.7 * full[0]
    assert half == pytest.approx(full, rel=0.02)
    assert half != full


def test_gradients_are_those_of_plain_transformers_as_near_as_bfloat16_is(
    still: Path, batch: Batch
) -> None:
    """No further from float32's than those of plain transformers under the same autocast."""
    exact = fast(load(still), batch)
    errors = []
    for changes in ((), (share_bias, fuse_layers)):
        model = load(still)
        for change in changes:
            change(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss, gradients = fast(model, batch)
        assert loss == pytest.approx(exact[0], rel=1e-3)
        errors.append([float((gradients[n] - g).norm() / g.norm()) for n, g in exact[1].items()])
    plain, ours = (sorted(each) for each in errors)
    middle = len(plain) // 2
    assert ours[middle] < 1.1 * plain[middle]
    assert ours[-1] < 1.1 * plain[-1]


def test_bfloat16_holds_what_float16_does_not(still: Path, batch: Batch) -> None:
    """Large T5s have activations beyond float16's 65,504 behind their feed-forward."""
    model = load(still)
    share_bias(model)
    fuse_layers(model)
    with torch.no_grad():
        model.encoder.block[0].layer[-1].DenseReluDense.wo.weight.mul_(1e7)
    made = []
    model.encoder.block[0].register_forward_hook(lambda *hooked: made.append(hooked[2][0]))
    exact = fast(model, batch)[0]
    assert made[0].abs().max() > 1e5
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = fast(model, batch)
    assert loss == pytest.approx(exact, rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
