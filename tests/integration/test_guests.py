"""Every public layer inside other people's tools: what wraps, shards, prunes, adapts, quantises."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import crossfuse
from tests.support import properties
from tests.support.layers import SPECIMENS, Specimen, foreign_warnings_silenced

SIZES = (2, 6)
PARAMETRISED = [n for n, s in SPECIMENS.items() if any(True for _ in s.build().parameters())]
# Those with an nn.Linear, which is what most tools look for.
LINEAR = [
    n for n in PARAMETRISED if any(isinstance(m, nn.Linear) for m in SPECIMENS[n].build().modules())
]
Tool = Callable[[nn.Module], nn.Module]


def data_parallel(module: nn.Module) -> nn.Module:
    return nn.DataParallel(module)


def replicated(module: nn.Module) -> nn.Module:
    """The replica that DataParallel makes for each GPU, whose parameters are plain tensors."""
    modules = list(module.modules())
    replicas = {id(m): m._replicate_for_data_parallel() for m in modules}
    for m in modules:
        replica = replicas[id(m)]
        for name, child in m._modules.items():
            replica._modules[name] = None if child is None else replicas[id(child)]
        for name, parameter in m._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.clone())
    replica = replicas[id(module)]
    assert isinstance(replica, nn.Module)
    return replica


def averaged(module: nn.Module) -> nn.Module:
    average = torch.optim.swa_utils.AveragedModel(module)
    average.update_parameters(module)
    return average


def pruned(module: nn.Module) -> nn.Module:
    """With a mask in front of every parameter, which prunes nothing."""
    for part in list(module.modules()):
        for name, _ in list(part.named_parameters(recurse=False)):
            prune.identity(part, name)
    return module


class Halved(nn.Module):
    """Stores half of a weight."""

    def forward(self, half: Tensor) -> Tensor:
        return 2 * half

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


def parametrised(module: nn.Module) -> nn.Module:
    """With a parametrisation in front of every parameter, then copied."""
    for part in list(module.modules()):
        if not isinstance(part, parametrize.ParametrizationList):
            for name, _ in list(part.named_parameters(recurse=False)):
                parametrize.register_parametrization(part, name, Halved())
    return copy.deepcopy(module)


class Recomputed(nn.Module):
    """Keeps nothing for the backward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *arguments: object) -> object:
        outputs: object = checkpoint(self.inner, *arguments, use_reentrant=False)
        return outputs


class Elsewhere(nn.Module):
    """Called while new tensors are made on another device and in another dtype by default."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *arguments: object) -> object:
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                outputs: object = self.inner(*arguments)
        finally:
            torch.set_default_dtype(torch.float32)
        return outputs


class Functional(nn.Module):
    """Weights that are plain tensors, as torch.func hands them in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = [module]

    def forward(self, *arguments: object) -> object:
        (module,) = self.inner
        weights = {name: p.detach().clone() for name, p in module.named_parameters()}
        return torch.func.functional_call(module, weights, arguments)


def offloaded(module: nn.Module) -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(nn.Sequential(module), execution_device=torch.device("cpu"))
    return module


def low_rank(module: nn.Module) -> nn.Module:
    """Adapters on every nn.Linear, which start at zero."""
    peft = pytest.importorskip("peft")
    names = [name for name, part in module.named_modules() if type(part) is nn.Linear]
    if not names:
        pytest.skip("no nn.Linear")
    adapted: nn.Module = peft.get_peft_model(module, peft.LoraConfig(target_modules=names))
    return adapted


def quantised_by_torch(module: nn.Module) -> nn.Module:
    quantised: nn.Module = torch.ao.quantization.quantize_dynamic(
        module, {nn.Linear}, dtype=torch.qint8
    )
    return quantised


EXACT: dict[str, Tool] = {
    "DataParallel": data_parallel,
    "replica": replicated,
    "AveragedModel": averaged,
    "prune": pruned,
    "parametrize": parametrised,
    "checkpoint": Recomputed,
    "functional_call": Functional,
    "other defaults": Elsewhere,
    "cpu_offload": offloaded,
    "LoRA": low_rank,
}


def tensors(outputs: object) -> list[Tensor]:
    leaves: list[Tensor] = torch.utils._pytree.tree_leaves(outputs)
    return leaves


def same(tool: Tool, specimen: Specimen, tolerance: float) -> None:
    """A layer in a tool computes what it computes alone, with and without a mask."""
    module = specimen.module()
    guest = tool(copy.deepcopy(module)).eval()
    for masked in (False, True)[: 1 + specimen.takes_mask]:
        arguments = specimen.arguments(SIZES, masked)
        expected = tensors(module(*arguments))
        for n, (x, y) in enumerate(zip(tensors(guest(*arguments)), expected, strict=True)):
            properties.close(x.to(torch.float64), y.to(torch.float64), f"output {n}", tolerance)


@pytest.mark.parametrize("tool", EXACT)
@pytest.mark.parametrize("name", PARAMETRISED)
def test_a_layer_in_a_tool_computes_the_same(name: str, tool: str) -> None:
    if tool == "LoRA" and name not in LINEAR:
        pytest.skip("no nn.Linear to adapt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tools
        same(EXACT[tool], SPECIMENS[name], 1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_a_layer_of_int8_weights_is_near(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own way is deprecated in favour of torchao
        same(quantised_by_torch, SPECIMENS[name], 0.1)


@pytest.mark.parametrize("name", PARAMETRISED)
def test_backward_hooks_and_gradient_penalties(name: str) -> None:
    """Full backward hooks on every module; second derivatives with a sample that is missing."""
    specimen = SPECIMENS[name]
    module = specimen.module()
    # torch's fused attention has no second derivative, in CrossModalTransformer as anywhere.
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        # torch has none for outputs in a dict, and mentions inputs without gradients.
        warnings.filterwarnings("ignore", "For backward hooks to be called", UserWarning)
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        for part in module.modules():
            part.register_full_backward_hook(lambda *_: None)
        arguments = specimen.arguments(SIZES, specimen.takes_mask)
        leaves = [x for x in tensors(arguments) if x.is_floating_point()]
        for x in leaves:
            x.requires_grad_()
        for mask in (x for x in tensors(arguments) if x.dtype == torch.bool):
            mask[0] = False  # missing in this sample, in one modality or in all
        total = sum((y.square().sum() for y in tensors(module(*arguments))), torch.zeros(()))
        slopes = torch.autograd.grad(total, leaves, create_graph=True)
        penalty = sum(((s.norm(dim=(1, 2)) - 1).square().sum() for s in slopes), torch.zeros(()))
        torch.autograd.backward(penalty)
    for key, p in module.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), key


def rebuilt(_: nn.Module, __: object, outputs: object) -> object:
    """A forward hook that returns the outputs in a container of another type."""
    if isinstance(outputs, tuple | list):
        return list(outputs) if isinstance(outputs, tuple) else tuple(outputs)
    return dict(outputs) if isinstance(outputs, dict) else outputs


def encoders_of_a_wearable() -> nn.Module:
    """PerModality around a module that returns a tuple."""
    modules = {"face": nn.GRU(3, 4, batch_first=True), "voice": nn.Linear(5, 2)}
    return crossfuse.PerModality(modules)


HOOKED = {n: SPECIMENS[n] for n in PARAMETRISED} | {"recurrent": Specimen(encoders_of_a_wearable)}


@pytest.mark.parametrize("name", HOOKED)
def test_hooks_may_rebuild_what_parts_return(name: str) -> None:
    """As the hooks of attribution and of offloading tools do."""
    for masked in (False, True)[: 1 + HOOKED[name].takes_mask]:
        module = HOOKED[name].module()
        arguments = HOOKED[name].arguments(SIZES, masked)
        expected = tensors(module(*arguments))
        for part in list(module.modules())[1:]:
            part.register_forward_hook(rebuilt)
        for x, y in zip(tensors(module(*arguments)), expected, strict=True):
            assert torch.equal(x, y)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", PARAMETRISED)
def test_a_sharded_layer_of_mixed_precision_is_near_and_trains(name: str) -> None:
    """FSDP2 with weights in bfloat16, which it also casts the inputs to; shards in float32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    module = SPECIMENS[name].module()
    arguments = SPECIMENS[name].arguments(SIZES, SPECIMENS[name].takes_mask)
    expected = tensors(module(*arguments))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (1,))
    with foreign_warnings_silenced():
        # It warns of in-place operations on outputs that are views.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* view tensor", UserWarning)
        fully_shard(module, mesh=mesh, mp_policy=policy)
        outputs = tensors(module(*arguments))
    for n, (x, y) in enumerate(zip(outputs, expected, strict=True)):
        properties.close(x, y, f"output {n}", properties.TOLERANCES[torch.bfloat16].output)
    torch.autograd.backward(
        sum((x.square().sum() for x in outputs if x.is_floating_point()), torch.zeros(()))
    )
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("original", [False, True], ids=["flat", "original parameters"])
@pytest.mark.parametrize("name", PARAMETRISED)
def test_a_layer_in_fsdp1_computes_the_same(name: str, original: bool) -> None:
    """The older FSDP keeps the weights of all parts in one flat tensor, or shows views of it."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    cpu = torch.device("cpu")
    with foreign_warnings_silenced():
        warnings.filterwarnings("ignore", ".*(FSDP|NO_SHARD)", category=Warning)
        same(
            lambda m: FullyShardedDataParallel(m, device_id=cpu, use_orig_params=original),
            SPECIMENS[name],
            1e-6,
        )


def jagged(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x), layout=torch.jagged)


FOREIGN: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": Tensor.to_sparse,
    "jagged": jagged,
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "float64 under autocast": Tensor.double,
}
# These have no parameters, and compute in float64 as in any other dtype.
ANY_DTYPE = ("ModalityDropout", "MaskedMean", "MaskedMean-one", "ConcordanceLoss")


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", SPECIMENS)
def test_foreign_tensors_are_refused_in_our_words(name: str, kind: str) -> None:
    module, arguments = SPECIMENS[name].module(), SPECIMENS[name].arguments(SIZES, False)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
        foreign = torch.utils._pytree.tree_map(FOREIGN[kind], arguments)
        if kind.startswith("float64") and name in ANY_DTYPE:
            outputs = tensors(module(*foreign))
            assert all(y.dtype in (torch.float64, torch.bool) for y in outputs)
            return
        with pytest.raises((TypeError, ValueError), match=r"^(functional\.)?[A-Za-z]+: ") as caught:
            module(*foreign)
    assert "hint" in str(caught.value)


# A layer, and a part of it that is attributed to: it returns (B, L, d), (B, d, L) or several.
ATTRIBUTED = [
    ("RecursiveCrossModalAttention", "recursions.0.face"),
    ("RecursiveCrossModalAttention", "recursions.0"),
    ("RecursiveCrossModalAttention-paper", "recursions.1.voice"),
    ("RecursiveCrossModalAttention-released", "recursions.0.face"),
    ("RecursiveCrossModalAttention-released", "recursions.0"),
    ("JointCrossAttention-paper", "recursions.0.voice"),
    ("JointCrossAttention-paper", "recursions.1"),
    ("CrossModalTransformer", "targets.face.norm"),
    ("CrossModalTransformer", "targets.face"),
    ("TemporalConvNet", "blocks.0"),
    ("PerModality", "branches.face"),
    ("PerModality", "branches.face.blocks.0"),
    ("PerModality", "branches.voice"),
    ("LiveWindow", "encode.branches.voice"),
    ("LiveWindow", "readout.fuse.recursions.0.face"),
]


@pytest.mark.parametrize(("name", "part"), ATTRIBUTED)
def test_captum_attributes_to_parts(name: str, part: str) -> None:
    """What a part returns; and attributions that sum to the change of the score by the part."""
    captum = pytest.importorskip("captum.attr")
    module = SPECIMENS[name].module()
    leaves, structure = torch.utils._pytree.tree_flatten(SPECIMENS[name].arguments(SIZES, False))
    inputs, zeros = tuple(leaves), tuple(map(torch.zeros_like, leaves))
    layer = module.get_submodule(part)
    returned: list[object] = []

    def score(*leaves: Tensor) -> Tensor:
        outputs = module(*torch.utils._pytree.tree_unflatten(leaves, structure))
        return torch.stack([y.square().sum(dim=(1, 2)) for y in tensors(outputs)]).sum(dim=0)

    with layer.register_forward_hook(lambda _, __, y: returned.append(y)):
        score(*zeros)
        whole = score(*inputs)
    start, end = returned
    with layer.register_forward_hook(lambda *_: start):
        change = whole - score(*inputs)
    activation = captum.LayerActivation(score, layer).attribute(inputs)
    for x, y in zip(tensors(activation), tensors(end), strict=True):
        properties.close(x, y, "activation", 1e-6)
    integrated = captum.LayerIntegratedGradients(score, layer)
    found = integrated.attribute(inputs, zeros, n_steps=500)  # the slope jumps at relus
    total = torch.stack([x.sum(dim=(1, 2)) for x in tensors(found)]).sum(dim=0)
    properties.close(total, change, "sum of the attributions", 1e-2)
    properties.close(score(*inputs), whole, "the score afterwards", 1e-6)


@pytest.mark.parametrize("name", [n for n in PARAMETRISED if "Recursive" in n or "Joint" in n])
def test_a_trace_at_one_size_serves_others(name: str) -> None:
    specimen = SPECIMENS[name]
    module = specimen.module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and warns of every check
        traced = torch.jit.trace(module, specimen.arguments((1, 3), False), strict=False)
        for sizes in ((2, 6), (3, 4)):
            arguments = specimen.arguments(sizes, False)
            for x, y in zip(tensors(traced(*arguments)), tensors(module(*arguments)), strict=True):
                properties.close(x, y, f"traced, {sizes}", 1e-5)
