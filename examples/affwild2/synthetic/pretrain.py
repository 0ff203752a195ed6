"""Trains the demo's backbones on separate material, as IR-50 came from FER+.

The material is generated here and never written: other people than those of the data set, in short
trials, together with what was drawn, sounded and spelt. A backbone learns to estimate the cues (how
far the corners of the mouth go up, how bright the voice is, how pleasant a word), not the feelings
behind them. Its features are its estimates of the cues, as the logits of FER+ would be.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.affwild2.dataset import text
from examples.affwild2.dataset.audio import gather_patches, log_mel, patch_rows
from examples.affwild2.dataset.files import whole
from examples.affwild2.dataset.video import CROP, SIZE, to_unit
from examples.affwild2.network.backbones import DemoFaces, DemoVoice, DemoWords, load_weights
from examples.affwild2.synthetic import latents
from examples.affwild2.synthetic.faces import CUE_LIMIT, draw_faces
from examples.affwild2.synthetic.lexicon import content_words
from examples.affwild2.synthetic.speech import draw_words
from examples.affwild2.synthetic.voice import draw_syllables, draw_voice

CUES = {  # what each backbone estimates, besides whether there is a face, a voice, a word
    "face": ("mouth", "eyes"),
    "voice": ("energy", "timbre", "sarcasm"),
    "words": ("word", "emphasis"),
}
AHEAD = 14  # frames that a patch of 0.96 s covers
PEOPLE, FRAMES, WORDY_FRAMES = 90, 60, 450


class Readout(nn.Module):
    """A backbone and a linear map from its features to cues.

    Args:
        backbone: Has ``dim``, maps N frames to (N, ``backbone.dim``).
        cues: Width of the output.
    """

    def __init__(self, backbone: DemoFaces | DemoVoice | DemoWords, cues: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(backbone.dim, cues)
        self.dim = cues

    def forward(self, frames: Tensor) -> Tensor:
        out: Tensor = self.linear(self.backbone(frames))
        return out

    def release_groups(self) -> list[list[nn.Parameter]]:
        """Everything at once."""
        return [list(self.parameters())]


def build_backbones() -> dict[str, Readout]:
    """Builds the three backbones, untrained."""
    made: dict[str, DemoFaces | DemoVoice | DemoWords] = {
        "face": DemoFaces(),
        "voice": DemoVoice(),
        "words": DemoWords(text.BUCKETS),
    }
    return {name: Readout(backbone, len(CUES[name]) + 1) for name, backbone in made.items()}


def train_backbones(seed: int = 0) -> dict[str, Readout]:
    """Trains all three; takes about half a minute on one core.

    Args:
        seed: Of the material and of the training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbones = build_backbones()
        people = list(_people(seed))
        _train_faces(backbones["face"], people, epochs=8)
        _fit_voice(backbones["voice"], people)
        _fit_words(backbones["words"], seed)
    return {name: backbone.eval() for name, backbone in backbones.items()}


def save_backbones(path: Path, backbones: Mapping[str, nn.Module]) -> None:
    """Saves all in one file."""
    with whole(path) as partial:
        torch.save(nn.ModuleDict(dict(backbones)).state_dict(), partial)


def load_backbones(path: Path) -> dict[str, nn.Module]:
    """Loads what ``save_backbones`` saved.

    Raises:
        DamagedFile: The file is missing or does not fit.
    """
    return dict(load_weights(nn.ModuleDict(build_backbones()), path).items())


@dataclass(frozen=True)
class _Person:
    """What one person shows and what it means, frame by frame."""

    faces: Tensor
    face_cues: Tensor
    patches: Tensor
    voice_cues: Tensor


def _people(seed: int) -> Iterator[_Person]:
    """Draws short trials of people who are in no data set: the key of their streams is another."""
    for stream in np.random.SeedSequence([seed, 0xFACE]).spawn(PEOPLE):
        random = [np.random.Generator(np.random.PCG64(s)) for s in stream.spawn(3)]
        trial = latents.simulate(FRAMES, latents.Switches(0.5, 0.5), random[0])
        syllables = draw_syllables(trial)
        pictures = list(draw_faces(trial, syllables.opening, random[1]))
        faces = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
        for frame, picture in zip(faces, pictures, strict=True):
            if picture is not None:
                frame[:] = np.asarray(picture.resize((SIZE, SIZE)))
        mel = log_mel(draw_voice(trial, syllables, random[2]))
        patches = gather_patches(mel, patch_rows(len(mel), latents.FPS, FRAMES))
        seen = np.array([picture is not None for picture in pictures], float)
        yield _Person(
            torch.from_numpy(faces),
            _stack(trial, CUES["face"], seen),
            torch.from_numpy(patches),
            _ahead(_stack(trial, CUES["voice"], trial.speaking.astype(float))),
        )


def _stack(trial: latents.Latents, names: tuple[str, ...], present: latents.Floats) -> Tensor:
    """The cues and whether they are present, (T, n + 1); zero where they are not visible."""
    sarcasm = np.append(trial.sarcastic, False)[trial.utterance] & trial.speaking
    cues = trial.cues | {"sarcasm": sarcasm.astype(float)}
    columns = [np.clip(np.nan_to_num(cues[name]), -CUE_LIMIT, CUE_LIMIT) for name in names]
    return torch.from_numpy(np.stack([*columns, present], axis=1)).float()


def _ahead(cues: Tensor) -> Tensor:
    """The mean of each cue over the frames that a patch covers."""
    padded = torch.cat([cues, cues[-1:].expand(AHEAD - 1, -1)])
    return padded.unfold(0, AHEAD, 1).mean(-1)


def _train_faces(readout: Readout, people: list[_Person], epochs: int, batch: int = 64) -> None:
    faces = torch.cat([person.faces for person in people])
    cues = torch.cat([person.face_cues for person in people])
    batches = len(faces) // batch
    optimiser = torch.optim.AdamW(readout.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(faces))[: batches * batch].split(batch):
            top, left = torch.randint(SIZE - CROP + 1, (2,)).tolist()
            crop = faces[chosen][:, top : top + CROP, left : left + CROP]
            mirrored = crop.flip(2) if torch.rand(()) < 0.5 else crop
            loss = functional.mse_loss(readout(to_unit(mirrored)), cues[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    edge = (SIZE - CROP) // 2
    _scale(readout, to_unit(faces[:, edge : edge + CROP, edge : edge + CROP]))


def _scale(readout: Readout, frames: Tensor) -> None:
    """Brings every feature to mean 0 and standard deviation 1 over these frames."""
    with torch.no_grad():
        made = torch.cat([readout(part) for part in frames.split(256)])
        std, mean = torch.std_mean(made, dim=0)
        readout.linear.weight.div_((std + 1e-3)[:, None])
        readout.linear.bias.sub_(mean).div_(std + 1e-3)


def _fit_voice(readout: Readout, people: list[_Person], penalty: float = 0.01) -> None:
    """Ridge regression, which has a closed form; the scaling becomes part of the linear map."""
    with torch.no_grad():
        bands = torch.cat([readout.backbone(person.patches) for person in people])
        cues = torch.cat([person.voice_cues for person in people])
        std, mean = torch.std_mean(bands, dim=0)
        scaled = (bands - mean) / (std + 1e-3)
        gram = scaled.T @ scaled + penalty * len(scaled) * torch.eye(scaled.shape[1])
        weight = torch.linalg.solve(gram, scaled.T @ (cues - cues.mean(0))).T / (std + 1e-3)
        readout.linear.weight.copy_(weight)
        readout.linear.bias.copy_(cues.mean(0) - weight @ mean)
    _scale(readout, torch.cat([person.patches for person in people]))


def _fit_words(readout: Readout, seed: int, prior: float = 2.0) -> None:
    """Gives every word the mean cue with which it was said, shrunk towards 0 where it was rare."""
    width = readout.dim
    said: list[Tensor] = []
    total, count = torch.zeros(text.BUCKETS + 1, width), torch.zeros(text.BUCKETS + 1, 1)
    content = content_words("own")
    for stream in np.random.SeedSequence([seed, 0x3080]).spawn(PEOPLE):
        random = [np.random.Generator(np.random.PCG64(s)) for s in stream.spawn(2)]
        trial = latents.simulate(WORDY_FRAMES, latents.Switches(0, 0), random[0])
        words = draw_words(trial, content, random[1])
        cues = _stack(trial, CUES["words"], trial.speaking.astype(float))
        slots = torch.from_numpy(np.flatnonzero(np.isfinite(trial.cues["word"])))
        if not words or not len(slots):
            continue
        middles = torch.tensor([(word.start + word.end) / 2000 * latents.FPS for word in words])
        nearest = slots[(slots - middles[:, None]).abs().argmin(dim=1)]
        ids = torch.from_numpy(text.hash_words(words))
        times = np.arange(WORDY_FRAMES) / latents.FPS * 1000
        said.append(torch.cat([ids, ids.new_zeros(1)])[text.align(words, times)])
        total.index_add_(0, ids, cues[nearest])
        count.index_add_(0, ids, torch.ones(len(ids), 1))
    table = total / (count + prior)
    table[0] = 0
    with torch.no_grad():
        readout.backbone.get_parameter("table.weight").zero_()[:, :width] = table
        readout.linear.weight.copy_(torch.eye(width, readout.backbone.dim))
        readout.linear.bias.zero_()
    _scale(readout, torch.cat(said))
