"""The checks of the equations: axes by letters, counts, heads and probabilities."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from inspect import signature, unwrap
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from crossfuse._errors import (
    DTYPES,
    as_int,
    check_dense,
    check_device,
    check_like,
    check_positive,
    check_probability,
    check_size,
    error,
)

F = TypeVar("F", bound=Callable[..., Any])


def checked(also: Callable[..., None] | None = None, **axes: str) -> Callable[[F], F]:
    """Makes an equation refuse arguments that do not fit it, before it computes.

    Args:
        also: Another check, which takes the equation's arguments.
        axes: By argument, its axes, such as ``"BLd"``: a letter for each, the same letter for the
            same size everywhere, a dot for any size. ``*`` before them says that there are several
            such tensors. After a blank follows what else it can be: ``bool`` rather than
            floating-point numbers, ``none`` if it may be left out.
    """

    def decorate(function: F) -> F:
        name, parameters = f"functional.{function.__name__}", signature(function)

        @wraps(function)
        def call(*given: Any, **options: Any) -> Any:  # noqa: ANN401 - those of the equation
            # A graph serves other sizes, too.
            if not (torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None):
                try:
                    arguments = parameters.bind(*given, **options).arguments
                except TypeError:
                    return function(*given, **options)  # Python says what is wrong with the call
                x = _check_axes(name, arguments, axes)
                for option in arguments.keys() & _OPTIONS.keys():
                    _OPTIONS[option](name, arguments[option], x)
                if also is not None:
                    also(**arguments)
            return function(*given, **options)

        return cast(F, call)

    return decorate


def unchecked(function: F) -> F:
    """Returns an equation without its checks."""
    return cast(F, unwrap(function))


def _check_axes(function: str, arguments: Mapping[str, object], axes: Mapping[str, str]) -> Tensor:
    """Refuses tensors without the axes of an equation; returns the first of them."""
    sizes: dict[str, int] = {}
    read: list[tuple[str, Tensor]] = []
    for name, x, letters, kind in _tensors(function, arguments, axes):
        x = _read(function, name, x, letters, "bool" in kind)
        for letter, size in zip(letters, x.shape, strict=True):
            if letter != "." and sizes.setdefault(letter, size) != size:
                _refuse_size(function, name, x, letters, letter, sizes[letter])
        for first, other in read[:1]:
            check_device(function, name, x, repr(first), other)
            if x.dtype is not other.dtype and "bool" not in kind:
                check_like(function, name, x, repr(first), other)
        read.append((name, x))
    return read[0][1]


def _tensors(
    function: str, arguments: Mapping[str, object], axes: Mapping[str, str]
) -> Iterator[tuple[str, object, str, str]]:
    """Yields name, tensor, letters and kind of each tensor among the arguments."""
    for name, text in axes.items():
        x = arguments.get(name)
        letters, _, kind = text.partition(" ")
        if x is None and "none" in kind:
            continue
        if not letters.startswith("*"):
            yield name, x, letters, kind
            continue
        for k, each in enumerate(_read_each(function, name, x)):
            yield f"{name}[{k}]", each, letters[1:], kind


def _read_each(function: str, name: str, given: object) -> Sequence[Any]:
    """Reads a sequence of at least one tensor."""
    if not isinstance(given, Sequence) or not given:
        raise error(
            TypeError,
            function,
            f"{name} is not a sequence of tensors",
            got=type(given).__name__ if not isinstance(given, Sequence) else "an empty one",
            expected="a list of at least one tensor",
            hint=f"put a single one into a list: {name}=[x]",
        )
    return given


def _read(function: str, name: str, x: object, letters: str, boolean: bool) -> Tensor:
    """Reads a dense tensor of the right kind of dtype and number of axes."""
    if isinstance(x, Tensor):
        check_dense(function, name, x)
    expected = f"{name} ({', '.join(letters)})"
    if not isinstance(x, Tensor) or not (x.dtype == torch.bool if boolean else x.dtype in DTYPES):
        raise error(
            TypeError,
            function,
            f"{name!r} is not a tensor of {'bools' if boolean else 'floating-point numbers'}",
            got=x.dtype if isinstance(x, Tensor) else type(x).__name__,
            expected=expected,
            hint="the docstring of the function says what each argument is",
        )
    if x.ndim != len(letters):
        raise error(
            ValueError,
            function,
            f"{name!r} has {x.ndim} axes, not {len(letters)}",
            got=f"{name} {tuple(x.shape)}",
            expected=expected,
            hint="the equations are batch first; x[None] adds a batch axis",
        )
    return x


def _refuse_size(function: str, name: str, x: Tensor, letters: str, letter: str, size: int) -> None:
    """Refuses a size that an axis of the same letter does not have."""
    raise error(
        ValueError,
        function,
        f"{name!r} does not fit the other arguments on axis {letter}",
        got=f"{name} {tuple(x.shape)} as ({', '.join(letters)})",
        expected=f"{letter} = {size}",
        hint="axes of one letter have one size; the docstring says what each is",
    )


def check_blocks(x: Tensor, others: Sequence[Tensor], temporals: Sequence[Tensor]) -> None:
    """Refuses other than one temporal block (L, L_j) for each modality (B, L_j, d_j) of a joint."""
    function = "functional.rcma_unaligned_correlation"
    if len(others) != len(temporals):
        raise error(
            ValueError,
            function,
            "temporals has not one block for each of the others",
            got=f"{len(temporals)} blocks for {len(others)} modalities",
            expected=f"{len(others)} blocks (L, L_j)",
            hint="torch.split(temporal, lengths, dim=1) cuts T into blocks",
        )
    for k, (other, temporal) in enumerate(zip(others, temporals, strict=True)):
        if temporal.shape[1] != other.shape[1]:
            _refuse_size(function, f"temporals[{k}]", temporal, "LM", "M", other.shape[1])


def check_stable_heads(query: Tensor, correlation: Tensor) -> None:
    """Refuses heads that do not make up the features."""
    heads, width = correlation.shape[1], correlation.shape[2]
    if heads * width != query.shape[-1]:
        raise error(
            ValueError,
            "functional.rcma_stable_attention_map",
            "the heads of 'correlation' do not make up the features of 'query'",
            got=f"{heads} heads of {width} for {query.shape[-1]} features",
            expected="heads times their features",
            hint="rcma_stable_correlation(key, value, count, heads) makes such heads",
        )


def _check_count(function: str, count: object, x: Tensor) -> None:
    """Refuses what is not a number of steps: an int of at least 1, or integers, one per sample."""
    if isinstance(count, Tensor):
        kind = not count.is_floating_point() and count.dtype != torch.bool
        if kind and (count.ndim == 0 or tuple(count.shape) == tuple(x.shape[:1])):
            return
    elif (as_int(count) or 0) >= 1 or isinstance(count, torch.SymInt):
        return
    raise error(
        ValueError,
        function,
        "count is not a number of steps",
        got=f"{tuple(count.shape)} of {count.dtype}" if isinstance(count, Tensor) else f"{count!r}",
        expected="an int of at least 1, or a tensor (batch,) of integers",
        hint="it counts the valid steps: mask.sum(dim=1).clamp(min=1)",
    )


def _check_heads(function: str, heads: object, x: Tensor) -> None:
    """Refuses a number of heads that does not divide the features."""
    width = x.shape[-1]
    count = check_size(function, "heads", heads)
    if width % count:
        raise error(
            ValueError,
            function,
            "the features cannot be divided among the heads",
            got=f"{width} features for {count} heads",
            expected="a divisor of the number of features",
            hint="heads=1 takes them all together",
        )


_OPTIONS: dict[str, Callable[[str, Any, Tensor], object]] = {
    "count": _check_count,
    "dropout": lambda function, value, _: check_probability(function, "dropout", value),
    "heads": _check_heads,
    "longest": lambda function, value, _: value is None or check_size(function, "longest", value),
    "temperature": lambda function, value, _: check_positive(
        function, "temperature", value, least=1e-30
    ),
}
