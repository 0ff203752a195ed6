"""How a module takes the mask of its input, and what it returns, seen from the module itself."""

from collections.abc import Callable
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossfuse._errors import error, quoted
from crossfuse._masks import is_present

# Parameters of a forward that take a mask of steps, and what True means in them. An attention mask
# (L, L), such as `src_mask`, is none of these, and comes beside one of them: `mask`, which is an
# attention mask in nn.TransformerEncoder, is looked for last.
_ARGUMENTS = {
    "src_key_padding_mask": "padding",
    "key_padding_mask": "padding",
    "padding_mask": "padding",
    "attention_mask": "valid, as integers",
    "mask": "valid",
}
# Attributes by which wrappers hold the module that they call: those of torch.compile, of DDP,
# DataParallel, FSDP1 and AveragedModel, of Lightning Fabric, of checkpointing and of PEFT.
_WRAPPED = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_forward_module",
    "_checkpoint_wrapped_module",
    "base_layer",
    "base_model",
    "model",
)
# Libraries whose wrappers do no more than to call that module. A user's own wrapper may.
_WRAPPERS_OF = frozenset(
    {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "peft", "accelerate"}
)
_ALONE = (
    nn.Linear,
    nn.Identity,
    nn.Embedding,
    nn.Dropout,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.Dropout1d,
)


class Way(NamedTuple):
    """How a module takes a mask: ``alone`` treats each step alone, ``recurrent`` goes in order."""

    kind: str  # "argument", "alone", "recurrent" or "unknown"
    argument: str = ""
    meaning: str = ""  # what True means to the argument


def way_of(module: nn.Module, method: str = "forward") -> Way:
    """Finds how a module, or a method of it, takes a mask, through wrappers."""
    for inner in unwrapped(module):
        if isinstance(inner, nn.RNNBase):
            return Way("recurrent")
        names = _parameters(getattr(inner, method, None))
        for argument, meaning in _ARGUMENTS.items():
            if argument in names:
                return Way("argument", argument, meaning)
        if _is_alone(inner):
            return Way("alone")
        # One's own wrapper, which may do more than to call its only child, but hands keywords on.
        children = list(inner.children())
        if "**" in names and len(children) == 1:
            way = way_of(children[0], method)
            if way.kind == "argument":
                return way
    return Way("unknown")


def stated(taken: str) -> Way:
    """Reads what a user says of a module: "alone", a name, or "~name" if True means padding."""
    if taken == "alone":
        return Way("alone")
    name = taken.removeprefix("~")
    known = _ARGUMENTS.get(name, "valid") if name == taken else "padding"
    return Way("argument", name, known)


def check_stated(layer: str, name: str, module: nn.Module, taken: object) -> None:
    """Refuses a statement that is not "alone" or the name of a parameter of the module."""
    names = frozenset[str]().union(*(_parameters(inner.forward) for inner in unwrapped(module)))
    if isinstance(taken, str) and (
        taken == "alone" or "**" in names or taken.removeprefix("~") in names
    ):
        return
    raise error(
        ValueError,
        layer,
        f"takes[{name!r}] is not a parameter of the module",
        got=f"{taken!r}",
        expected=f"'alone', or one of {quoted(sorted(names))}",
        hint="'~' before the name says that True means padding",
    )


def unwrapped(module: nn.Module) -> list[nn.Module]:
    """Lists a module, what it wraps, what that wraps, and so on; wrappers take any keyword."""
    seen = [module]
    while _is_of_library(seen[-1]) and "**" in _parameters(seen[-1].forward):
        # From the children: wrappers answer for other attributes of what they wrap.
        children = dict(seen[-1].named_children())
        inner = next((children[name] for name in _WRAPPED if name in children), None)
        if inner is None or any(inner is module for module in seen):
            break
        seen.append(inner)
    return seen


def call(module: nn.Module, way: Way, x: Tensor, valid: Tensor) -> object:
    """Calls a module with a mask (B, L), as it takes one."""
    if way.kind == "recurrent":
        return _recurrent(module, x, valid)
    return module(x, **keywords(way, valid))


def keywords(way: Way, valid: Tensor) -> dict[str, Tensor]:
    """Returns a mask (B, L) as the keyword argument by which a module takes it, if it takes one."""
    return {way.argument: _as_taken(way, valid)} if way.kind == "argument" else {}


def features_of(module: nn.Module, outputs: object) -> object:
    """Takes the features out of what a module returned, if their place is known."""
    if isinstance(outputs, Tensor):
        return outputs
    recurrent = any(isinstance(inner, nn.RNNBase) for inner in unwrapped(module))
    if recurrent and isinstance(outputs, tuple | list):  # a list from a hook
        return outputs[0]  # beside the state
    return getattr(outputs, "last_hidden_state", outputs)  # of Transformers


def check_batch_first(layer: str, name: str, module: nn.Module) -> None:
    """Refuses torch's sequence modules if their first axis is the steps."""
    for inner in unwrapped(module):
        first = inner
        if isinstance(inner, nn.TransformerEncoder):
            first = inner.layers[0]
        if isinstance(first, nn.TransformerEncoderLayer):
            first = first.self_attn
        if isinstance(first, nn.RNNBase | nn.MultiheadAttention) and not first.batch_first:
            raise error(
                ValueError,
                layer,
                f"the module of {name!r} takes steps before batch",
                got=f"{type(inner).__name__} with batch_first=False",
                expected="batch_first=True",
                hint="modalities are (batch, steps, ...)",
            )


def check_following(layer: str, name: str, following: object, valid: Tensor) -> None:
    """Refuses what a module returned as the mask of its output, if it is none."""
    if (
        not isinstance(following, Tensor)
        or following.dtype != torch.bool
        or following.ndim != 2
        or following.shape[0] != valid.shape[0]
    ):
        raise error(
            TypeError,
            layer,
            f"mask_for of the module of {name!r} does not return a mask",
            got=f"{tuple(following.shape)} of {following.dtype}"
            if isinstance(following, Tensor)
            else type(following).__name__,
            expected=f"bool ({valid.shape[0]}, steps), True = valid",
            hint="it takes the mask (batch, steps) of its input and returns that of its output",
        )


def check_recurrent(layer: str, name: str, module: nn.Module) -> None:
    """Refuses a mask for a recurrent module that also reads backwards."""
    for inner in unwrapped(module):
        if isinstance(inner, nn.RNNBase) and inner.bidirectional:
            raise error(
                TypeError,
                layer,
                f"the module of {name!r} reads backwards from invalid steps",
                got=f"a mask for {type(inner).__name__} with bidirectional=True",
                expected="bidirectional=False, or a module whose forward has a parameter 'mask'",
                hint="wrap it in a module that packs the valid steps (pack_padded_sequence)",
            )


def _recurrent(module: nn.Module, x: Tensor, valid: Tensor) -> object:
    """Runs over the valid steps alone, which come first; the rest follows, and is not looked at."""
    order = (~valid).int().argsort(dim=1, stable=True)
    back = order.argsort(dim=1)
    outputs, *_ = module(torch.take_along_dim(x, order[..., None], dim=1))
    return torch.take_along_dim(outputs, back[..., None], dim=1)


def _as_taken(way: Way, valid: Tensor) -> Tensor:
    if way.meaning == "valid":
        return valid
    # Attention over no step at all is NaN in torch, also in gradients. A sample without a valid
    # step is zeros, whatever its module computes.
    valid = valid | ~is_present(valid)
    return ~valid if way.meaning == "padding" else valid.long()


def _is_alone(module: nn.Module) -> bool:
    """Whether a module is known to treat each step (axis 1) alone."""
    if isinstance(module, nn.Sequential):
        return all(any(map(_is_alone, unwrapped(part))) for part in module)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape) == 1
    if isinstance(module, nn.Flatten):
        return module.start_dim >= 2
    if isinstance(module, nn.Unflatten):
        return module.dim in (-1, 2, 3, 4)  # a name if not an int
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin | nn.GLU):
        return module.dim == -1
    kind = type(module)
    if isinstance(module, _ALONE):
        return True
    if kind.__module__ == "torch.nn.modules.activation":
        return not isinstance(module, nn.MultiheadAttention | nn.Softmax2d)
    # Of torch.ao, which is slow to import.
    return kind.__name__ == "Linear" and kind.__module__.startswith("torch.ao.nn.")


def _is_of_library(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in _WRAPPERS_OF


def _parameters(function: object) -> frozenset[str]:
    """Names the keyword parameters of a function, "**" if it takes any keyword."""
    if not callable(function):
        return frozenset()
    schema = getattr(function, "schema", None)  # of a scripted one, which has no signature
    if schema is not None:
        return frozenset(argument.name for argument in schema.arguments)
    method = getattr(function, "__func__", None)  # of a class: not one that holds its module
    return _named(function) if method is None else _named_once(method, bound=1)


def _named(function: Callable[..., Any], bound: int = 0) -> frozenset[str]:
    """Names the keyword parameters that follow those that are bound."""
    try:
        found = list(signature(function).parameters.values())[bound:]
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(
        "**" if p.kind is Parameter.VAR_KEYWORD else p.name
        for p in found
        if p.kind not in (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL)
    )


_named_once = lru_cache(maxsize=512)(_named)
