"""The one setting of torch.compile that the layers are made and tested for."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import nn

from crossfuse._errors import error

_log = logging.getLogger(__name__)

# Without this, inductor may save a modality for backward as a view into the joint, and torch then
# reuses the strides of the first length for every length.
_OPTIONS: dict[str, Any] = {"force_pointwise_cat": True}

F = TypeVar("F", bound=Callable[..., Any])


def compile(module: F) -> F:
    """Compiles a module into one graph in which batch and length may vary.

    That is ``torch.compile(module, fullgraph=True, dynamic=True)``, with an option of inductor
    without which it fails to train at a second length: it never falls back to Python, and another
    batch size or length does not compile it again. These do trigger recompilation, once each: a
    size-1 dimension, adding a mask, another set of missing modalities, training after evaluation,
    and a
    first call in which a length happens to equal another size; each costs one more graph, once.
    Only the gradients of convolutions are compiled for each length: train a compiled
    :class:`TemporalConvNet` on windows of one length.

    On CUDA without Triton the backend is ``"cudagraphs"``, which does not need it, in the place of
    ``"inductor"``. What was chosen is logged to ``crossfuse._compile`` at level INFO.

    Args:
        module: A module, on the device that it is to run on, or a method of one, such as
            ``tcn.stream``. It stays as it is and shares its parameters with what is returned.

    Returns:
        The compiled module or method; the first call compiles.

    Raises:
        TypeError: If ``module`` is neither a module nor a method of one.

    Example:
        >>> import crossfuse
        >>> tcn = crossfuse.TemporalConvNet(3, [8, 8])
        >>> encode, step = crossfuse.compile(tcn), crossfuse.compile(tcn.stream)
    """
    owner = module if isinstance(module, nn.Module) else getattr(module, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise error(
            TypeError,
            "compile",
            "'module' is neither a module nor a method of one",
            got=type(module).__name__,
            expected="a torch.nn.Module, or a method such as tcn.stream",
            hint="compile other functions with torch.compile",
        )
    backend = "cudagraphs" if _on_cuda(owner) and find_spec("triton") is None else "inductor"
    _log.info("compiling %s with the backend %r", type(owner).__name__, backend)
    chosen = _recomputing if backend == "inductor" and not _on_cuda(owner) else backend
    options = _OPTIONS if chosen == "inductor" else None
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=chosen, options=options)
    return cast(F, compiled)


def _recomputing(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:  # noqa: ANN401
    """Compiles with inductor, which is to make masks again in backward instead of keeping them.

    On the CPU its code for bool tensors is slow: writing down where a relu was zero takes 16 times
    as long as the relu, and costs compiled training more than compilation gains.
    """
    from torch._dynamo import lookup_backend  # takes as long to import as all of torch
    from torch._functorch import config
    from torch._inductor import config as inductor

    with config.patch(aggressive_recomputation=True), inductor.patch(_OPTIONS):
        return lookup_backend("inductor")(graph, inputs)


def _on_cuda(module: nn.Module) -> bool:
    """Whether the module will run on CUDA; where it holds no tensor, whether it could."""
    devices = {tensor.device.type for tensor in chain(module.parameters(), module.buffers())}
    return "cuda" in devices or (not devices and torch.cuda.is_available())
