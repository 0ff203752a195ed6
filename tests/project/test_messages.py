"""Every way to call the library wrongly, and what it answers.

Each row is a call that a user might make, the exception it deserves and the first line of the
message. All messages have one grammar. Every `raise` in the package must be reached by a row here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import crossfuse
from crossfuse import (
    ConcatFusion,
    ConcordanceLoss,
    CrossAttention,
    CrossModalTransformer,
    DynamicGate,
    JointCrossAttention,
    LeaderFollowerAttention,
    MissingTokens,
    ModalityDropout,
    PerModality,
    RecursiveCrossModalAttention,
    TemporalConvNet,
    convert,
    functional,
    windows,
)
from tests.support.reference import Structure

PACKAGE = Path(crossfuse.__file__).parent
FACE, VOICE = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
BOTH = {"face": FACE, "voice": VOICE}
DIMS = {"face": 3, "voice": 5}
ALL = torch.ones(2, 4, dtype=torch.bool)
RCMA = RecursiveCrossModalAttention(DIMS, 4)
UNNAMED = RecursiveCrossModalAttention([3, 5], 4)
JCA = JointCrossAttention(DIMS, 4)
TCN = TemporalConvNet(3, [4])
GATE = DynamicGate(3)
TCN_CHECKPOINT = {
    f"network.0.conv{n}.{part}": torch.ones(size)
    for n in (1, 2)
    for part, size in (("weight_g", (4, 1, 1)), ("weight_v", (4, 4, 3)), ("bias", (4,)))
}
JCA_CHECKPOINT = {
    f"{name}.weight": torch.ones(size)
    for letter in "av"
    for name, size in (
        (f"affine_{letter}", (4, 4)),
        (f"W_{letter}", (2, 4)),
        (f"W_c{letter}", (2, 8)),
        (f"W_h{letter}", (4, 2)),
    )
}
PER = PerModality({"face": nn.Linear(3, 2), "voice": nn.Linear(5, 2)})


class Dictionary(nn.Module):
    """Returns no tensor."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": x}


class Wrong(NamedTuple):
    """A wrong call and the answer: exception and the first line of its message (a pattern)."""

    call: Callable[[], object]
    kind: type[Exception]
    says: str


def build(*arguments: Structure, **options: Structure) -> Callable[[], object]:
    """Builds a recursive layer, in ways that type checkers would refuse."""
    return lambda: RecursiveCrossModalAttention(*arguments, **options)


WRONG_CALLS = {
    # construction
    "too few modalities for the others' joint": Wrong(
        build({"face": 3}, joint="others"),
        ValueError,
        "RecursiveCrossModalAttention: too few modalities",
    ),
    "no modality": Wrong(
        lambda: JointCrossAttention({}, 4), ValueError, "JointCrossAttention: too few modalities"
    ),
    "dims that is one int": Wrong(
        build(3, 4), TypeError, "RecursiveCrossModalAttention: dims must be a mapping or a sequence"
    ),
    "dims that is a str": Wrong(
        build("35", 4),
        TypeError,
        "RecursiveCrossModalAttention: dims must be a mapping or a sequence",
    ),
    "a dim of zero": Wrong(
        build({"face": 3, "voice": 0}, 4),
        ValueError,
        r"RecursiveCrossModalAttention: dims\['voice'\] must be a positive int",
    ),
    "a dim that is a float": Wrong(
        build([3, 5.0], 4),
        ValueError,
        r"RecursiveCrossModalAttention: dims\['1'\] must be a positive int",
    ),
    "an empty name": Wrong(
        build({"": 3, "voice": 5}, 4), ValueError, ".*'' cannot name a modality"
    ),
    "a name with a dot": Wrong(
        build({"face.left": 3, "voice": 5}, 4), ValueError, ".*'face.left' cannot name a modality"
    ),
    "a name of nn.ModuleDict's own": Wrong(
        build({"keys": 3, "voice": 5}, 4), ValueError, ".*'keys' cannot name a modality"
    ),
    "a name that is an int": Wrong(
        build({0: 3, 1: 5}, 4), ValueError, ".*0 cannot name a modality"
    ),
    "a length of zero": Wrong(build(DIMS, 0), ValueError, ".*length must be a positive int"),
    "a length that is a bool": Wrong(build(DIMS, True), ValueError, ".*length must be a positive"),
    "a length that is a str": Wrong(build(DIMS, "300"), ValueError, ".*length must be a positive"),
    "a length for an unknown modality": Wrong(
        build(DIMS, {"face": 4, "words": 4}),
        ValueError,
        ".*length has unknown names: 'words'",
    ),
    "too few lengths": Wrong(
        build([3, 5], [4]), ValueError, ".*length has 1 elements for 2 modalities"
    ),
    "no length for one modality": Wrong(
        build(DIMS, {"face": 4}), ValueError, r".*length\['voice'\] must be a positive int"
    ),
    "one of the lengths zero": Wrong(
        build(DIMS, {"face": 4, "voice": 0}), ValueError, r".*length\['voice'\] must be a positive"
    ),
    "no recursions": Wrong(build(DIMS, 4, 0), ValueError, ".*recursions must be a positive int"),
    "dropout above one": Wrong(
        build(DIMS, 4, dropout=50), ValueError, ".*dropout must be a probability"
    ),
    "dropout that is no number": Wrong(
        build(DIMS, 4, dropout="0.5"), ValueError, ".*dropout must be a probability"
    ),
    "dropout that is NaN": Wrong(
        build(DIMS, 4, dropout=float("nan")), ValueError, ".*dropout must be a probability"
    ),
    "an unknown joint": Wrong(build(DIMS, 4, joint="both"), ValueError, ".*unknown joint"),
    "an unknown form": Wrong(build(DIMS, form="v2"), ValueError, ".*unknown form"),
    "a form of another layer": Wrong(
        lambda: JointCrossAttention(DIMS, 4, form="released"),  # type: ignore[arg-type]  # wrong
        ValueError,
        "JointCrossAttention: unknown form",
    ),
    "the released form without a length": Wrong(
        build(DIMS, form="released"), ValueError, ".*form='released' needs one length"
    ),
    "the released form with a length for each": Wrong(
        build(DIMS, {"face": 4, "voice": 5}, form="released"),
        ValueError,
        ".*form='released' needs one length",
    ),
    "a length of another kind": Wrong(
        lambda: RCMA.lengthened({"face": 8, "voice": 8}),
        ValueError,
        ".*length is not of the kind of this layer's",
    ),
    "an unknown start": Wrong(
        build(DIMS, 4, temporal_init="zeros"), ValueError, ".*unknown temporal_init"
    ),
    "a flag that is a str": Wrong(build(DIMS, gate="False"), TypeError, ".*gate must be a bool"),
    "a size that is bytes": Wrong(
        build(b"\x03\x05"), TypeError, ".*dims must be a mapping or a sequence"
    ),
    "a dtype of integers": Wrong(
        build(DIMS, dtype=torch.int32), TypeError, ".*dtype must be a floating-point dtype"
    ),
    "an unknown device": Wrong(build(DIMS, device="gpu"), ValueError, ".*unknown device"),
    "a length that does not fit into memory": Wrong(
        build(DIMS, 10**9), ValueError, ".*the parameters would not fit into memory"
    ),
    "a length beyond all counters": Wrong(
        build(DIMS, 10**30), ValueError, ".*length must be a positive int"
    ),
    "a keyword as a name": Wrong(
        build({"class": 3, "voice": 5}), ValueError, ".*'class' cannot name a modality"
    ),
    "a width of zero": Wrong(
        lambda: JointCrossAttention(DIMS, 4, 0),
        ValueError,
        "JointCrossAttention: width must be a positive int",
    ),
    "a negative length": Wrong(
        lambda: JointCrossAttention(DIMS, -4), ValueError, ".*length must be a positive int"
    ),
    "negative dropout": Wrong(
        lambda: JointCrossAttention(DIMS, 4, dropout=-0.1), ValueError, ".*dropout must be a"
    ),
    # modalities
    "one tensor": Wrong(
        lambda: RCMA(FACE), TypeError, ".*modalities must be a mapping or a sequence"
    ),
    "None": Wrong(lambda: RCMA(None), TypeError, ".*modalities must be a mapping or a sequence"),
    "a set": Wrong(lambda: RCMA({1, 2}), TypeError, ".*modalities must be a mapping or a sequence"),
    "a generator": Wrong(
        lambda: RCMA(x for x in BOTH.values()), TypeError, ".*modalities must be a mapping or a"
    ),
    "names for a layer without": Wrong(
        lambda: UNNAMED(BOTH),
        TypeError,
        ".*modalities is given by name, but the modalities have none",
    ),
    "a sequence for a layer with names": Wrong(
        lambda: RCMA([FACE, VOICE]),
        TypeError,
        ".*modalities is given in order, but the modalities have names",
    ),
    "a nested tensor": Wrong(
        lambda: UNNAMED([torch.nested.nested_tensor([FACE[0]], layout=torch.jagged), VOICE]),
        TypeError,
        ".*'0' is not a dense tensor",
    ),
    "a sparse tensor": Wrong(
        lambda: UNNAMED([FACE.to_sparse(), VOICE]), TypeError, ".*'0' is not a dense tensor"
    ),
    "an unknown name": Wrong(
        lambda: RCMA({**BOTH, "words": FACE}),
        ValueError,
        ".*modalities has unknown names: 'words'",
    ),
    "too short a sequence": Wrong(
        lambda: UNNAMED([FACE]), ValueError, ".*modalities has 1 elements for 2 modalities"
    ),
    "nothing but None": Wrong(
        lambda: RCMA({"face": None}), ValueError, ".*every modality is missing"
    ),
    "an empty dict": Wrong(lambda: JCA({}), ValueError, ".*every modality is missing"),
    "a nested list of numbers": Wrong(
        lambda: UNNAMED([[[1.0]], VOICE]), TypeError, ".*'0' is not a tensor"
    ),
    "a numpy array": Wrong(
        lambda: RCMA({"face": FACE.numpy(), "voice": VOICE}), TypeError, ".*'face' is not a tensor"
    ),
    "no batch axis": Wrong(
        lambda: RCMA({"face": FACE[0], "voice": VOICE}), ValueError, ".*'face' has 2 axes, not 3"
    ),
    "an image": Wrong(
        lambda: RCMA({"face": FACE[..., None], "voice": VOICE}),
        ValueError,
        ".*'face' has 4 axes, not 3",
    ),
    "features before steps": Wrong(
        lambda: RCMA({"face": FACE.mT, "voice": VOICE}),
        ValueError,
        ".*'face' has 4 features on axis 2, not 3",
    ),
    "swapped modalities": Wrong(
        lambda: UNNAMED([VOICE, FACE]), ValueError, ".*'0' has 5 features on axis 2, not 3"
    ),
    "no steps at all": Wrong(
        lambda: RCMA({"face": FACE[:, :0], "voice": VOICE[:, :0]}),
        ValueError,
        ".*'face' has no steps on axis 1",
    ),
    "whole numbers": Wrong(
        lambda: RCMA({"face": FACE.long(), "voice": VOICE}),
        TypeError,
        ".*'face' is not of a floating-point dtype",
    ),
    "another dtype than the parameters": Wrong(
        lambda: RCMA({"face": FACE.double(), "voice": VOICE}),
        TypeError,
        ".*'face' has another dtype than the parameters",
    ),
    "another device than the parameters": Wrong(
        lambda: RCMA({"face": FACE, "voice": VOICE.to("meta")}),
        ValueError,
        ".*'voice' is on another device than the parameters",
    ),
    "other samples": Wrong(
        lambda: RCMA({"face": FACE, "voice": VOICE[:1]}),
        ValueError,
        ".*'voice' has 1 samples on axis 0, 'face' has 2",
    ),
    "other steps": Wrong(
        lambda: RCMA({"face": FACE, "voice": VOICE[:, :3]}),
        ValueError,
        ".*'voice' has 3 steps on axis 1, 'face' has 4",
    ),
    "too many steps": Wrong(
        lambda: RCMA({"face": torch.randn(2, 5, 3)}),
        ValueError,
        ".*'face' has 5 steps on axis 1, more than length=4",
    ),
    "too many steps for JCA": Wrong(
        lambda: JCA({"face": torch.randn(2, 5, 3)}),
        ValueError,
        "JointCrossAttention: 'face' has 5 steps on axis 1, more than length=4",
    ),
    # masks
    "a mask of numbers": Wrong(
        lambda: RCMA(BOTH, ALL.float()), TypeError, ".*mask is not a bool tensor"
    ),
    "a mask of another kind": Wrong(
        lambda: RCMA(BOTH, {"face": ALL.numpy()}), TypeError, r".*mask\['face'\] is not a bool"
    ),
    "a mask that is a bool": Wrong(
        lambda: RCMA(BOTH, True), TypeError, ".*mask must be a mapping or a sequence"
    ),
    "a mask of other steps": Wrong(
        lambda: RCMA(BOTH, ALL[:, :3]),
        ValueError,
        ".*mask does not have the batch and steps of its features",
    ),
    "a mask with features": Wrong(
        lambda: RCMA(BOTH, {"voice": ALL[..., None]}),
        ValueError,
        r".*mask\['voice'\] does not have the batch and steps",
    ),
    "a mask elsewhere": Wrong(
        lambda: RCMA(BOTH, ALL.to("meta")), ValueError, ".*mask is on another device"
    ),
    "a mask for an unknown modality": Wrong(
        lambda: RCMA(BOTH, {"words": ALL}), ValueError, ".*mask has unknown names: 'words'"
    ),
    "too few masks": Wrong(
        lambda: UNNAMED([FACE, VOICE], [ALL]), ValueError, ".*mask has 1 elements for 2 modalities"
    ),
    # TemporalConvNet
    "a dim of zero for the TCN": Wrong(
        lambda: TemporalConvNet(0, [4]), ValueError, "TemporalConvNet: dim must be a positive int"
    ),
    "no widths": Wrong(
        lambda: TemporalConvNet(3, []),
        ValueError,
        "TemporalConvNet: the number of widths must be a positive int",
    ),
    "one width": Wrong(
        lambda: TemporalConvNet(3, 4),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        "TemporalConvNet: widths must be a sequence",
    ),
    "more blocks for the TCN than integers have bits": Wrong(
        lambda: TemporalConvNet(3, [4] * 65, kernel_size=1),
        ValueError,
        "TemporalConvNet: the number of widths must be a positive int\n.*\n.*at most 64",
    ),
    "a width of zero for the TCN": Wrong(
        lambda: TemporalConvNet(3, [4, 0]), ValueError, r".*widths\[1\] must be a positive int"
    ),
    "a kernel of zero": Wrong(
        lambda: TemporalConvNet(3, [4], kernel_size=0), ValueError, ".*kernel_size must be a"
    ),
    "an even kernel, centred": Wrong(
        lambda: TemporalConvNet(3, [4], kernel_size=4, causal=False),
        ValueError,
        ".*kernel_size must be odd where causal=False",
    ),
    "channels first for the TCN": Wrong(
        lambda: TCN(FACE.mT), ValueError, ".*'x' has 4 features on axis 2, not 3"
    ),
    "another mask for the TCN": Wrong(
        lambda: TCN(FACE, ALL[:1]), ValueError, ".*mask does not have the batch and steps"
    ),
    "causality as a str": Wrong(
        lambda: TemporalConvNet(3, [4], causal="False"),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        "TemporalConvNet: causal must be a bool",
    ),
    "streaming without causality": Wrong(
        lambda: TemporalConvNet(3, [4], causal=False).stream(FACE),
        ValueError,
        ".*a net that is not causal cannot stream",
    ),
    "a bare tensor for a state": Wrong(
        lambda: TCN.stream(FACE, FACE),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        ".*'state' is not a TemporalState",
    ),
    "numbers for a state's tensors": Wrong(
        lambda: TCN.stream(FACE, crossfuse.TemporalState((1, 2))),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        ".*'state' is not a TemporalState of tensors",
    ),
    "nothing for a state's tensors": Wrong(
        lambda: TCN.stream(FACE, crossfuse.TemporalState(None)),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        ".*'state' is not a TemporalState of tensors",
    ),
    "a state of another dtype": Wrong(
        lambda: TemporalConvNet(3, [4], dtype=torch.float64).stream(
            FACE.double(), TCN.stream(FACE)[1]
        ),
        TypeError,
        ".*'state' has another dtype than the chunk",
    ),
    "a state of another batch": Wrong(
        lambda: TCN.stream(FACE, TCN.stream(FACE[:1])[1]),
        ValueError,
        ".*'state' is of another batch size or another net",
    ),
    "a state of another net": Wrong(
        lambda: TCN.stream(FACE, TemporalConvNet(3, [4, 4]).stream(FACE)[1]),
        ValueError,
        ".*'state' is of another batch size or another net",
    ),
    # DynamicGate
    "a gate of no features": Wrong(
        lambda: DynamicGate(0), ValueError, "DynamicGate: dim must be a positive int"
    ),
    "a temperature of zero": Wrong(
        lambda: DynamicGate(3, temperature=0), ValueError, ".*temperature must be positive"
    ),
    "a gate between two shapes": Wrong(
        lambda: GATE(FACE, FACE[:1]), ValueError, ".*'x' and 'attended' differ in shape"
    ),
    "other features for the gate": Wrong(
        lambda: GATE(FACE, VOICE), ValueError, ".*'attended' has 5 features on axis 2, not 3"
    ),
    "a gate of another dtype": Wrong(
        lambda: GATE(FACE.double(), FACE.double()),
        TypeError,
        "DynamicGate: 'x' has another dtype than the parameters",
    ),
    # baselines
    "a width that the heads do not divide": Wrong(
        lambda: CrossModalTransformer(DIMS, 6, heads=4),
        ValueError,
        "CrossModalTransformer: width is not a multiple of heads",
    ),
    "one modality for CrossAttention": Wrong(
        lambda: CrossAttention([3]), ValueError, "CrossAttention: too few modalities"
    ),
    "a temperature below zero": Wrong(
        lambda: CrossAttention([3, 5], temperature=-1), ValueError, ".*temperature must be positive"
    ),
    "no features to come out": Wrong(
        lambda: ConcatFusion(DIMS, 0), ValueError, "ConcatFusion: out_features must be a positive"
    ),
    "a mask for pooled modalities": Wrong(
        lambda: ConcatFusion(DIMS)({"face": FACE[:, 0], "voice": VOICE[:, 0]}, ALL),
        ValueError,
        "ConcatFusion: a mask is given, but the modalities have no steps",
    ),
    "a leader that is not there": Wrong(
        lambda: LeaderFollowerAttention(DIMS, leader="words"),
        ValueError,
        "LeaderFollowerAttention: unknown leader",
    ),
    # ModalityDropout, MissingTokens
    "a drop rate above one": Wrong(
        lambda: ModalityDropout(2.0), ValueError, "ModalityDropout: p must be a probability"
    ),
    "keeping none": Wrong(
        lambda: ModalityDropout(0.5, keep=0), ValueError, ".*keep must be a positive int"
    ),
    "no axis for steps": Wrong(
        lambda: ModalityDropout(0.5)({"face": FACE[0, 0]}),
        TypeError,
        "ModalityDropout: 'face' has no axes for batch and steps",
    ),
    "other samples for ModalityDropout": Wrong(
        lambda: ModalityDropout(0.5)([FACE, VOICE[:1]]),
        ValueError,
        "ModalityDropout: '1' has 1 samples on axis 0, '0' has 2",
    ),
    "tokens for unknown steps": Wrong(
        lambda: MissingTokens({**DIMS, "words": 2})({"face": FACE, "voice": VOICE[:, :3]}),
        ValueError,
        "MissingTokens: a modality is missing and its number of steps is unknown",
    ),
    # concordance and its loss
    "a list of predictions": Wrong(
        lambda: functional.concordance([[1.0]], FACE[..., 0]),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        "functional.concordance: 'prediction' is not a tensor of real numbers",
    ),
    "a series without windows": Wrong(
        lambda: functional.concordance(FACE[0, :, 0], FACE[0, :, 0]),
        ValueError,
        ".*'prediction' and 'target' are not of one shape",
    ),
    "series of other shapes": Wrong(
        lambda: ConcordanceLoss()(FACE[..., 0], FACE),
        ValueError,
        ".*'prediction' and 'target' are not of one shape",
    ),
    "a target elsewhere": Wrong(
        lambda: functional.concordance(FACE, FACE.to("meta")),
        ValueError,
        ".*'prediction' is on another device than 'target'",
    ),
    "unknown moments": Wrong(
        lambda: ConcordanceLoss(moments="none"), ValueError, "ConcordanceLoss: unknown moments"
    ),
    "no room for rounding": Wrong(
        lambda: functional.concordance(FACE, FACE, eps=0.0), ValueError, ".*eps must be positive"
    ),
    # windows
    "a hop of zero": Wrong(
        lambda: windows.window_starts(9, 3, 0), ValueError, "window_starts: hop must be a positive"
    ),
    "a hop beyond the window": Wrong(
        lambda: windows.window_starts(9, 3, 4), ValueError, ".*windows would leave gaps"
    ),
    "a list to gather from": Wrong(
        lambda: windows.gather_windows([1, 2], [0], 1),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        "gather_windows: x is not a tensor",
    ),
    "a recording of no frames": Wrong(
        lambda: windows.gather_windows(FACE[:0], [0], 1), ValueError, ".*x has no frames on axis 0"
    ),
    "starts in a tensor": Wrong(
        lambda: windows.gather_windows(FACE[0], torch.tensor([0]), 1),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        ".*starts is not a sequence of ints",
    ),
    "a start beyond the end": Wrong(
        lambda: windows.gather_windows(FACE[0], [4], 1),
        ValueError,
        ".*windows begin outside of the recording",
    ),
    "no windows": Wrong(
        lambda: windows.gather_windows(FACE[0], [], 1), ValueError, ".*there are no windows"
    ),
    "classes to average": Wrong(
        lambda: windows.overlap_average(torch.ones(1, 4).long(), [0], 4),
        TypeError,
        "overlap_average: windows is not of a floating-point dtype",
    ),
    "a window too few": Wrong(
        lambda: windows.overlap_average(FACE, [0], 4),
        ValueError,
        ".*windows does not have one window for each start on axis 0",
    ),
    "a frame left out": Wrong(
        lambda: windows.overlap_average(FACE, [0, 5], 9), ValueError, ".*frame 4 lies in no window"
    ),
    # convert
    "an unknown key": Wrong(
        lambda: convert.tcn({**TCN_CHECKPOINT, "network.0.conv3.bias": FACE}),
        ValueError,
        r"convert.tcn: the checkpoint has other keys than the authors' module\n"
        r".*unknown 'network.0.conv3.bias'; missing nothing",
    ),
    "a missing key": Wrong(
        lambda: convert.tcn({k: v for k, v in TCN_CHECKPOINT.items() if "conv2.bias" not in k}),
        ValueError,
        r"convert.tcn: the checkpoint has other keys than the authors' module\n"
        r".*unknown nothing; missing 'network.0.conv2.bias'",
    ),
    "an empty checkpoint": Wrong(
        lambda: convert.jca({}, modalities=["audio", "video"]),
        ValueError,
        "convert.jca: the checkpoint has other keys",
    ),
    "too few names for a checkpoint": Wrong(
        lambda: convert.rcma({}, modalities=["audio", "video"], joint="all"),
        ValueError,
        "convert.rcma: modalities does not name those of the checkpoint",
    ),
    "an unknown joint of a checkpoint": Wrong(
        lambda: convert.rcma({}, modalities=["a", "b", "c"], joint="v1"),  # type: ignore[arg-type]  # the wrong call
        ValueError,
        "convert.rcma: unknown joint",
    ),
    "a whole module for a checkpoint": Wrong(
        lambda: convert.tcn(TCN),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        "convert.tcn: state_dict is not a mapping of names to tensors",
    ),
    # compile
    "compiling a function": Wrong(
        lambda: crossfuse.compile(torch.tanh),
        TypeError,
        "compile: 'module' is neither a module nor a method of one",
    ),
    # PerModality
    "something that is not a module": Wrong(
        lambda: PerModality({"face": torch.tanh}),  # type: ignore[dict-item]  # the wrong call
        TypeError,
        r"PerModality: modules\['face'\] is not a module",
    ),
    "one module": Wrong(
        lambda: PerModality(nn.Identity()),  # type: ignore[arg-type]  # the wrong call
        TypeError,
        "PerModality: modules must be a mapping or a sequence",
    ),
    "an unknown modality for PerModality": Wrong(
        lambda: PER({"words": FACE}), ValueError, "PerModality: modalities has unknown names"
    ),
    "a module that cannot stream": Wrong(
        lambda: PerModality({"face": nn.Conv1d(4, 4, 1)}).stream({"face": FACE}),
        TypeError,
        "PerModality: the module of 'face' cannot stream",
    ),
    "a modality that leaves the stream": Wrong(
        lambda: PerModality([TCN]).stream([None], PerModality([TCN]).stream([FACE])[1]),
        ValueError,
        "PerModality: '0' was in the stream before and is missing now",
    ),
    "a mask of other steps for PerModality": Wrong(
        lambda: PER(BOTH, ALL[:, 1:]), ValueError, "PerModality: mask does not have the batch"
    ),
}
WRONG_CALLS |= {
    "a recurrent module with steps first": Wrong(
        lambda: PerModality({"face": nn.GRU(3, 2)})({"face": FACE}, ALL),
        ValueError,
        "PerModality: the module of 'face' takes steps before batch",
    ),
    "a mask for a module that reads backwards": Wrong(
        lambda: PerModality({"face": nn.GRU(3, 2, batch_first=True, bidirectional=True)})(
            {"face": FACE}, ALL
        ),
        TypeError,
        "PerModality: the module of 'face' reads backwards from invalid steps",
    ),
    "one axis for PerModality": Wrong(
        lambda: PER({"face": FACE[0, 0]}),
        TypeError,
        "PerModality: 'face' has no axes for batch and steps",
    ),
    "a mask for a module that takes none": Wrong(
        lambda: PerModality({"face": nn.Conv1d(4, 4, 1)})({"face": FACE}, ALL),
        TypeError,
        "PerModality: the module of 'face' does not show how it takes a mask",
    ),
    "a module that returns a dict": Wrong(
        lambda: PerModality({"face": Dictionary()})({"face": FACE}),
        TypeError,
        "PerModality: the module of 'face' does not return a tensor",
    ),
    "a module that pools": Wrong(
        lambda: PerModality({"face": nn.Flatten(0)})({"face": FACE}),
        ValueError,
        "PerModality: the module of 'face' does not return the batch and steps of its input",
    ),
    "a weight of the authors that is not a matrix": Wrong(
        lambda: convert.tcn(TCN_CHECKPOINT | {"network.0.conv1.weight_v": torch.ones(())}),
        ValueError,
        r"convert\.tcn: 'network\.0\.conv1\.weight_v' does not have the shape",
    ),
    "sizes that do not add up": Wrong(
        lambda: convert.jca(JCA_CHECKPOINT, modalities=["voice", "face"], dims=[3, 3]),
        ValueError,
        r"convert\.jca: dims does not give the features of each modality",
    ),
}
GRAMMAR = re.compile(r"[A-Za-z_.]+: .+\n  got       .+\n  expected  .+\n  hint      .+", re.DOTALL)


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_is_answered(name: str) -> None:
    wrong = WRONG_CALLS[name]
    with pytest.raises(wrong.kind, match=wrong.says) as caught:
        wrong.call()
    message = str(caught.value)
    assert GRAMMAR.fullmatch(message), f"not in the grammar:\n{message}"
    assert message.count("\n") == 3, f"not four lines:\n{message}"


def raises_in(path: Path) -> set[tuple[str, int]]:
    """File and line of every `raise` of a new exception in one source file."""
    tree = ast.parse(path.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {(str(path), node.lineno) for node in nodes if node.exc is not None}


def reached(call: Callable[[], object]) -> tuple[str, int]:
    """Where in the package the exception of one call was raised."""
    try:
        call()
    except Exception as error:  # any exception has a place
        last = traceback.extract_tb(error.__traceback__)[-1]
        return last.filename, last.lineno or 0
    raise AssertionError("the call was not wrong")


def calls_of_other_files() -> Iterator[Callable[[], object]]:
    """The wrong calls in other files: those beside, and every `test_a_mistake_is_named`."""
    yield from importlib.import_module("tests.project.test_bad_input_functions").REFUSED.values()
    root = Path(__file__).parents[2]
    for path in sorted((root / "tests").rglob("test_*.py")):
        if path.name != "test_messages.py" and "def test_a_mistake_is_named" in path.read_text():
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            file = importlib.import_module(name)
            subject = getattr(file, "subject", lambda: torch.randn(2, 5, 3))
            for call, *_ in file.test_a_mistake_is_named.pytestmark[0].args[1]:
                takes = len(inspect.signature(call).parameters)
                yield partial(call, *[subject()] * takes)


def test_every_raise_is_reached_by_a_wrong_call() -> None:
    sites = set().union(*(raises_in(path) for path in PACKAGE.rglob("*.py")))
    calls = [wrong.call for wrong in WRONG_CALLS.values()]
    untested = sites - {reached(call) for call in (*calls, *calls_of_other_files())}
    assert not untested, f"no wrong call reaches {sorted(untested)}"
