"""From samples to a batch.

Shapes: B samples, L_i steps of stream i.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor
from torch.utils.data import default_collate

from crossfuse._errors import check_dense, check_device, check_flag, check_memory, check_size, error
from crossfuse._modalities import Dims, Structure

Named: TypeAlias = Mapping[str, Tensor | None]
Ordered: TypeAlias = Sequence[Tensor | None]
_Columns: TypeAlias = Mapping[str, Sequence[Any]]


@overload
def collate(
    samples: Sequence[Named], *, dims: Dims | None = None, aligned: bool = True
) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]: ...
@overload
def collate(
    samples: Sequence[Ordered], *, dims: Dims | None = None, aligned: bool = True
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]: ...
@overload
def collate(
    samples: Sequence[tuple[Any, ...]], *, dims: Dims | None = None, aligned: bool = True
) -> tuple[Any, ...]: ...
def collate(
    samples: Sequence[Any], *, dims: Dims | None = None, aligned: bool = True
) -> tuple[Any, ...]:
    """Pads the streams of several recordings to a batch, with masks.

    It is made for ``DataLoader(dataset, collate_fn=collate)``; options go through
    ``functools.partial``. A sample is a mapping or a list of streams, or a tuple
    ``(streams, label, ...)`` whose further elements are collated by torch's ``default_collate``.
    Labels for each step vary in length as streams do: pass them as one more stream.

    Streams are padded with zeros on the right, so a layer that gets the masks computes the same for
    a recording in a batch as for the recording alone.

    Args:
        samples: One mapping or list for each recording, of tensors (L_i, ...) with the same
            features in every sample; ``None``, an absent key or a stream without steps is missing.
            Or tuples of such a mapping or list and labels.
        dims: Features d_i of each stream (L_i, d_i). With them the batch has every stream: one that
            is missing in all samples is zeros with a mask of False rather than ``None``.
        aligned: Whether the streams of a sample have the same number of steps. If so, all streams
            of the batch are padded to one length, otherwise each to its own longest.

    Returns:
        The streams (B, L_i, ...) and their masks, bool (B, L_i), **True = valid** (the opposite of
        the ``key_padding_mask`` of :class:`torch.nn.MultiheadAttention`), in two dicts or two
        tuples, depending on whether the samples are mappings or lists; then the labels, if there
        are any. A stream that is missing in all samples is ``None`` in both, unless there are
        ``dims``.

    Raises:
        TypeError: If a sample, a stream or a label is of a wrong type.
        ValueError: If there are no samples, or streams do not fit together.

    Example:
        >>> first = {"face": torch.randn(50, 4), "voice": torch.randn(50, 3)}
        >>> second = {"face": torch.randn(30, 4), "voice": None}
        >>> streams, mask, label = collate([(first, 0), (second, 1)])
        >>> streams["voice"].shape, mask["voice"].sum(dim=1), label
        (torch.Size([2, 50, 3]), tensor([50,  0]), tensor([0, 1]))
    """
    check_flag("collate", "aligned", aligned)
    given: object = samples
    if not isinstance(given, Sequence) or not given:
        raise error(
            ValueError,
            "collate",
            "there are no samples",
            got=type(given).__name__ if not isinstance(given, Sequence) else "none",
            expected="a list of at least one sample",
            hint="DataLoader(dataset, collate_fn=collate) gives one",
        )
    labelled = _is_labelled(samples[0])
    if any(_is_labelled(sample) != labelled for sample in samples):
        raise error(
            TypeError,
            "collate",
            "some samples have labels and some have none",
            got=", ".join(dict.fromkeys(type(sample).__name__ for sample in samples)),
            expected="(streams, label, ...) for every sample, or streams for every sample",
            hint="streams are a dict or a list; labels follow them in a tuple",
        )
    rows = [sample[0] for sample in samples] if labelled else samples
    structure = _structure(rows, dims)
    columns = _columns(structure, rows)
    widths = dict.fromkeys(columns) if dims is None else _widths(structure, dims)
    _check_features(columns, widths)
    lengths = _lengths(columns, aligned)
    streams, masks = zip(
        *(_pad(columns, name, lengths[name], widths[name]) for name in columns), strict=True
    )
    labels = _labels([sample[1:] for sample in samples]) if labelled else ()
    if structure.named:
        named = [dict(zip(columns, values, strict=True)) for values in (streams, masks)]
        return (*named, *labels)
    return (streams, masks, *labels)


def _is_labelled(sample: object) -> bool:
    """Finds out whether a sample is (streams, label, ...) rather than streams."""
    return isinstance(sample, tuple) and bool(sample) and isinstance(sample[0], Mapping | Sequence)


def _structure(rows: Sequence[Any], dims: Dims | None) -> Structure:
    """Knows all streams: those of ``dims``, or those that any sample has."""
    if dims is not None:
        return Structure("collate", "dims", dims)
    if all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row.keys())  # noqa: SIM118 - TensorDict
        return Structure("collate", "samples", names)
    return Structure("collate", "samples", rows[0])


def _widths(structure: Structure, dims: Dims) -> dict[str, int]:
    """Reads the features of each stream."""
    given = structure.ordered("dims", dims)
    return {name: check_size("collate", f"dims[{name!r}]", dim) for name, dim in given.items()}


def _columns(structure: Structure, rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Turns one container for each sample into one list for each stream."""
    for k, row in enumerate(rows):
        if structure.named and not isinstance(row, Mapping):
            raise error(
                TypeError,
                "collate",
                "the streams have names, but those of a sample have none",
                got=f"sample {k}: {type(row).__name__}",
                expected="a mapping by name for every sample",
                hint="return a dict of tensors from the data set",
            )
    entries = [structure.ordered(f"sample {k}", row) for k, row in enumerate(rows)]
    return {name: [entry[name] for entry in entries] for name in structure.names}


def _check_features(columns: _Columns, widths: Mapping[str, int | None]) -> None:
    """Refuses streams that are not tensors (L, ...), or differ in features or dtype."""
    for name, column in columns.items():
        first = next((x for x in column if x is not None), None)
        for k, x in enumerate(column):
            if x is None or first is None:
                continue
            if not isinstance(x, Tensor) or x.ndim < 1:
                raise error(
                    TypeError,
                    "collate",
                    f"{name!r} of sample {k} is not a tensor with steps",
                    got=f"{tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__,
                    expected=f"{name} (steps, features)",
                    hint="convert arrays with torch.as_tensor; a label goes into a tuple, "
                    "(streams, label)",
                )
            check_dense("collate", f"{name} of sample {k}", x)
            check_device("collate", f"{name} of sample {k}", x, "the first sample", first)
            width = widths[name]
            features = tuple(first.shape[1:]) if width is None else (width,)
            if x.shape[1:] != features or x.dtype != first.dtype:
                raise error(
                    ValueError,
                    "collate",
                    f"{name!r} of sample {k} does not fit the other samples",
                    got=f"{tuple(x.shape)} of {x.dtype}",
                    expected=f"(steps, {', '.join(map(str, features))}) of {first.dtype}",
                    hint="a stream has one number of features and one dtype in all samples",
                )


def _lengths(columns: _Columns, aligned: bool) -> dict[str, int]:
    """Counts the steps of each padded stream, at least 1."""
    steps = {
        name: [0 if x is None else x.shape[0] for x in column] for name, column in columns.items()
    }
    longest = {name: max(1, *counts) for name, counts in steps.items()}
    if not aligned:
        return longest
    for k, counts in enumerate(zip(*steps.values(), strict=True)):
        if len({count for count in counts if count}) > 1:
            named = dict(zip(steps, counts, strict=True))
            raise error(
                ValueError,
                "collate",
                f"the streams of sample {k} differ in steps",
                got=", ".join(f"{name} {count}" for name, count in named.items()),
                expected="one number of steps for all streams of a sample",
                hint="collate with aligned=False, then bring them onto one clock with resample",
            )
    return dict.fromkeys(longest, max(longest.values()))


def _pad(
    columns: _Columns, name: str, length: int, width: int | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Pads one stream of all samples; ``None`` if it is missing in all and its width unknown."""
    column = columns[name]
    own = [x for x in column if x is not None]
    if own:
        like, features = own[0], own[0].shape[1:]
    elif width is not None:
        present = [x for other in columns.values() for x in other if x is not None]
        like, features = present[0] if present else torch.empty(0), torch.Size([width])
    else:
        return None, None
    count = len(column) * length * features.numel()
    check_memory("collate", f"{name!r}", count, like.itemsize, like.device)
    padded = like.new_zeros(len(column), length, *features)
    mask = torch.zeros(len(column), length, dtype=torch.bool, device=like.device)
    for k, x in enumerate(column):
        if x is not None:
            padded[k, : x.shape[0]] = x
            mask[k, : x.shape[0]] = True
    return padded, mask


def _labels(labels: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Collates what follows the streams, element by element."""
    if len({len(label) for label in labels}) > 1:
        raise error(
            ValueError,
            "collate",
            "the samples differ in their number of labels",
            got=", ".join(str(len(label)) for label in labels),
            expected="one number for all samples",
            hint="a sample is (streams, label, ...), with the same labels in each",
        )
    for k, values in enumerate(zip(*labels, strict=True)):
        found = [tuple(value.shape) for value in values if isinstance(value, Tensor)]
        if len(set(found)) > 1:
            raise error(
                ValueError,
                "collate",
                f"label {k} differs in shape between samples",
                got=", ".join(map(str, found)),
                expected="one shape for all samples",
                hint="a label for each step is a stream: put it among the streams",
            )
    return tuple(_collated(k, values) for k, values in enumerate(zip(*labels, strict=True)))


def _collated(k: int, labels: Sequence[Any]) -> Any:  # noqa: ANN401 - the caller's labels
    """Collates one label of all samples."""
    try:
        return default_collate(list(labels))
    except (TypeError, ValueError, RuntimeError, KeyError) as reason:
        raise error(
            TypeError,
            "collate",
            f"label {k} cannot be collated",
            got=", ".join(dict.fromkeys(type(label).__name__ for label in labels)),
            expected="tensors, arrays, numbers or strings, of one kind and shape in all samples",
            hint="convert it in the data set; a label for each step goes among the streams",
        ) from reason
