"""Writes what a run must be built from again, and reads a trained run back from its folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.affwild2.dataset.features import load_features
from examples.affwild2.dataset.files import read_object, whole
from examples.affwild2.dataset.layout import Partition
from examples.affwild2.network.model import AffectNet
from examples.affwild2.training.assemble import (
    Encoded,
    Prepared,
    identify,
    make_backbones,
    make_trials,
    part_of,
    scale_of,
    split,
)
from examples.affwild2.training.evaluate import Predictions, predict
from examples.affwild2.training.own import OwnFeatures
from examples.affwild2.training.runs import CHECKPOINT, Run, build, claim, read_checkpoint, run_from
from examples.affwild2.training.trials import Trials

SETUP = "setup.json"


def write_setup(
    out: Path,
    run: Run,
    features: Path,
    prepared: Prepared,
    *,
    resume: bool = False,
    own: Sequence[OwnFeatures] = (),
) -> None:
    """Writes what is needed to build the run's network again.

    Raises:
        ValueError: The folder holds another run, or this one and ``resume`` is False, or the
            features are no longer those that it was begun with.
    """
    begun = claim(out, run, resume=resume) is not None
    if begun and read_setup(out)["identity"] != prepared.identity:
        raise ValueError(
            f"train: the features in {features} are not those that {out} was begun with; name a "
            "new folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    held = {
        "run": run.described(),
        "features": str(features.resolve()),
        "words_dim": prepared.words_dim,
        "scale": prepared.scale,
        "identity": prepared.identity,
        "own": {one.stream.name: str(one.folder) for one in own},
        "trained": list(prepared.trained),
    }
    with whole(out / SETUP) as partial:
        partial.write_text(json.dumps(held, indent=1) + "\n")


def read_setup(out: Path) -> dict[str, Any]:
    """Reads what ``write_setup`` wrote.

    Raises:
        ValueError: It is missing or damaged.
    """
    path = out / SETUP
    if not path.exists():
        raise ValueError(f"{out}: holds no {SETUP}; train writes one")
    return read_object(path)


@dataclass(frozen=True)
class Saved:
    """A trained run, read back.

    Attributes:
        run: What it is.
        model: Its best weights.
        backbones: Those of the model.
        features: Where its trials were.
        scale: Of the word vectors.
        own: The user's own features.
        identity: Digest of the features that it was trained with; None if these are others.
        trained: Names of the trials that it was trained on.
        problems: One line if its training is not over.
    """

    run: Run
    model: AffectNet
    backbones: dict[str, nn.Module]
    features: Path
    scale: tuple[float, float]
    own: tuple[OwnFeatures, ...] = ()
    identity: str | None = None
    trained: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    def trials(self, partition: Partition, encoded: Encoded | None = None) -> Trials:
        """The trials of a partition (of the run's fold for train and validation).

        Args:
            partition: Which.
            encoded: What the backbones made of the trials before, if anybody kept it.

        Raises:
            ValueError: There are none, or they changed since the run was trained with them.
        """
        if partition == "test":
            features = part_of(load_features(self.features), "test", self.features)
        else:
            both = split(self.features, self.run.fold)
            features = both[partition == "validation"]
            if self.identity not in {None, identify([*both[0], *both[1]], self.own)}:
                raise ValueError(
                    f"{self.features}: the features changed since the run was trained with them; "
                    "train again, or name the features to use with --features"
                )
        own = self.run.preset.norm_stats == "partition"
        scale = scale_of(self.run, features) if own else self.scale
        return make_trials(self.run, features, scale, self.backbones, encoded, self.own)

    def predict(
        self,
        trials: Trials,
        *,
        without: tuple[str, ...] = (),
        cpu: bool = False,
        batch: int | None = None,
        title: str | None = None,
    ) -> Predictions:
        """Predicts trials, on the GPU if there is one; see ``evaluate.predict``."""
        preset = self.run.preset
        return predict(
            self.model.to("cuda" if torch.cuda.is_available() and not cpu else "cpu"),
            trials,
            size=preset.window,
            hop=preset.hop,
            target=self.run.target,
            batch=preset.batch if batch is None else batch,
            without=without,
            title=title,
        )


def read_saved(
    out: Path, features: Path | None = None, own: Sequence[OwnFeatures] | None = None
) -> Saved:
    """Reads a trained run.

    Args:
        out: Its folder.
        features: Where its trials are; None takes those that it was trained with.
        own: The user's own features; None takes those that it was trained with.

    Raises:
        ValueError: The folder holds no trained run, or parts of two; or the own features are not
            those of the run.
    """
    state, held = read_checkpoint(out), read_setup(out)
    progress = state["progress"]
    if progress["best_epoch"] < 0:
        raise ValueError(f"{out}: no epoch of this run has a score; train it first")
    try:
        run = run_from(held["run"])
        trained_as = run_from(state["run"])
        own = _own(out, run, held["own"]) if own is None else _in_order(out, run, own)
        backbones = make_backbones(run, held["words_dim"])
        mean, std = held["scale"]
        same = features is None or features.resolve() == Path(held["features"])
        saved = Saved(
            run,
            build(run, backbones),
            backbones,
            Path(held["features"]) if features is None else features,
            (mean, std),
            own,
            held["identity"] if same else None,
            frozenset(held.get("trained", ())),
            () if progress["done"] else (_unfinished(out, run, progress["epoch"]),),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out}: was written by another version ({error}); train again") from error
    if replace(trained_as, preset=replace(trained_as.preset, epochs=run.preset.epochs)) != run:
        raise ValueError(f"{out}: {CHECKPOINT} is of another run than {SETUP}; train again")
    saved.model.load_state_dict(state["best"])
    saved.model.eval()
    return saved


def _own(out: Path, run: Run, folders: Mapping[str, str]) -> tuple[OwnFeatures, ...]:
    """The own features that a run was trained with."""
    return _in_order(
        out, run, [OwnFeatures(s.name, Path(folders[s.name]), s.rate) for s in run.own]
    )


def _in_order(out: Path, run: Run, own: Sequence[OwnFeatures]) -> tuple[OwnFeatures, ...]:
    """Own features in the order of the run's.

    Raises:
        ValueError: They are not those of the run.
    """
    held = {one.stream: one for one in own}
    if held.keys() != set(run.own):
        wanted = ", ".join(f"{s.name} of width {s.width}, rate {s.rate}" for s in run.own)
        raise ValueError(f"{out}: was trained with own features {wanted or 'of no kind'}")
    return tuple(held[stream] for stream in run.own)


def _unfinished(out: Path, run: Run, epoch: int) -> str:
    return (
        f"{out}: its training is not over (epoch {epoch} of {run.preset.epochs}); the best weights "
        "so far are used"
    )
