"""Three sets of numbers: the paper's, those of its released code, and the demo's.

Sources: P, the paper (arXiv 2403.13659 v1); C, the authors' released code; D, a choice made for the
demo: small networks on generated data, on two cores. Where P is silent and C is not, ``paper``
takes C's, marked PC. The paper's audio front end (44.1 kHz, 64×107) cannot feed VGGish, whose first
fully connected layer wants 6×4 maps, so all presets take VGGish's (``extract --decibel`` writes the
other one).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from examples.affwild2.training.modalities import Family, tcn_widths


@dataclass(frozen=True)
class Preset:
    """Everything that training needs to know, besides data, fusion, target, fold and seed.

    Attributes:
        window: Frames of a window.
        hop: Frames from one window to the next, in evaluation.
        train_hop: The same in training.
        batch: Windows of a batch, over all processes.
        epochs: At most so many.
        learning_rate: After the warm-up.
        weight_decay: Adam's.
        warmup: repetitive: in each of the first epochs the rate rises from 0 again, to an ever
            higher peak up to a fifth of the learning rate; linear: it rises once; none.
        warmup_epochs: How many.
        patience: Epochs without a better validation before the rate falls.
        factor: By what.
        least_rate: Once the rate is below it, a stage ends.
        early_stop: Training ends after so many epochs of a stage without a better validation.
        releases: Groups of backbone layers that training may free, one per stage.
        release_first: Whether the first group is free from the start.
        freeze_bn: Keep frozen backbones in evaluation mode.
        backbones: full: IR-50, VGGish, BERT; demo: small ones that ``pretrain`` made.
        cache: Compute frozen backbones' features once; there is no augmentation then.
        augment: Crop and mirror the faces of training windows.
        widths: Of each modality's TCN blocks.
        feature_noise: Standard deviation of the noise added to features in training.
        tcn_dropout: After each convolution.
        attention_dropout: In the fusion.
        head_width: Of the head's hidden layer; None for a linear head.
        head_dropout: In the head.
        recursions: Recursions of RCMA.
        form: What ``rcma`` is: as published, or as released.
        joint: What the joint of ``rcma`` holds.
        moments: Of the loss: mixed is the code's biased covariance over unbiased variances.
        loss_on_padding: Let the padded frames of short trials count in the loss.
        norm_stats: Whose mean and spread the word vectors are normalised by.
        shuffle: once: the same batches in every epoch; epoch: others.
        reload_best: After each epoch go on from the best weights.
        select: The epoch is chosen on every so-manieth training trial, held out of training; 0
            chooses it on the validation trials themselves.
        seed: If none is given.
    """

    window: int
    hop: int
    train_hop: int
    batch: int
    epochs: int
    learning_rate: float
    weight_decay: float
    warmup: Literal["repetitive", "linear", "none"]
    warmup_epochs: int
    patience: int
    factor: float
    least_rate: float
    early_stop: int
    releases: int
    release_first: bool
    freeze_bn: bool
    backbones: Family
    cache: bool
    augment: bool
    widths: Mapping[str, tuple[int, ...]]
    feature_noise: float
    tcn_dropout: float
    attention_dropout: float
    head_width: int | None
    head_dropout: float
    recursions: int
    form: Literal["paper", "released"]
    joint: Literal["others", "all"]
    moments: Literal["biased", "mixed"]
    loss_on_padding: bool
    norm_stats: Literal["train", "partition", "none"]
    shuffle: Literal["once", "epoch"]
    reload_best: bool
    select: int
    seed: int


PAPER = Preset(
    window=300,  # P
    hop=200,  # PC
    train_hop=200,  # PC
    batch=12,  # P
    epochs=100,  # P
    learning_rate=1e-4,  # P
    weight_decay=5e-4,  # P
    warmup="repetitive",  # PC: P says five epochs of warm-up
    warmup_epochs=5,  # P
    patience=5,  # P
    factor=0.1,  # P
    least_rate=1e-8,  # PC
    early_stop=50,  # PC: P names no number
    releases=3,  # PC: P says gradual release of ResNet layers
    release_first=True,  # PC
    freeze_bn=True,  # what frozen means; the code differs
    backbones="full",  # P
    cache=False,  # P: crops differ in each epoch
    augment=True,  # P, with C's mirroring
    widths=tcn_widths("full"),  # PC
    feature_noise=0.0,  # PC
    tcn_dropout=0.1,  # PC
    attention_dropout=0.5,  # P: on the attended features
    head_width=None,  # PC
    head_dropout=0.8,  # P: on the linear layers
    recursions=2,  # PC: P leaves it open
    form="paper",  # P, equations 1-13, Xavier
    joint="others",  # P
    moments="biased",  # Lin's definition; P states no loss
    loss_on_padding=False,  # mended
    norm_stats="train",  # mended
    shuffle="once",  # PC
    reload_best=True,  # PC
    select=0,  # PC
    seed=3407,  # PC
)

AUTHORS = Preset(
    window=300,  # C
    hop=200,  # C
    train_hop=200,  # C
    batch=12,  # C
    epochs=100,  # C
    learning_rate=1e-5,  # C
    weight_decay=1e-3,  # C
    warmup="repetitive",  # C
    warmup_epochs=5,  # C
    patience=5,  # C
    factor=0.1,  # C
    least_rate=1e-8,  # C
    early_stop=50,  # C
    releases=3,  # C
    release_first=True,  # C
    freeze_bn=False,  # C: train() reaches the frozen layers too
    backbones="full",  # C
    cache=False,  # C
    augment=True,  # C: 40 of 48 and mirrored
    widths=tcn_widths("full"),  # C, first release
    feature_noise=0.0,  # C
    tcn_dropout=0.1,  # C
    attention_dropout=0.6,  # C: on the correlation and after the last map
    head_width=None,  # C, first release; the last one has 256
    head_dropout=0.0,  # C
    recursions=2,  # C
    form="released",  # C
    joint="others",  # C, first release; the last one has all
    moments="mixed",  # C
    loss_on_padding=True,  # C
    norm_stats="partition",  # C
    shuffle="once",  # C
    reload_best=True,  # C
    select=0,  # C
    seed=3407,  # C
)

DEMO = Preset(
    window=300,  # P
    hop=100,  # D
    train_hop=75,  # D: 24 trials give few windows otherwise
    batch=12,  # P
    epochs=24,  # D
    learning_rate=3e-3,  # D
    weight_decay=1e-3,  # C
    warmup="linear",  # D
    warmup_epochs=1,  # D
    patience=8,  # D
    factor=0.3,  # D
    least_rate=1e-5,  # D
    early_stop=24,  # D
    releases=0,  # D: `train --preset demo --releases 1` frees the small CNN
    release_first=False,  # D
    freeze_bn=True,  # D
    backbones="demo",  # D
    cache=True,  # D
    augment=False,  # D: pretrain has seen crops and mirror images
    widths=tcn_widths("demo"),  # D
    feature_noise=1.0,  # D: 24 people are few to learn from
    tcn_dropout=0.2,  # D
    attention_dropout=0.0,  # D
    head_width=64,  # D
    head_dropout=0.2,  # D
    recursions=2,  # C
    form="paper",  # P
    joint="others",  # P
    moments="biased",  # Lin's definition
    loss_on_padding=False,  # mended
    norm_stats="none",  # D: the small backbones' features have unit size
    shuffle="epoch",  # D
    reload_best=False,  # D: the best are taken at the end
    select=5,  # D: the trials that a score is reported on choose nothing
    seed=0,  # D
)

PRESETS: dict[str, Preset] = {"paper": PAPER, "authors": AUTHORS, "demo": DEMO}


@dataclass(frozen=True)
class Changes:
    """Numbers to use instead of the preset's; None takes the preset's.

    Attributes:
        epochs: At most so many.
        batch: Windows of a batch, over all processes.
        learning_rate: After the warm-up.
        warmup: repetitive (the code's), linear or none.
        releases: Groups of backbone layers to free in turn.
        freeze_bn: Keep the frozen layers of backbones in evaluation mode (the code does not).
        loss_on_padding: Let the padded frames of short trials count in the loss (the code does).
        norm_stats: Whose mean and spread the word vectors are normalised by: train, partition (the
            code: each its own) or none.
        shuffle: once (the code: the same batches in every epoch) or epoch.
        reload_best: Go on from the best weights after each epoch (the code does).
    """

    epochs: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    warmup: Literal["repetitive", "linear", "none"] | None = None
    releases: int | None = None
    freeze_bn: bool | None = None
    loss_on_padding: bool | None = None
    norm_stats: Literal["train", "partition", "none"] | None = None
    shuffle: Literal["once", "epoch"] | None = None
    reload_best: bool | None = None

    def apply(self, preset: Preset) -> Preset:
        """The preset with what was changed.

        Raises:
            ValueError: A number makes no training.
        """
        changed = {name: value for name, value in vars(self).items() if value is not None}
        for name, least in (("epochs", 1), ("batch", 1), ("releases", 0)):
            if changed.get(name, least) < least:
                raise ValueError(f"--{name} must be {least} or more, found {changed[name]}")
        if not 0 < changed.get("learning_rate", 1.0) < math.inf:
            raise ValueError(
                f"--learning-rate must be a number above 0, found {changed['learning_rate']}"
            )
        return replace(preset, **changed)
