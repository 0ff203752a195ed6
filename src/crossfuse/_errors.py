"""The grammar of every error message, and the checks that need no layer.

One grammar: layer, input and axis; then what was found, what was expected and how to fix it.
"""

import keyword
import math
import operator
import os
from collections.abc import Collection, Iterable, Mapping
from typing import SupportsFloat, SupportsIndex, TypeVar, cast

import torch
from torch import Tensor, nn

E = TypeVar("E", ValueError, TypeError)

_LARGEST = 2**31 - 1  # of a size: more than any axis here, and small enough for torch's counters
_WHOLE = (
    torch.bool,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def error(
    kind: type[E], layer: str, problem: str, *, got: object, expected: object, hint: str
) -> E:
    """Composes an exception; the caller raises it, so that the traceback ends at the check."""
    return kind(
        f"{layer}: {problem}\n  got       {got}\n  expected  {expected}\n  hint      {hint}"
    )


def shapes(named: Mapping[str, Tensor | None]) -> str:
    """Lists the shapes of named tensors on one line."""
    return ", ".join(
        f"{name} {tuple(x.shape) if isinstance(x, Tensor) else 'missing'}"
        for name, x in named.items()
    )


def quoted(names: Iterable[object]) -> str:
    """Lists names in quotes on one line."""
    return ", ".join(repr(str(name)) for name in names) or "nothing"


def check_size(layer: str, name: str, value: object, *, most: int = _LARGEST) -> int:
    """Reads a size: an int of at least 1, or what NumPy and others have in its place."""
    size = as_int(value)
    if size is None or not 1 <= size <= most:
        raise error(
            ValueError,
            layer,
            f"{name} must be a positive int",
            got=f"{value!r}",
            expected="an int of at least 1" if size is None or size < 1 else f"at most {most}",
            hint=f"{name} counts elements along an axis, blocks or recursions",
        )
    return size


def as_int(value: object) -> int | None:
    """Returns what can serve as an int and is neither a bool nor a tensor; else None."""
    if isinstance(value, bool | Tensor) or type(value).__name__ in ("bool_", "bool"):
        return None
    try:
        return operator.index(cast(SupportsIndex, value))
    except TypeError:
        return None


def check_memory(
    layer: str, what: str, count: object, itemsize: int, device: torch.device | None = None
) -> None:
    """Refuses to allocate more numbers on the CPU than this machine has memory for."""
    # In a graph a size may be a symbol, not an int: its input is already in memory.
    elsewhere = device is not None and device.type != "cpu"
    if elsewhere or not isinstance(count, int) or count * itemsize <= _memory():
        return
    raise error(
        ValueError,
        layer,
        f"{what} would not fit into memory",
        got=f"{min(count * itemsize, 10**300) / 2**30:.3g} GiB",
        expected=f"at most {_memory() / 2**30:.3g} GiB",
        hint="choose smaller sizes",
    )


def _memory() -> float:
    """The bytes of memory of this machine, if it says."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


# A compiler takes the answer as it is; it cannot trace the question.
vars()["_memory"]._dynamo_marked_constant = True


def check_probability(layer: str, name: str, value: object) -> float:
    """Reads a probability in [0, 1]."""
    number = _real(value)
    if number is None or not 0.0 <= number <= 1.0:
        raise error(
            ValueError,
            layer,
            f"{name} must be a probability",
            got=f"{value!r}",
            expected="a number from 0 to 1",
            hint=f"{name} is the probability of dropping an element, not of keeping it",
        )
    return number


def check_positive(layer: str, name: str, value: object, *, least: float = 0.0) -> float:
    """Reads a finite number above 0, and of at least ``least``."""
    number = _real(value)
    if number is None or not max(0.0, least) <= number < math.inf or number == 0:
        raise error(
            ValueError,
            layer,
            f"{name} must be positive",
            got=f"{value!r}",
            expected=f"a finite number of at least {least:g}"
            if least
            else "a finite number above 0",
            hint=f"the docstring of {layer} says what {name} does",
        )
    return number


def _real(value: object) -> float | None:
    """Returns a real number, also of NumPy, as a float; None for bools, tensors and the rest."""
    if isinstance(value, bool | str | bytes | Tensor) or type(value).__name__ == "bool_":
        return None
    try:
        return float(cast(SupportsFloat, value))
    except (TypeError, ValueError, OverflowError):
        return None


def check_flag(layer: str, name: str, value: object) -> None:
    """Refuses a switch that is neither True nor False."""
    if not isinstance(value, bool):
        raise error(
            TypeError,
            layer,
            f"{name} must be a bool",
            got=f"{value!r}",
            expected="True or False",
            hint="any other value, such as 'False', would count as True",
        )


def check_choice(layer: str, name: str, value: object, choices: Collection[str]) -> None:
    """Refuses a word that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        raise error(
            ValueError,
            layer,
            f"unknown {name}",
            got=f"{value!r}",
            expected=f"one of {quoted(choices)}",
            hint=f"the docstring of {layer} says what each {name} means",
        )


def check_name(layer: str, name: object) -> None:
    """Refuses a modality name that cannot be part of a parameter's name."""
    if (
        not isinstance(name, str)
        or not name
        or "." in name
        or keyword.iskeyword(name)
        or hasattr(nn.ModuleDict(), name)
    ):
        raise error(
            ValueError,
            layer,
            f"{name!r} cannot name a modality",
            got=f"{name!r}",
            expected="a non-empty str without '.', no keyword of Python, and not an attribute of "
            "nn.ModuleDict",
            hint="names become parts of parameter names; add a prefix, such as 'x_' + name",
        )


def check_layout(layer: str, name: str, x: object, dim: int | None) -> None:
    """Refuses what is not a floating-point tensor (B, L, dim) with at least one step.

    With ``dim=None`` it may have any number of features.
    """
    expected = f"{name} (batch, steps, {'features' if dim is None else dim})"
    if not isinstance(x, Tensor):
        raise error(
            TypeError,
            layer,
            f"{name!r} is not a tensor",
            got=type(x).__name__,
            expected=expected,
            hint="convert it with torch.as_tensor, or give None if it is missing",
        )
    check_dense(layer, name, x)
    if x.ndim != 3:
        raise error(
            ValueError,
            layer,
            f"{name!r} has {x.ndim} axes, not 3",
            got=shapes({name: x}),
            expected=expected,
            hint="x[None] adds a batch axis, x[..., None] one for a single feature; flatten others",
        )
    if dim is not None and x.shape[2] != dim:
        raise error(
            ValueError,
            layer,
            f"{name!r} has {x.shape[2]} features on axis 2, not {dim}",
            got=shapes({name: x}),
            expected=expected,
            hint=f"features come last (x.mT swaps the axes); or build the layer for {x.shape[2]}",
        )
    if x.shape[1] < 1:
        raise error(
            ValueError,
            layer,
            f"{name!r} has no steps on axis 1",
            got=shapes({name: x}),
            expected=expected,
            hint="give None if the modality is missing",
        )
    if x.dtype not in DTYPES:
        raise error(
            TypeError,
            layer,
            f"{name!r} is not of a floating-point dtype that can be computed with",
            got=x.dtype,
            expected="float32, float64, bfloat16 or float16",
            hint="convert it with .to(torch.float32)",
        )


def is_real(dtype: torch.dtype) -> bool:
    """Whether a dtype holds real numbers, whole or not (bools among them), for computing."""
    return dtype in (*DTYPES, *_WHOLE)


def check_dense(layer: str, name: str, x: Tensor) -> None:
    """Refuses nested (jagged), sparse and quantised tensors."""
    if x.is_nested or x.is_quantized or x.layout != torch.strided:
        raise error(
            TypeError,
            layer,
            f"{name!r} is not a dense tensor",
            got="a nested tensor" if x.is_nested else x.dtype if x.is_quantized else x.layout,
            expected="a tensor with one number of steps for all samples",
            hint="pad it and give a mask: crossfuse.collate does both; sparse ones .to_dense(), "
            "quantised ones .dequantize()",
        )


def check_like(layer: str, name: str, x: Tensor, other_name: str, other: object) -> None:
    """Refuses a tensor on another device, or of another dtype, than another.

    Steps aside if the other says nothing: no tensor (``weight`` is a method of torch's quantised
    modules), on meta (weights that are loaded later), quantised, in storage of a dtype that is not
    computed with, or a shard, which is cast when it is gathered.
    """
    if not isinstance(other, Tensor) or other.is_meta or other.is_quantized:
        return
    if other.dtype not in DTYPES:
        return
    shard = not other.numel() or type(other) not in (Tensor, nn.Parameter)  # of FSDP1, of FSDP2
    if shard and other_name == "the parameters":
        return
    check_device(layer, name, x, other_name, other)
    autocast = torch.is_autocast_enabled(x.device.type)  # which leaves float64 as it is
    if x.dtype != other.dtype and not (autocast and torch.float64 not in (x.dtype, other.dtype)):
        raise error(
            TypeError,
            layer,
            f"{name!r} has another dtype than {other_name}",
            got=x.dtype,
            expected=other.dtype,
            hint="convert one of them with .to(dtype), or run float32 under torch.autocast",
        )


def check_device(layer: str, name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses a tensor on another device than another."""
    if x.device != other.device:
        raise error(
            ValueError,
            layer,
            f"{name!r} is on another device than {other_name}",
            got=x.device,
            expected=other.device,
            hint="move the layer and all inputs to one device with .to(device)",
        )


def check_mask(layer: str, name: str, mask: object, x: Tensor) -> None:
    """Refuses what is not a bool mask (B, L) for the features (B, L, d), on their device."""
    # Format shapes only when raising: formatting them on the hot path would specialise the compiled
    # graph on them.
    if isinstance(mask, Tensor):
        check_dense(layer, name, mask)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise error(
            TypeError,
            layer,
            f"{name} is not a bool tensor",
            got=mask.dtype if isinstance(mask, Tensor) else type(mask).__name__,
            expected=f"bool ({x.shape[0]}, {x.shape[1]}), True = valid",
            hint="mask.bool() converts ones and zeros, steps < lengths[:, None] lengths",
        )
    if mask.ndim != 2 or mask.shape[0] != x.shape[0] or mask.shape[1] != x.shape[1]:
        raise error(
            ValueError,
            layer,
            f"{name} does not have the batch and steps of its features",
            got=f"mask {tuple(mask.shape)} for features {tuple(x.shape)}",
            expected=f"bool ({x.shape[0]}, {x.shape[1]}), True = valid",
            hint="a mask is (batch, steps); give one per modality where their steps differ",
        )
    if mask.device != x.device:
        raise error(
            ValueError,
            layer,
            f"{name} is on another device than its features",
            got=mask.device,
            expected=x.device,
            hint="move the mask with .to(device)",
        )


def check_together(
    layer: str, name: str, x: Tensor, first_name: str, first: Tensor, *, aligned: bool
) -> None:
    """Refuses features (B, L, d) of another batch or, if aligned, other steps than the first's."""
    if x.shape[0] != first.shape[0]:
        raise error(
            ValueError,
            layer,
            f"{name!r} has {x.shape[0]} samples on axis 0, {first_name!r} has {first.shape[0]}",
            got=shapes({first_name: first, name: x}),
            expected="one batch size for every modality",
            hint="where a sample lacks a modality, give it a mask row of False",
        )
    if aligned and x.shape[1] != first.shape[1]:
        raise error(
            ValueError,
            layer,
            f"{name!r} has {x.shape[1]} steps on axis 1, {first_name!r} has {first.shape[1]}",
            got=shapes({first_name: first, name: x}),
            expected="one number of steps for every modality",
            hint="bring them to one clock (crossfuse.resample), pad and mask, or use "
            "CrossModalTransformer, which takes streams of their own lengths",
        )


def check_longest(layer: str, name: str, x: Tensor, longest: int | None) -> None:
    """Refuses features (B, L, d) with more steps than the layer has weights for."""
    if longest is not None and x.shape[1] > longest:
        raise error(
            ValueError,
            layer,
            f"{name!r} has {x.shape[1]} steps on axis 1, more than length={longest}",
            got=shapes({name: x}),
            expected=f"at most {longest} steps",
            hint="cut it into windows (crossfuse.windows), or build the layer for longer ones",
        )
