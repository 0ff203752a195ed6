"""Turns words with times into one vector, or one number, per video frame.

Times are in ms. The frame at time t takes the word with ``start < t <= end`` (the first if
several), else nothing: index -1. Word vectors are kept once per word and gathered per frame.
"""

import importlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from examples.affwild2.dataset.transcript import Word

Floats = NDArray[np.float32]
BUCKETS = 1024
MAX_PIECES = 254  # 256 tokens less [CLS] and [SEP]
PAUSE = 700.0  # ms of silence that end a sentence where nobody wrote a full stop
PUNCTUATION = re.compile(r"[.!?]+$")


def align(words: Sequence[Word], times: NDArray[np.float64]) -> NDArray[np.int32]:
    """Finds the word said at each time, -1 where there is none.

    Args:
        words: In any order; the first of several that fit wins.
        times: In ms, (T,).
    """
    index = np.full(len(times), -1, np.int32)
    for i in reversed(range(len(words))):
        index[(words[i].start < times) & (times <= words[i].end)] = i
    return index


def gather_words(vectors: Floats, index: NDArray[np.int32]) -> Floats:
    """Gathers word vectors per frame, zeros where there is no word: (n, d), (T,) -> (T, d)."""
    made = np.zeros((len(index), vectors.shape[1]), vectors.dtype)
    spoken = index >= 0
    made[spoken] = vectors[index[spoken]]
    return made


def hash_words(words: Sequence[Word], buckets: int = BUCKETS) -> NDArray[np.int64]:
    """Numbers words 1 to ``buckets`` by a checksum of their letters; 0 is for no word."""
    plain = (re.sub(r"[^a-z']", "", word.text.lower()) for word in words)
    return np.array([1 + zlib.crc32(w.encode()) % buckets if w else 0 for w in plain], np.int64)


def sentences(words: Sequence[Word], sizes: Sequence[int] | None = None) -> Iterator[slice]:
    """Splits words into sentences: after ., ! or ?, at long pauses, and before they grow too long.

    Args:
        words: In the order in which they are said.
        sizes: Word-pieces of each word; a sentence holds at most 254. ``None`` counts one each.
    """
    start, pieces = 0, 0
    for i in range(len(words)):
        size = 1 if sizes is None else sizes[i]
        pause = i > start and words[i].start - words[i - 1].end > PAUSE
        ended = i > start and PUNCTUATION.search(words[i - 1].text) is not None
        if pause or ended or (i > start and pieces + size > MAX_PIECES):
            yield slice(start, i)
            start, pieces = i, 0
        pieces += size
    if words:
        yield slice(start, len(words))


class BertWords:
    """Computes word vectors with any BERT: the sum of the last four hidden states, word-piece mean.

    Args:
        model: A local folder or a name on the hub, for instance ``bert-base-uncased``.

    Raises:
        ValueError: There is no such model, or transformers is not installed.
    """

    def __init__(self, model: str) -> None:
        transformers = _require("transformers", "--bert")
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
            self._model: Any = transformers.AutoModel.from_pretrained(model).eval()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"extract: --bert {model} is neither a folder with a BERT nor one on the hub"
            ) from error
        self.dim: int = self._model.config.hidden_size

    def embed(self, words: Sequence[Word]) -> Floats:
        """Returns one vector per word, each sentence read as a whole: (n, d)."""
        pieces = [len(self._tokenizer.tokenize(word.text)) for word in words]
        vectors = np.zeros((len(words), self.dim), np.float32)
        for sentence in sentences(words, pieces):
            vectors[sentence] = self._embed_sentence([word.text for word in words[sentence]])
        return vectors

    @torch.inference_mode()
    def _embed_sentence(self, texts: list[str]) -> Floats:
        tokens = self._tokenizer(
            texts, is_split_into_words=True, truncation=True, max_length=256, return_tensors="pt"
        )
        states = self._model(**tokens, output_hidden_states=True).hidden_states
        summed = torch.stack(states[-4:]).sum(0)[0].numpy()
        owner = np.array([-1 if w is None else w for w in tokens.word_ids()])
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for word in np.unique(owner[owner >= 0]):
            vectors[word] = summed[owner == word].mean(axis=0)
        return vectors


def recognise(samples: NDArray[np.int16]) -> list[Word]:
    """Recognises English speech at 16 kHz with pocketsphinx, the last words included.

    Raises:
        ValueError: pocketsphinx is not installed.
    """
    decoder = _require("pocketsphinx", "--asr").Decoder(samprate=16_000, loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
    decoder.end_utt()
    return [
        Word(part.start_frame * 10.0, (part.end_frame + 1) * 10.0, text, min(1.0, part.prob))
        for part in decoder.seg() or ()
        if not (text := re.sub(r"\(\d+\)$", "", part.word)).startswith(("<", "["))
    ]


def _require(package: str, option: str) -> Any:  # noqa: ANN401  # a module
    """Imports a package that only one option needs."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"extract: {option} needs 'pip install {package}'") from error
