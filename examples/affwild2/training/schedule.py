"""Learning rates and what is frozen when."""

from typing import cast

import torch
from torch import nn

from examples.affwild2.network.model import AffectNet
from examples.affwild2.training.presets import Preset

Groups = list[list[nn.Parameter]]


def warmup_rate(preset: Preset, epoch: int, batch: int, batches: int) -> float | None:
    """The learning rate of a batch of the warm-up, counted from 0 in a stage; None after it."""
    if epoch >= warmup_length(preset):
        return None
    if preset.warmup == "linear":
        steps = batches * preset.warmup_epochs
        return preset.learning_rate * (epoch * batches + batch + 1) / steps
    return preset.learning_rate * batch * (epoch + 1) / (batches * preset.warmup_epochs**2)


def warmup_length(preset: Preset) -> int:
    """How many epochs of a stage warm up."""
    return 0 if preset.warmup == "none" else preset.warmup_epochs


def make_optimiser(model: nn.Module, preset: Preset) -> torch.optim.Adam:
    """Makes Adam over the parameters that are free now."""
    return torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad],
        lr=preset.learning_rate,
        weight_decay=preset.weight_decay,
    )


def make_plateau(
    optimiser: torch.optim.Optimizer, preset: Preset
) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Makes what lets the rate fall once the validation stays below its best."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser,
        mode="max",
        factor=preset.factor,
        patience=preset.patience,
        threshold=0.0,
        threshold_mode="abs",
        eps=0.0,  # the default would leave rates near 1e-8 as they are
    )


def count_groups(model: AffectNet) -> int:
    """How many groups the backbones can free, the most of all."""
    return max((len(groups) for groups in _release_groups(model)), default=0)


def release(model: AffectNet, stage: int) -> None:
    """Freezes the backbones but for the groups that ``stage`` stages have freed."""
    for parameter in model.backbones.parameters():
        parameter.requires_grad_(False)
    for groups in _release_groups(model):
        for group in groups[:stage]:
            for parameter in group:
                parameter.requires_grad_(True)


def set_training(model: AffectNet, *, keep_frozen: bool) -> None:
    """Puts the network into training mode.

    Args:
        model: The network.
        keep_frozen: Leave the frozen layers of the backbones in evaluation mode, so that their
            batch normalisation uses and keeps the statistics that came with the weights. A backbone
            that is frozen as a whole is left out as a whole, dropout included.
    """
    model.train()
    if not keep_frozen:
        return
    for branch in model.backbones.branches.values():
        if not any(p.requires_grad for p in branch.parameters()):
            branch.eval()
        for layer in branch.modules():
            own = list(layer.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                layer.eval()


def _release_groups(model: AffectNet) -> list[Groups]:
    """The groups of each backbone that has any, first to be freed first."""
    found = []
    for branch in model.backbones.branches.values():
        groups = getattr(branch.get_submodule("backbone"), "release_groups", None)
        if groups is not None:
            found.append(cast(Groups, groups()))
    return found
