"""Writes what ``extract`` would write of a corpus of Aff-Wild2's size, without its contents.

Index, labels and words are drawn; faces, sound and own features are sparse files of zeros, so that
3 million frames take little room on disk. In the root of the repository::

    python -m tests.support.affwild2_official OUT            # OUT/features, OUT/own
    python -m tests.support.affwild2_official OUT --trials 10000 --frames 1000000
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.lib.format import open_memmap

TRIALS, FRAMES = 594, 2_993_081  # of Aff-Wild2
PARTS = {"train": 356, "validation": 76, "test": 162}
FPS = 30.0


@dataclass(frozen=True)
class Official:
    """A corpus of features.

    Attributes:
        out: A folder that does not exist yet.
        trials: How many; the shares of the three partitions are the official ones.
        frames: Of all trials together.
        own_width: Features of a row of the own features.
        word_dim: Width of the word vectors; 0 for none.
    """

    out: Annotated[Path, tyro.conf.Positional]
    trials: int = TRIALS
    frames: int = FRAMES
    own_width: int = 1024
    word_dim: int = 768

    def write(self) -> None:
        """Writes ``features`` and, a file per trial, ``own``."""
        (self.out / "own").mkdir(parents=True)
        partitions = [p for p, n in PARTS.items() for _ in range(n)]
        for i, length in enumerate(lengths(self.trials, self.frames)):
            name = f"video{i:05d}"
            partition = partitions[i * TRIALS // self.trials]
            write_trial(self.out / "features", name, partition, length, self.word_dim)
            shape = (length, self.own_width)
            open_memmap(self.out / "own" / f"{name}.npy", "w+", np.float32, shape)
        settings = {"root": str(self.out / "tree")}
        (self.out / "features/settings.json").write_text(json.dumps(settings))


def lengths(trials: int, frames: int) -> list[int]:
    """Draws the lengths of trials: some are 20 times as long as others."""
    shares = np.random.default_rng(0).lognormal(0, 0.8, trials)
    ends = np.round(np.cumsum(shares) / shares.sum() * frames).astype(int)
    return [max(1, int(n)) for n in np.diff(ends, prepend=0)]


def write_trial(out: Path, name: str, partition: str, length: int, word_dim: int) -> None:
    """Writes the folders of one trial and of its video."""
    rng = np.random.default_rng([int.from_bytes(name.encode()[-4:]), length])
    folder, source = out / "trials" / name, out / "videos" / name
    folder.mkdir(parents=True)
    source.mkdir(parents=True)
    words = max(1, int(length / FPS * 2.5))
    starts = np.sort(rng.integers(0, length, words))
    said = np.searchsorted(starts, np.arange(length), side="right") - 1
    open_memmap(folder / "faces.npy", "w+", np.uint8, (length, 48, 48, 3))
    open_memmap(source / "mel.npy", "w+", np.float32, (int(length / FPS * 100) + 96, 64))
    vectors = {"vectors": rng.normal(size=(words, word_dim)).astype(np.float32)} if word_dim else {}
    np.savez(source / "words.npz", ids=rng.integers(1, 1024, words), **vectors)  # type: ignore[arg-type]  # numpy's stub takes any keyword for allow_pickle
    np.savez(
        folder / "frames.npz",
        index=np.arange(length),
        labels=np.clip(rng.normal(0, 0.4, (length, 2)), -1, 1).astype(np.float32),
        valid=rng.random(length) < 0.97,
        face_present=rng.random(length) < 0.95,
        mel_rows=np.arange(length) * 100 // int(FPS),
        word_index=said.astype(np.int32),
    )
    meta = {
        "partition": partition,
        "source": name,
        "fps": FPS,
        "frames": length,
        "sound": True,
        "problems": [],
    }
    (folder / "meta.json").write_text(json.dumps(meta))


if __name__ == "__main__":
    tyro.cli(Official).write()
