"""The checks of the equations: axes by letters, counts, heads and probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossfuse._errors import (
    DTYPES,
    as_int,
    check_dense,
    check_device,
    check_like,
    check_size,
    error,
)


def check_axes(function: str, **given: tuple[object, str]) -> None:
    """Refuses arguments that are not tensors with the axes that an equation gives them.

    Args:
        function: Name of the function, for the messages.
        given: By name, the argument and its axes, such as ``"BLd"``: a letter for each, the same
            letter for the same size everywhere. After a blank may follow what else it can be:
            ``bool`` rather than floating-point numbers, ``none`` if it may be left out.

    Raises:
        TypeError: If one is not a dense tensor of the right kind of dtype, or two differ in dtype.
        ValueError: If axes or devices do not fit.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return  # A graph serves other sizes, too.
    sizes: dict[str, int] = {}
    first: tuple[str, Tensor] | None = None
    for name, (x, axes) in given.items():
        letters, _, kind = axes.partition(" ")
        if x is None and "none" in kind:
            continue
        x = _read(f"functional.{function}", name, x, letters, "bool" in kind)
        for letter, size in zip(letters, x.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                _refuse_size(function, given, name, letter, sizes)
        if first is None:
            first = name, x
            continue
        check_device(f"functional.{function}", name, x, repr(first[0]), first[1])
        if x.dtype is not first[1].dtype and "bool" not in kind:
            check_like(f"functional.{function}", name, x, repr(first[0]), first[1])


def check_each(function: str, name: str, given: object) -> None:
    """Refuses what is not a sequence of at least one tensor."""
    if not isinstance(given, Sequence) or not given:
        raise error(
            TypeError,
            f"functional.{function}",
            f"{name} is not a sequence of tensors",
            got=type(given).__name__ if not isinstance(given, Sequence) else "an empty one",
            expected="a list of at least one tensor",
            hint=f"put a single one into a list: {name}=[x]",
        )


def check_count(function: str, count: object, x: Tensor) -> None:
    """Refuses what is not a number of steps: an int of at least 1, or integers, one per sample."""
    if isinstance(count, Tensor):
        kind = not count.is_floating_point() and count.dtype != torch.bool
        if kind and (count.ndim == 0 or tuple(count.shape) == tuple(x.shape[:1])):
            return
    elif (as_int(count) or 0) >= 1 or isinstance(count, torch.SymInt):
        return
    raise error(
        ValueError,
        f"functional.{function}",
        "count is not a number of steps",
        got=f"{tuple(count.shape)} of {count.dtype}" if isinstance(count, Tensor) else f"{count!r}",
        expected="an int of at least 1, or a tensor (batch,) of integers",
        hint="it counts the valid steps: mask.sum(dim=1).clamp(min=1)",
    )


def check_heads(function: str, heads: object, width: int) -> None:
    """Refuses a number of heads that does not divide the features."""
    count = check_size(f"functional.{function}", "heads", heads)
    if width % count:
        raise error(
            ValueError,
            f"functional.{function}",
            "the features cannot be divided among the heads",
            got=f"{width} features for {count} heads",
            expected="a divisor of the number of features",
            hint="heads=1 takes them all together",
        )


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


def _refuse_size(
    function: str,
    given: dict[str, tuple[object, str]],
    name: str,
    letter: str,
    sizes: dict[str, int],
) -> None:
    """Refuses a size that an axis of the same letter does not have."""
    x = given[name][0]
    found = tuple(x.shape) if isinstance(x, Tensor) else ()
    letters = given[name][1].partition(" ")[0]
    raise error(
        ValueError,
        f"functional.{function}",
        f"{name!r} does not fit the other arguments on axis {letter}",
        got=f"{name} {found} as ({', '.join(letters)})",
        expected=f"{letter} = {sizes[letter]}",
        hint="axes of one letter have one size; the docstring says what each is",
    )
