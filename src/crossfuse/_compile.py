"""The one setting of torch.compile that the layers are made and tested for."""

import logging
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from inspect import signature
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from crossfuse._errors import error

_log = logging.getLogger(__name__)

# Without this, inductor may save a modality for backward as a view into the joint, and torch then
# reuses the strides of the first length for every length.
_OPTIONS: dict[str, Any] = {"force_pointwise_cat": True}

# One graph more for each set of missing modalities, for training, for masks and, for convolutions,
# for each length: torch's own limit, 8 for all modules of a class, is soon reached.
_LIMITS: dict[str, Any] = {
    name: value
    for name, value in {"recompile_limit": 256, "isolate_recompiles": True}.items()
    if name in signature(torch.compile).parameters  # which older versions lack
}

F = TypeVar("F", bound=Callable[..., Any])


def compile(module: F) -> F:
    """Compiles a module into one graph in which batch and length may vary.

    That is ``torch.compile(module, fullgraph=True, dynamic=True)``, with an option of inductor
    without which it fails to train at a second length: another batch size or length does not
    compile it again. These do trigger recompilation, once each: a size-1 dimension, adding a mask,
    another set of missing modalities, training after evaluation, and a first call in which a length
    happens to equal another size. Only the gradients of convolutions are compiled for each length:
    train a compiled :class:`TemporalConvNet` on windows of few lengths.

    Each compiled module may have 256 graphs, if :func:`torch.compile` has the argument
    ``recompile_limit``; older versions have one limit, 8, for all modules of a class. A call beyond
    the limit runs without compilation, and the first one is logged to ``crossfuse._compile`` at
    level WARNING.

    On CUDA without Triton the backend is ``"cudagraphs"``, which does not need it, in the place of
    ``"inductor"``. What was chosen is logged to ``crossfuse._compile`` at level INFO.

    Args:
        module: A module, on the device that it is to run on, or a method of one, such as
            ``tcn.stream``. It stays as it is and shares its parameters with what is returned. Of
            a compiled module, what it holds is compiled.

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
    if isinstance(module, nn.Module):
        # What torch.compile has compiled, it would compile as a function.
        module = cast(F, dict(module.named_children()).get("_orig_mod", module))
    backend = "cudagraphs" if _on_cuda(owner) and find_spec("triton") is None else "inductor"
    _log.info("compiling %s with the backend %r", type(owner).__name__, backend)
    chosen = _recomputing if backend == "inductor" and not _on_cuda(owner) else backend
    options = _OPTIONS if chosen == "inductor" else None
    arguments: dict[str, Any] = {"backend": chosen, "options": options, **_LIMITS}
    compiled: Any = torch.compile(module, fullgraph=True, dynamic=True, **arguments)
    if compiled is module:
        return module  # compilation is switched off
    if isinstance(module, nn.Module):
        # Where torch's compiled module takes it from, in copies and unpickled ones too.
        compiled.dynamo_ctx = _UpToTheLimit(compiled.dynamo_ctx)
        compiled._initialize()
        return cast(F, compiled)
    return cast(F, _or_eager(compiled, module))


class _UpToTheLimit:
    """What compiles a function for torch's compiled module; beyond the limit it runs as it is."""

    def __init__(self, context: Callable[[Any], Any]) -> None:
        self.context: Callable[[Any], Any] = context

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return _or_eager(self.context(function), function)


def _or_eager(compiled: Callable[..., Any], eager: Callable[..., Any]) -> Callable[..., Any]:
    """Calls a compiled function; beyond torch's limit of recompilations, the function itself."""
    warned = False

    @wraps(compiled)
    def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - those of the module
        nonlocal warned
        refused = False
        try:
            return compiled(*args, **options)
        except Exception as reason:
            # By name: to import them takes as long as to import all of torch.
            kind = type(reason).__name__
            refused = kind == "Unsupported" and _refuses(eager, args, options)
            if not refused and kind != "FailOnRecompileLimitHit":
                raise
        # Here, where the error of a wrong call does not show the compiler's above it.
        if not refused and not warned:
            _log.warning("too many graphs: calls of another kind run without compilation from now")
            warned = True
        return eager(*args, **options)

    return call


def _refuses(eager: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a call is wrong, of which a compiler reports only that it cannot trace the error."""
    try:
        eager(*args, **options)
    except (TypeError, ValueError):
        return True
    return False


def _recomputing(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:  # noqa: ANN401
    """Compiles with inductor for the CPU, without what would make training slower than eager.

    - Its code for bool tensors is slow: writing down where a relu was zero takes 16 times as long
      as the relu. So masks are made again in backward instead of being kept, and the gradient of a
      leaky relu is computed without one.
    - It computes a sum of residuals again in each reader, from all that was ever added. So what is
      read more than twice is computed once.
    """
    from torch._functorch import config  # these take as long to import as all of torch
    from torch._inductor import config as inductor
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    leaky = torch.ops.aten.leaky_relu_backward.default
    table = {**select_decomp_table(), leaky: _leaky_relu_backward}
    options = {**_OPTIONS, "realize_reads_threshold": 2}
    with config.patch(aggressive_recomputation=True), inductor.patch(options):
        return compile_fx(graph, inputs, decompositions=table)


def _leaky_relu_backward(gradient: Tensor, x: Tensor, slope: float, self_is_result: bool) -> Tensor:
    """Computes the gradient of a leaky relu; the sign of x is that of the result, too."""
    positive = torch.sign(x).clamp(min=0)
    return gradient * (positive + (1 - positive) * slope)


def _on_cuda(module: nn.Module) -> bool:
    """Whether the module will run on CUDA; where it holds no tensor, whether it could."""
    devices = {tensor.device.type for tensor in chain(module.parameters(), module.buffers())}
    return "cuda" in devices or (not devices and torch.cuda.is_available())
