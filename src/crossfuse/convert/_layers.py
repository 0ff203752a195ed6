"""The tables of keys, theirs against ours, and what their weights need to become ours."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from crossfuse._errors import check_choice, check_size, error, quoted
from crossfuse.convert._reading import (
    check_axes,
    check_names,
    check_tensors,
    count_parts,
    in_order,
    own_copies,
    read,
)

# Ours against theirs, for the modality of index i among three; each has a weight and a bias.
_RCMA = {
    "temporal": "dense_coattn.key{number}_linear",
    "feature": "dense_coattn.value{number}_linear",
    "output": "linears.{i}.0",
}
# Their map of the joint of each modality, in arXiv v1 only.
_RCMA_JOINTS = ("query_linear_at", "query_linear_tv", "query_linear_va")
# Ours against theirs, for audio and for video.
_JCA = (
    {"temporal": "affine_a", "own": "W_a", "joint": "W_ca", "output": "W_ha"},
    {"temporal": "affine_v", "own": "W_v", "joint": "W_cv", "output": "W_hv"},
)
# Ours against theirs, for one block.
_TCN = {
    f"{ours}.{part}": f"{theirs}.{kind}"
    for ours, theirs in (("first", "conv1"), ("second", "conv2"))
    for part, kind in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
        ("bias", "bias"),
    )
}
_TCN_RESIDUAL = {f"residual.{kind}": f"downsample.{kind}" for kind in ("weight", "bias")}
_LEADER_FOLLOWER = {"query": "encoderQ", "key": "encoderK", "value": "encoderV"}

# Their keys that are left out, as patterns, and why.
_RCMA_DROPPED = {
    r"dcn_layers\.\d+\.dense_coattn\.query_linear\.(weight|bias)": (
        "their code computes it and does not use the result"
    )
}
_JCA_DROPPED = {
    r"encoder[12]\.(weight|bias)": (
        "a linear layer before the attention; load it into a separate torch.nn.Linear"
    )
}
_TCN_DROPPED = {
    r"network\.\d+\.net\.[04]\.(weight_g|weight_v|bias)": (
        "a second name of a tensor of conv1 or conv2"
    )
}


def dropped(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Lists the keys of a checkpoint that have no counterpart in a layer, with the reasons.

    Args:
        state_dict: The state dict of one of the authors' modules.

    Returns:
        The reason by key, in the order of ``state_dict``.

    Example:
        >>> dropped({"network.0.conv1.bias": torch.ones(2), "network.0.net.0.bias": torch.ones(2)})
        {'network.0.net.0.bias': 'a second name of a tensor of conv1 or conv2'}
    """
    check_tensors("convert.dropped", state_dict)
    return {
        key: reason
        for key in state_dict
        for pattern, reason in (_RCMA_DROPPED | _JCA_DROPPED | _TCN_DROPPED).items()
        if re.fullmatch(pattern, key)
    }


def rcma(
    state_dict: Mapping[str, Tensor],
    *,
    modalities: Sequence[str],
    joint: Literal["all", "others"],
) -> dict[str, Tensor]:
    """Converts the authors' RCMA, with any number of recursions and of any sizes.

    The weights that multiply the joint are reordered: the authors' joint is in cyclic order (the
    second modality attends to the third and the first) or in the order of ``modalities``, ours in
    alphabetical order, or in order of position for the names ``"0"``, ``"1"``, ``"2"`` of a
    sequence.

    Args:
        state_dict: Theirs, with keys that begin with ``dcn_layers``.
        modalities: Names of the three modalities in the authors' order: video, audio, text.
        joint: ``"others"`` for the code of arXiv v1, ``"all"`` for that of v2 and later (RJCMA).

    Returns:
        The state dict of ``RecursiveCrossModalAttention(dims, length, recursions, joint=joint,
        form="released")``, with ``dims`` by these names.

    Raises:
        TypeError: If ``state_dict`` is not a mapping of tensors.
        ValueError: If a key is unknown or missing, or the names or the joint do not fit.

    Example:
        >>> from torch.nn import Linear, ModuleDict, ModuleList, Sequential
        >>> from crossfuse import RecursiveCrossModalAttention
        >>> dims = {"video": 5, "audio": 3, "text": 2}
        >>> keys = {f"key{i}_linear": Linear(9, 9) for i in (1, 2, 3)}
        >>> values = {f"value{i}_linear": Linear(d, d) for i, d in enumerate(dims.values(), 1)}
        >>> outputs = ModuleList(Sequential(Linear(10, d)) for d in dims.values())
        >>> step = ModuleDict({"dense_coattn": ModuleDict(keys | values), "linears": outputs})
        >>> theirs = ModuleDict({"dcn_layers": ModuleList([step])}).state_dict()
        >>> fuse = RecursiveCrossModalAttention(dims, 9, 1, form="released", joint="all")
        >>> fuse.load_state_dict(rcma(theirs, modalities=list(dims), joint="all"))
        <All keys matched successfully>
    """
    layer = "convert.rcma"
    check_choice(layer, "joint", joint, ("others", "all"))
    names = check_names(layer, modalities, 3)
    table = {}
    for k in range(count_parts(layer, state_dict, r"dcn_layers\.(\d+)\.")):
        for i, name in enumerate(names):
            branch = {ours: key.format(number=i + 1, i=i) for ours, key in _RCMA.items()}
            if joint == "others":
                branch["joint"] = f"dense_coattn.{_RCMA_JOINTS[i]}"
            for ours, theirs in branch.items():
                table[f"recursions.{k}.{name}.{ours}"] = f"dcn_layers.{k}.{theirs}.weight"
                table[f"recursions.{k}.{name}.{ours}_bias"] = f"dcn_layers.{k}.{theirs}.bias"
    found = read(layer, state_dict, table, _RCMA_DROPPED if joint == "all" else {})
    for ours, x in found.items():
        check_axes(layer, table[ours], x, (None,) if ours.endswith("_bias") else (None, None))
    converted = {ours: x if ours.endswith("_bias") else x.mT for ours, x in found.items()}
    _check_rcma(layer, converted, names, joint)
    _reorder_joints(converted, names, joint)
    return own_copies(converted)


def jca(
    state_dict: Mapping[str, Tensor],
    *,
    modalities: Sequence[str],
    dims: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Converts the authors' joint cross-attention (the T-BIOM code), of any sizes.

    Args:
        state_dict: Theirs, with keys such as ``affine_a.weight``. The encoders in front of the
            attention are skipped.
        modalities: Names of the two modalities in the authors' order: audio, video.
        dims: Features of the two modalities, in the same order. Only needed if the names are not
            in alphabetical order, since the checkpoint does not hold these sizes.

    Returns:
        The state dict of ``JointCrossAttention(dims, length, width)``, with ``dims`` by these
        names.

    Raises:
        TypeError: If ``state_dict`` is not a mapping of tensors.
        ValueError: If a key is unknown or missing, or the names do not fit.

    Example:
        >>> from crossfuse import JointCrossAttention
        >>> sizes = {"affine": (9, 9), "W": (4, 9), "W_c": (4, 12), "W_h": (9, 4)}
        >>> keys = {"affine": "affine_{}", "W": "W_{}", "W_c": "W_c{}", "W_h": "W_h{}"}
        >>> theirs = {
        ...     f"{keys[kind].format(letter)}.weight": torch.randn(size)
        ...     for kind, size in sizes.items()
        ...     for letter in "av"
        ... }
        >>> fuse = JointCrossAttention({"audio": 6, "video": 6}, length=9, width=4)
        >>> fuse.load_state_dict(jca(theirs, modalities=["audio", "video"]))
        <All keys matched successfully>
    """
    layer = "convert.jca"
    names = check_names(layer, modalities, 2)
    table = {
        f"recursions.0.{name}.{ours}": f"{theirs}.weight"
        for name, branch in zip(names, _JCA, strict=True)
        for ours, theirs in branch.items()
    }
    found = read(layer, state_dict, table, _JCA_DROPPED)
    rows_of_joint = found[f"recursions.0.{names[0]}.joint"].shape[-1:]
    for ours, x in found.items():
        check_axes(layer, table[ours], x, (None, None))
        if ours.endswith(".joint"):
            check_axes(layer, table[ours], x.mT, tuple(rows_of_joint))
    # They mix the steps of the joint, not of the modality: their weight is T, not its transpose.
    converted = {ours: x if ours.endswith("temporal") else x.mT for ours, x in found.items()}
    rows = _joint_rows(layer, names, dims, converted[f"recursions.0.{names[0]}.joint"].shape[0])
    for key, value in converted.items():
        if key.endswith(".joint"):
            converted[key] = value[rows]
    return own_copies(converted)


def tcn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the temporal convolutional network in the authors' code, of any depth and sizes.

    Args:
        state_dict: Theirs, with keys that begin with ``network`` and the older weight norm. The
            second names of the convolutions are skipped.

    Returns:
        The state dict of ``TemporalConvNet(dim, widths, kernel_size=kernel_size)``.

    Raises:
        TypeError: If ``state_dict`` is not a mapping of tensors.
        ValueError: If a key is unknown or missing.

    Example:
        >>> from crossfuse import TemporalConvNet
        >>> conv = {"weight_g": (4, 1, 1), "weight_v": (4, 4, 3), "bias": (4,)}
        >>> theirs = {
        ...     f"network.0.conv{n}.{part}": torch.randn(size)
        ...     for n in (1, 2)
        ...     for part, size in conv.items()
        ... }
        >>> TemporalConvNet(4, [4], kernel_size=3).load_state_dict(tcn(theirs))
        <All keys matched successfully>
    """
    layer = "convert.tcn"
    table = {}
    for k in range(count_parts(layer, state_dict, r"network\.(\d+)\.")):
        weight = state_dict.get(f"network.{k}.conv1.weight_v")
        if weight is not None:
            check_axes(layer, f"network.{k}.conv1.weight_v", weight, (None, None, None))
        same_width = weight is not None and weight.shape[0] == weight.shape[1]
        for ours, theirs in (_TCN if same_width else _TCN | _TCN_RESIDUAL).items():
            table[f"blocks.{k}.{ours}"] = f"network.{k}.{theirs}"
    found = read(layer, state_dict, table, _TCN_DROPPED)
    for ours, x in found.items():
        axes = (None,) if ours.endswith("bias") else (None, None, None)
        check_axes(layer, table[ours], x, axes)
    return own_copies(found)


def leader_follower(
    state_dict: Mapping[str, Tensor], *, modalities: Sequence[str]
) -> dict[str, Tensor]:
    """Converts the authors' leader-follower attention, with any number of modalities and sizes.

    Behind the leader's features, the outputs of the layer hold the modalities in alphabetical order
    of their names; reorder the weights of a layer that follows if the authors' order is another.

    Args:
        state_dict: Theirs, with keys such as ``encoderQ.video.weight``.
        modalities: Names of the modalities as in the keys, in the authors' order: that of the
            rows of their layer norm.

    Returns:
        The state dict of ``LeaderFollowerAttention(dims, width, leader=leader)``, with ``dims`` by
        these names.

    Raises:
        TypeError: If ``state_dict`` is not a mapping of tensors.
        ValueError: If a key is unknown or missing, or the names do not fit.

    Example:
        >>> from crossfuse import LeaderFollowerAttention
        >>> dims = {"video": 5, "audio": 3}
        >>> theirs = {"ln.weight": torch.ones(2, 4), "ln.bias": torch.zeros(2, 4)}
        >>> for name, dim in dims.items():
        ...     for letter in "QKV":
        ...         theirs[f"encoder{letter}.{name}.weight"] = torch.randn(4, dim)
        ...         theirs[f"encoder{letter}.{name}.bias"] = torch.randn(4)
        >>> fuse = LeaderFollowerAttention(dims, 4, leader="video")
        >>> fuse.load_state_dict(leader_follower(theirs, modalities=list(dims)))
        <All keys matched successfully>
    """
    layer = "convert.leader_follower"
    names = check_names(layer, modalities, None)
    table = {
        f"{ours}.{name}.{kind}": f"{theirs}.{name}.{kind}"
        for ours, theirs in _LEADER_FOLLOWER.items()
        for name in names
        for kind in ("weight", "bias")
    }
    norm = {f"norm.{kind}": f"ln.{kind}" for kind in ("weight", "bias")}
    converted = read(layer, state_dict, table | norm, {})
    for ours, theirs in table.items():
        axes = (None,) if ours.endswith("bias") else (None, None)
        check_axes(layer, theirs, converted[ours], axes)
    rows = [names.index(name) for name in in_order(names)]
    for key in norm:
        check_axes(layer, norm[key], converted[key], (len(names), None))
        converted[key] = converted[key][rows]
    return own_copies(converted)


def _reorder_joints(converted: dict[str, Tensor], names: Sequence[str], joint: str) -> None:
    """Brings the weights that meet a joint from the authors' order into ours."""
    ours = in_order(names)
    for key, value in converted.items():
        _, k, name, part = key.split(".")
        if part not in ("joint", "joint_bias", "output"):
            continue
        i = names.index(name)
        cyclic = [names[(i + 1) % 3], names[(i + 2) % 3]]
        members = cyclic if joint == "others" else list(names)
        theirs = [(other, n) for other in members for n in range(_dim(converted, k, other))]
        rows = sorted(range(len(theirs)), key=lambda row: ours.index(theirs[row][0]))
        converted[key] = value[rows][:, rows] if part == "joint" else value[rows]


def _dim(converted: Mapping[str, Tensor], k: str, name: str) -> int:
    """Reads the features of a modality off the weight that mixes them."""
    return converted[f"recursions.{k}.{name}.feature"].shape[0]


def _check_rcma(
    layer: str, converted: Mapping[str, Tensor], names: Sequence[str], joint: str
) -> None:
    """Refuses weights whose rows do not fit the joint."""
    for key, value in converted.items():
        _, k, name, part = key.split(".")
        if part in ("joint", "joint_bias", "output"):
            others = [other for other in names if joint == "all" or other != name]
            check_axes(layer, key, value, (sum(_dim(converted, k, o) for o in others),))


def _joint_rows(
    layer: str, names: Sequence[str], dims: Sequence[int] | None, total: int
) -> list[int]:
    """Returns the rows of a joint of all in our order, as places in the authors'."""
    ours = in_order(names)
    if ours == list(names):
        return list(range(total))
    given: object = dims
    each = given if isinstance(given, Sequence) and not isinstance(given, str | bytes) else []
    sizes = [check_size(layer, f"dims[{k}]", dim) for k, dim in enumerate(each)]
    if len(sizes) != len(names) or sum(sizes) != total:
        raise error(
            ValueError,
            layer,
            "dims does not give the features of each modality",
            got=f"dims={dims!r} for {quoted(names)}",
            expected=f"{len(names)} sizes that add up to {total}",
            hint="names in alphabetical order need none, such as 'audio' and 'video'",
        )
    starts = {name: sum(sizes[:k]) for k, name in enumerate(names)}
    widths = dict(zip(names, sizes, strict=True))
    return [starts[name] + n for name in ours for n in range(widths[name])]
