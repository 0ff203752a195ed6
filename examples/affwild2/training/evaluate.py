"""Predicts whole trials and scores them.

Shapes: T frames of a trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfuse.functional import concordance
from crossfuse.windows import overlap_average, window_starts
from examples.affwild2.dataset.folds import list_windows
from examples.affwild2.dataset.progress import follow
from examples.affwild2.network.model import AffectNet
from examples.affwild2.training.trials import Target, Trials

Predictions = dict[str, Tensor]
FLAT = 1e-5  # of a range of 2; a network that learned something moves more


@dataclass(frozen=True)
class Scores:
    """How well predictions agree with labels, over all valid frames of all trials together.

    Attributes:
        ccc: Concordance.
        pearson: Correlation.
        rmse: Root of the mean squared error.
        trials: Concordance of each trial by itself, for the log only.
        frames: How many were compared.
    """

    ccc: float
    pearson: float
    rmse: float
    trials: dict[str, float]
    frames: int


@torch.no_grad()
def predict(
    model: AffectNet,
    trials: Trials,
    *,
    size: int,
    hop: int,
    target: Target,
    batch: int = 12,
    without: Sequence[str] = (),
    title: str | None = None,
) -> Predictions:
    """Predicts every frame of every trial; where windows overlap, their mean counts.

    Args:
        model: The network.
        trials: What it is shown.
        size: Frames of a window.
        hop: From one window to the next.
        target: Which of the two the network predicts.
        batch: Windows at once.
        without: Modalities to leave out.
        title: Of the progress that is shown; ``None`` shows none.
    """
    model.eval()
    device = next(model.parameters()).device
    windows = list_windows(trials.lengths, size, hop)
    # a batch may hold windows of many trials: short ones have one window each
    batches = [windows[i : i + batch] for i in range(0, len(windows), batch)]
    rows: list[list[Tensor]] = [[] for _ in trials.features]
    for some in batches if title is None else follow(batches, title, len(batches), count=False):
        cut = trials.batch(some, size, target).to(device)
        streams = {name: None if name in without else x for name, x in cut.streams.items()}
        masks = {name: None if name in without else x for name, x in cut.masks.items()}
        predicted = model(streams, masks, encoded=trials.encoded is not None).float().cpu()
        for window, row in zip(some, predicted, strict=True):
            rows[window.trial].append(row)
    return {
        trial.name: overlap_average(
            torch.stack(rows[i]), window_starts(len(trial), size, hop), len(trial)
        )
        for i, trial in enumerate(trials.features)
    }


def score(predictions: Mapping[str, Tensor], trials: Trials, target: Target) -> Scores:
    """Compares predictions with the labels of the trials they are for.

    Raises:
        ValueError: There is no frame to compare.
    """
    pairs = {}
    for trial in trials.features:
        if trial.name in predictions:
            valid = torch.from_numpy(trial.valid)
            label = torch.from_numpy(trial.labels[:, 0 if target == "valence" else 1])
            pairs[trial.name] = predictions[trial.name][valid], label[valid]
    if not any(len(label) for _, label in pairs.values()):
        raise ValueError("score: no frame has both a prediction and a valid label")
    prediction, label = (torch.cat([pair[k] for pair in pairs.values()]) for k in (0, 1))
    spread = float(prediction.std() * label.std())
    covariance = ((prediction - prediction.mean()) * (label - label.mean())).sum() / (
        len(label) - 1
    )
    return Scores(
        ccc=_ccc(prediction, label),
        pearson=float(covariance) / spread if spread > 1e-12 else 0.0,
        rmse=float((prediction - label).square().mean().sqrt()),
        trials={name: _ccc(*pair) for name, pair in pairs.items()},
        frames=len(label),
    )


def is_constant(predictions: Mapping[str, Tensor]) -> bool:
    """Whether all frames of all trials have the same prediction: the network learned nothing."""
    made = torch.cat([torch.zeros(0), *predictions.values()])
    return len(made) > 1 and float(made.max() - made.min()) < FLAT


def smooth(series: Tensor, frames: int) -> Tensor:
    """Clips to [-1, 1] and takes the moving mean over ``frames``, zeros beyond the ends."""
    if frames <= 1:
        return series
    padded = torch.nn.functional.pad(series.clamp(-1, 1), (frames // 2, (frames - 1) // 2))
    return padded.unfold(0, frames, 1).mean(-1)


def _ccc(prediction: Tensor, label: Tensor) -> float:
    if not len(label):
        return 0.0
    return float(concordance(prediction.double()[None], label.double()[None])[0])
