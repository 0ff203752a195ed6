"""Draws the faces of the generated data: pictures whose mouth, eyes and brows show the cues.

Shapes are polygons in face coordinates (pixels, centre of the face at the origin), turned and moved
as one, drawn four times too large and brought down with Lanczos.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from examples.affwild2.synthetic.latents import FPS, Bools, Floats, Latents, slow_noise

SIZE, SCALE = 112, 4
CUE_LIMIT = 1.6  # cues are clipped here before they are drawn
Colour = tuple[int, int, int]
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 32)), np.sin(np.linspace(0, 2 * np.pi, 32))], 1)
ACROSS = np.linspace(-1, 1, 15)


@dataclass(frozen=True)
class Person:
    """What does not change within a trial."""

    skin: Colour
    hair: Colour
    width: float
    height: float
    fringe: float
    offset: Floats
    brightness: float
    backdrop: Image.Image


def draw_faces(
    trial: Latents, syllables: Floats, rng: np.random.Generator
) -> Iterator[Image.Image | None]:
    """Draws one picture per frame.

    Args:
        trial: What the face shows and when it is seen.
        syllables: How far speech opens the mouth, 0 to 1, (T,).
        rng: The trial's stream for pictures.

    Yields:
        A 112×112 picture, or ``None`` where the face is missing.
    """
    frames = len(trial.utterance)
    person = _person(rng)
    tilt = np.deg2rad(np.clip(slow_noise(frames, 3.0, 5.0, rng), -6, 6))
    gaze = slow_noise(frames, np.array([1.2, 0.4]), 0.4, rng)
    blink = _blinks(frames, rng)
    cues = {
        name: np.clip(np.nan_to_num(trial.cues[name]), -CUE_LIMIT, CUE_LIMIT)
        for name in ("mouth", "eyes")
    }
    for t in range(frames):
        if trial.face_missing[t]:
            yield None
            continue
        pen = _Pen(person, tilt[t])
        _draw_head(pen, person)
        _draw_brows(pen, cues["mouth"][t], cues["eyes"][t], person.hair)
        _draw_eyes(pen, 1.0 if blink[t] else eye_height(cues["eyes"][t]), gaze[t])
        _draw_mouth(pen, cues["mouth"][t], 10 * syllables[t])
        if trial.mouth_hidden[t] or trial.eyes_hidden[t]:
            pen.polygon(_box(0, 23 if trial.mouth_hidden[t] else -15, 36, 13), (70, 80, 70))
        yield _sensor(pen.picture, person.brightness, rng)


def eye_height(cue: float) -> float:
    """Half the height of an open eye in pixels."""
    return float(np.clip(6 * (0.55 + 0.35 * cue), 1, 12))


class _Pen:
    """Draws polygons given in face coordinates."""

    def __init__(self, person: Person, tilt: float) -> None:
        self.picture = person.backdrop.copy()
        self._draw = ImageDraw.Draw(self.picture)
        self._turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self._middle = SIZE / 2 + person.offset

    def polygon(self, points: Floats, colour: Colour) -> None:
        placed = SCALE * (points @ self._turn + self._middle)
        self._draw.polygon(placed.ravel().tolist(), fill=colour)


def _person(rng: np.random.Generator) -> Person:
    tone = rng.uniform(0, 1)
    skin = tuple(int(v) for v in np.array([215, 175, 145]) - tone * np.array([85, 85, 80]))
    hair = tuple(int(v) for v in rng.uniform(20, 90, 3) * np.array([1, 0.8, 0.6]))
    return Person(
        skin=(skin[0], skin[1], skin[2]),
        hair=(hair[0], hair[1], hair[2]),
        width=rng.uniform(36, 41),
        height=rng.uniform(46, 51),
        fringe=rng.uniform(-38, -31),
        offset=rng.uniform(-4, 4, 2),
        brightness=rng.uniform(0.85, 1.15),
        backdrop=_backdrop(rng),
    )


def _backdrop(rng: np.random.Generator) -> Image.Image:
    """Draws a gradient from grey to blue."""
    top, bottom = rng.uniform(90, 150) * np.ones(3), rng.uniform([50, 70, 110], [90, 120, 180])
    rows = np.linspace(0, 1, SIZE * SCALE)[:, None, None]
    colours = np.broadcast_to(top + rows * (bottom - top), (SIZE * SCALE, SIZE * SCALE, 3))
    return Image.fromarray(colours.astype(np.uint8))


def _box(x: float, y: float, half_width: float, half_height: float) -> Floats:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    return corners * [half_width, half_height] + [x, y]


def _draw_head(pen: _Pen, person: Person) -> None:
    oval = CIRCLE * [person.width, person.height]
    pen.polygon(oval * 1.08 - [0, 3], person.hair)
    pen.polygon(oval, person.skin)
    above = oval[oval[:, 1] < person.fringe]
    if len(above):
        pen.polygon(above[np.argsort(above[:, 0])], person.hair)


def _draw_brows(pen: _Pen, valence: float, arousal: float, colour: Colour) -> None:
    slope = np.tan(np.deg2rad(-8 * valence + 4 * arousal))
    for side in (-1, 1):
        tilt = np.array([[1, -side * slope], [0, 1]])
        pen.polygon(_box(0, 0, 8, 1.5) @ tilt + [side * 16, -27], colour)


def _draw_eyes(pen: _Pen, height: float, gaze: Floats) -> None:
    for side in (-1, 1):
        middle = np.array([side * 16, -12])
        pen.polygon(CIRCLE * [6, height] + middle, (250, 250, 250))
        pupil = CIRCLE * [2.5, min(2.5, height)]
        pen.polygon(pupil + middle + np.clip(gaze, -2, 2) * [1, height / 12], (30, 25, 25))


def _draw_mouth(pen: _Pen, curve: float, opening: float) -> None:
    """Draws lips along a parabola 36 px wide; corners up for a positive curve."""
    middle = np.stack([18 * ACROSS, 23 + 7 * curve * (0.5 - ACROSS**2)], axis=1)
    gap = np.stack([np.zeros(15), (1 - ACROSS**2) * opening / 2], axis=1)
    lips = np.array([0.0, 2.5])
    pen.polygon(np.concatenate([middle - gap - lips, (middle + gap + lips)[::-1]]), (150, 40, 50))
    if opening > 0:
        pen.polygon(np.concatenate([middle - gap, (middle + gap)[::-1]]), (60, 15, 20))


def _blinks(frames: int, rng: np.random.Generator) -> Bools:
    """Blinks for three frames, once in four seconds on average."""
    starts = rng.random(frames) < 0.25 / FPS
    return np.convolve(starts, np.ones(3))[:frames] > 0


def _sensor(picture: Image.Image, brightness: float, rng: np.random.Generator) -> Image.Image:
    small = np.asarray(_shrink(picture), np.float32)
    noisy = small * np.float32(brightness) + 4 * rng.standard_normal(small.shape, np.float32)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _shrink(picture: Image.Image) -> Image.Image:
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=2.0)
