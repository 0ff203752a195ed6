"""The layers among their neighbours: torch's own tools, Transformers, Lightning, Accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import crossfuse
from crossfuse import functional
from tests.support import properties
from tests.support.layers import (
    LENGTH,
    SPECIMENS,
    Pipeline,
    foreign_warnings_silenced,
    masks,
    streams,
)
from tests.support.strategies import filled

PROCESSES = 2
SIZES = (4, 6)  # the joined batch; each process has its half


def model() -> nn.Module:
    return filled(Pipeline(), 0)


def loss_of(module: nn.Module, part: slice = slice(None)) -> Tensor:
    """The mean square over the samples of a part of the batch."""
    x = {name: value[part] for name, value in streams(SIZES).items()}
    mask = {name: value[part] for name, value in masks(SIZES).items()}
    total: Tensor = module(x, mask).square().mean()
    return total


def gradients_of(module: nn.Module, whole: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("module."): whole(p.grad.detach())
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def _in_each_process(rank: int, folder: str) -> None:
    """Runs in a process of its own: DDP and FSDP2, one after the other in one group."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    half = SIZES[0] // PROCESSES
    part = slice(rank * half, (rank + 1) * half)
    found = {}
    parallel = nn.parallel.DistributedDataParallel(model())
    torch.autograd.backward(loss_of(parallel, part))
    found["ddp"] = gradients_of(parallel, Tensor.clone)
    sharded = model()
    for layer in sharded.children():
        fully_shard(layer)
    fully_shard(sharded)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    torch.autograd.backward(loss_of(sharded, part))
    found["fsdp"] = gradients_of(
        sharded, lambda g: g.full_tensor() if isinstance(g, DTensor) else g
    )
    if rank == 0:
        torch.save(found, f"{folder}/gradients")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def parallel_gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """The gradients that each way of sharing the work gives, from one start of the processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("processes")
    start: Callable[..., object] = vars(torch.multiprocessing)["spawn"]  # not exported in types
    start(_in_each_process, (str(folder),), nprocs=PROCESSES)
    found: dict[str, dict[str, Tensor]] = torch.load(folder / "gradients", weights_only=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_have_the_gradients_of_one(
    way: str, parallel_gradients: dict[str, dict[str, Tensor]]
) -> None:
    single = model()
    torch.autograd.backward(loss_of(single))
    expected, actual = gradients_of(single, Tensor.clone), parallel_gradients[way]
    assert actual.keys() == expected.keys() == dict(single.named_parameters()).keys()
    for name, gradient in expected.items():
        properties.close(actual[name], gradient, f"{way}: {name}", 1e-5)


@pytest.mark.parametrize("name", SPECIMENS)
def test_autocast_to_bfloat16_is_near_and_trains(name: str) -> None:
    specimen = SPECIMENS[name]
    module, arguments = specimen.module(), specimen.arguments((3, LENGTH), True)
    expected = properties.places(tuple(torch.utils._pytree.tree_leaves(module(*arguments))))
    with torch.autocast("cpu", torch.bfloat16):
        actual = properties.places(tuple(torch.utils._pytree.tree_leaves(module(*arguments))))
    for place, y in actual.items():
        properties.close(y.float(), expected[place].float(), f"output {place}", 2.0**-4)
    trained = [y.sum() for y in actual.values() if y.requires_grad]
    if trained:
        torch.autograd.backward(torch.stack([y.float() for y in trained]).sum())
        for key, p in module.named_parameters():
            assert p.grad is None or torch.isfinite(p.grad).all(), key
            assert p.grad is None or p.grad.dtype == torch.float32, key


def correlate(x: Tensor, joint: Tensor, temporal: Tensor) -> Tensor:
    """One sample (L, d), (L, D) through the equations 2 to 7."""
    correlation = functional.rcma_correlation(x[None], joint[None], temporal)
    feature = torch.eye(x.shape[-1], dtype=x.dtype)
    return functional.rcma_attention_map(x[None], correlation, feature)[0]


def test_vmap_over_samples_is_the_batch() -> None:
    x, joint = (value.double() for value in streams((3, 5)).values())
    temporal = torch.randn(5, 5, dtype=torch.float64)
    mapped = vmap(correlate, in_dims=(0, 0, None))(x, joint, temporal)
    correlation = functional.rcma_correlation(x, joint, temporal)
    feature = torch.eye(3, dtype=torch.float64)
    expected = functional.rcma_attention_map(x, correlation, feature)
    properties.close(mapped, expected, "mapped", 1e-12)


def test_gradients_per_sample_add_up() -> None:
    """vmap of grad over the functional core, against autograd over the batch."""
    x, joint = (value.double() for value in streams((3, 5)).values())
    temporal = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)

    def total(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return correlate(a, b, weight).square().sum()

    each = vmap(grad(total), in_dims=(None, 0, 0))(temporal.detach(), x, joint)
    assert each.shape == (3, 5, 5)
    summed = sum((total(temporal, a, b) for a, b in zip(x, joint, strict=True)), torch.zeros(()))
    (expected,) = torch.autograd.grad(summed, temporal)
    properties.close(each.sum(dim=0), expected, "per sample", 1e-10)


@pytest.mark.parametrize("name", ["RecursiveCrossModalAttention", "JointCrossAttention"])
def test_functional_call_and_an_ensemble_of_layers(name: str) -> None:
    """Several sets of weights through one layer, as torch.func.stack_module_state has them."""
    specimen = SPECIMENS[name]
    x = streams((2, 5))
    members = [filled(specimen.build(), seed) for seed in range(3)]
    stacked, _ = torch.func.stack_module_state(members)

    def run(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = functional_call(members[0], dict(parameters), (x,))
        return outputs

    outputs = vmap(run)(stacked)
    for n, member in enumerate(members):
        for key, y in member(x).items():
            properties.close(outputs[key][n], y, f"member {n}, {key}", 1e-5)


@pytest.mark.slow
def test_encoders_of_transformers_go_through_the_fusion() -> None:
    """Two small random encoders; the tokenizer's attention mask, as bool, is the layer's."""
    transformers = pytest.importorskip("transformers", reason="encodes words and speech")
    words = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=12,
        )
    ).eval()
    frames = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
        )
    ).eval()
    ids = torch.randint(0, 30, (2, 9))
    attention = torch.ones(2, 9, dtype=torch.long)
    attention[1, 6:] = 0
    # Away from its start, which is the identity: no gradient passes from one modality to another.
    fuse = filled(
        crossfuse.RecursiveCrossModalAttention(
            {"words": 8, "frames": 8}, {"words": 12, "frames": 5}
        ),
        0,
    )

    def fused(tokens: Tensor) -> dict[str, Tensor]:
        encoded = {
            "words": words(tokens, attention_mask=attention).last_hidden_state,
            "frames": frames(pixel_values=torch.ones(2, 3, 8, 8)).last_hidden_state,
        }
        together: dict[str, Tensor] = fuse(encoded, {"words": attention.bool(), "frames": None})
        return together

    outputs = fused(ids)
    assert {name: tuple(y.shape) for name, y in outputs.items()} == {
        "words": (2, 9, 8),
        "frames": (2, 5, 8),
    }
    padded = ids.clone()
    padded[1, 6:] = 0
    for name, y in fused(padded).items():
        properties.close(y, outputs[name], f"{name}: with other padding", 1e-5)
    torch.autograd.backward(outputs["frames"].sum())
    gradient = words.embeddings.word_embeddings.weight.grad
    assert gradient is not None
    assert gradient.any()


@pytest.mark.slow
def test_accelerate_trains_a_step() -> None:
    accelerate = pytest.importorskip("accelerate", reason="drives the step")
    ours = model()
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(ours, torch.optim.SGD(ours.parameters(), 0.1))
    accelerator.backward(loss_of(prepared))
    optimizer.step()
    plain = model()
    torch.autograd.backward(loss_of(plain))
    for name, p in plain.named_parameters():
        assert p.grad is not None
        now = ours.get_parameter(name)
        properties.close(now, before[name] - 0.1 * p.grad, f"after a step: {name}", 1e-5)


@pytest.mark.slow
def test_lightning_trains_a_step(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="drives the step")

    class Training(lightning.LightningModule):  # type: ignore[name-defined, misc]  # found above
        def __init__(self) -> None:
            super().__init__()
            self.model = model()

        def training_step(self, batch: Any, index: int) -> Tensor:  # noqa: ANN401 - Lightning's
            return loss_of(self.model)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    training = Training()
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with foreign_warnings_silenced():
        trainer.fit(
            training, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(1)))
        )
    plain = model()
    torch.autograd.backward(loss_of(plain))
    for name, p in plain.named_parameters():
        assert p.grad is not None
        now = training.model.get_parameter(name)
        properties.close(now, before[name] - 0.1 * p.grad, f"after a step: {name}", 1e-5)
