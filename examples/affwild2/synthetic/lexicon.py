"""The language of the generated data: content words with a valence, function words with emphasis.

A speaker picks the content word whose valence lies near the word cue and, before it, the function
word whose emphasis lies near the emphasis cue. The values were set by hand.
"""

import importlib
from dataclasses import dataclass

import numpy as np

from examples.affwild2.synthetic.latents import Floats

CONTENT = {
    -1.00: "horrible terrible dreadful awful agony murder hideous evil",
    -0.85: "hate cruel disaster grief torture vile disgusting misery",
    -0.70: "angry nasty painful rotten sick cry ruined lonely",
    -0.55: "sad ugly hurt fail broken scared bitter lost",
    -0.40: "bad worry wrong upset tired guilty rude hard",
    -0.25: "boring slow cold noise late dull wait messy",
    -0.12: "grey stuck narrow rain empty cheap delay corner",
    0.00: "table paper street number window Tuesday water chair",
    0.12: "simple usual garden lunch evening shoes steady walk",
    0.25: "fine calm warm fresh neat rest easy soft",
    0.40: "good nice clean kind hope safe smile help",
    0.55: "happy lucky sweet fun friend proud cosy gift",
    0.70: "great lovely laugh delight brave sunny beauty cheer",
    0.85: "love amazing superb joy brilliant splendid bliss triumph",
    1.00: "wonderful fantastic perfect marvellous glorious heavenly ecstatic paradise",
}
FUNCTION = {
    -1.0: "maybe slightly somewhat barely",
    -0.7: "perhaps almost rather partly",
    -0.4: "a some quite sort",
    -0.2: "the of in on at by from or",
    0.0: "and it is was that this for with to as he she we they you I there here are be have been",
    0.2: "but then when not just even",
    0.4: "still now more such",
    0.7: "really very truly indeed",
    1.0: "so absolutely totally extremely",
}


@dataclass(frozen=True)
class Vocabulary:
    """Words and the value in [-1, 1] that each one shows."""

    words: tuple[str, ...]
    values: Floats


def draw(vocabulary: Vocabulary, cue: float, rng: np.random.Generator, width: float = 0.2) -> int:
    """Draws the number of a word, with p proportional to exp(-(value - cue)² / 2 width²)."""
    score = -((vocabulary.values - cue) ** 2) / (2 * width**2)
    chance = np.exp(score - score.max())
    return int(rng.choice(len(chance), p=chance / chance.sum()))


def content_words(lexicon: str = "own") -> Vocabulary:
    """Returns the content words: our own hundred and twenty, or those of vaderSentiment.

    Args:
        lexicon: ``"own"``, or ``"vader"`` where the package vaderSentiment is installed.
    """
    if lexicon == "own":
        return _vocabulary(CONTENT)
    if lexicon != "vader":
        raise ValueError(f"make-data: the lexicon is 'own' or 'vader', found {lexicon!r}")
    try:
        vader = importlib.import_module("vaderSentiment.vaderSentiment")
    except ImportError as error:
        raise ValueError("make-data: --lexicon vader needs 'pip install vaderSentiment'") from error
    scores = vader.SentimentIntensityAnalyzer().lexicon
    plain = {word: value / 4 for word, value in scores.items() if word.isascii() and word.isalpha()}
    return Vocabulary(tuple(plain), np.array(list(plain.values())))


def _vocabulary(table: dict[float, str]) -> Vocabulary:
    words = [(word, value) for value, line in table.items() for word in line.split()]
    return Vocabulary(tuple(word for word, _ in words), np.array([value for _, value in words]))


FUNCTION_WORDS = _vocabulary(FUNCTION)
