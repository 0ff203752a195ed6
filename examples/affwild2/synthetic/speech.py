"""Spells the words of the generated data, as a speech recogniser would have heard them."""

import numpy as np

from examples.affwild2.dataset.transcript import Word
from examples.affwild2.synthetic.latents import FPS, WORD_FRAMES, Latents
from examples.affwild2.synthetic.lexicon import FUNCTION_WORDS, Vocabulary, draw

CUE_LIMIT = 1.6  # cues are clipped here before a word is chosen
DELETED, SUBSTITUTED = 0.10, 0.10


def draw_words(trial: Latents, content: Vocabulary, rng: np.random.Generator) -> list[Word]:
    """Draws a function word and a content word for every slot, and a full stop per utterance.

    A tenth of the words is lost and a tenth misheard. An emphatic utterance ends with "!".

    Args:
        trial: When words are said, and how.
        content: The content words.
        rng: The trial's stream for words.
    """
    words: list[Word] = []
    for number in range(len(trial.sarcastic)):
        frames = np.flatnonzero((trial.utterance == number) & np.isfinite(trial.cues["word"]))
        for frame in frames:
            words += _slot(trial, int(frame), content, rng)
        if len(frames) and words:
            mark = "!" if trial.cues["emphasis"][frames].mean() > 0 else "."
            words.append(Word(words[-1].end, words[-1].end + 1, mark))
    return words


def _slot(trial: Latents, frame: int, content: Vocabulary, rng: np.random.Generator) -> list[Word]:
    start = (frame - WORD_FRAMES // 2) / FPS * 1000 + rng.uniform(0, 20)
    middle = start + rng.uniform(120, 160)
    end = middle + rng.uniform(150, 220)
    spans = (
        (start, middle, FUNCTION_WORDS, trial.cues["emphasis"][frame]),
        (middle, end, content, trial.cues["word"][frame]),
    )
    heard = [
        _hear(round(begin), round(until), vocabulary, float(cue), rng)
        for begin, until, vocabulary, cue in spans
    ]
    return [word for word in heard if word is not None]


def _hear(
    start: int, end: int, vocabulary: Vocabulary, cue: float, rng: np.random.Generator
) -> Word | None:
    number = draw(vocabulary, float(np.clip(cue, -CUE_LIMIT, CUE_LIMIT)), rng)
    fate, other, sure = rng.random(), int(rng.integers(len(vocabulary.words))), rng.uniform(0.7, 1)
    if fate < DELETED:
        return None
    if fate < DELETED + SUBSTITUTED:
        return Word(start, end, vocabulary.words[other], round(sure * 0.7, 3))
    return Word(start, end, vocabulary.words[number], round(sure, 3))
