"""The generated Aff-Wild2 data and its layout: what is promised about it, and what it can show."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.affwild2.__main__ import main
from examples.affwild2.dataset import challenge, files, layout
from examples.affwild2.dataset.audio import log_mel, patch_rows, read_audio
from examples.affwild2.dataset.transcript import read_transcript
from examples.affwild2.dataset.video import read_faces
from examples.affwild2.synthetic import ceilings, faces, latents, lexicon, speech, voice
from examples.affwild2.synthetic.generate import make_data
from examples.affwild2.synthetic.latents import FPS, Cue, Floats, Latents, Switches
from tests.support import affwild2

seeds = st.integers(0, 2**32 - 1)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return affwild2.tree(tmp_path_factory)


def _digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".npz"  # a zip archive keeps the time of day
    }


def _truth(root: Path) -> dict[str, dict[str, np.ndarray]]:
    return {path.stem: dict(np.load(path)) for path in sorted((root / "truth").glob("*.npz"))}


# The latent process


@given(seed=seeds, frames=st.integers(1, 90))
def test_switches_change_signs_only(seed: int, frames: int) -> None:
    plain = latents.simulate(frames, Switches(0.0, 1e-9), _generator(seed))
    flipped = latents.simulate(frames, Switches(1.0, 1.0), _generator(seed))
    np.testing.assert_array_equal(plain.affect, flipped.affect)
    np.testing.assert_array_equal(plain.labels, flipped.labels)
    np.testing.assert_array_equal(plain.utterance, flipped.utterance)
    assert not plain.sarcastic.any()
    assert flipped.sarcastic.all()
    assert (plain.polarity, flipped.polarity) == (1, -1)
    for name, cue in plain.cues.items():
        sign = -1 if name in {"word", "timbre"} else 1
        np.testing.assert_array_equal(sign * cue, flipped.cues[name])


@given(seed=seeds, frames=st.integers(1, 200))
def test_cues_are_seen_exactly_where_nothing_hides_them(seed: int, frames: int) -> None:
    trial = latents.simulate(frames, Switches(), _generator(seed))
    seen = {name: np.isfinite(values) for name, values in trial.cues.items()}
    np.testing.assert_array_equal(seen["mouth"], ~(trial.face_missing | trial.mouth_hidden))
    np.testing.assert_array_equal(seen["eyes"], ~(trial.face_missing | trial.eyes_hidden))
    np.testing.assert_array_equal(seen["energy"], trial.speaking)
    np.testing.assert_array_equal(seen["timbre"], trial.speaking)
    np.testing.assert_array_equal(seen["word"], seen["emphasis"])
    assert not (seen["word"] & ~trial.speaking).any()
    assert np.abs(trial.labels).max() <= 1
    assert len(trial.sarcastic) == trial.utterance.max() + 1


def test_feelings_and_noises_have_their_spread() -> None:
    trials = [latents.simulate(450, Switches(0, 0), _generator(seed)) for seed in range(300)]
    affect = np.concatenate([trial.affect for trial in trials])
    assert affect.std(0) == pytest.approx([(0.40**2 + 0.25**2) ** 0.5] * 2, abs=0.02)
    steps = np.concatenate([np.diff(trial.affect, axis=0) for trial in trials])
    lag = 3**0.5 / (2.0 * FPS)
    jump = 0.40 * (2 * (1 - (1 + lag) * np.exp(-lag))) ** 0.5
    assert steps.std(0) == pytest.approx([jump, jump], rel=0.03)
    rated = np.concatenate([trial.labels - np.clip(trial.affect, -1, 1) for trial in trials])
    assert 0.07 < rated.std() < 0.11  # four raters of 0.16, and their delays
    for name, cue in latents.CUES.items():
        error = np.concatenate([t.cues[name] - t.affect[:, cue.of] for t in trials])
        quiet = ~np.concatenate([t.speaking for t in trials]) if cue.modality == "V" else ...
        spread = (cue.white**2 + cue.slow**2 + cue.bias**2) ** 0.5
        assert np.nanstd(error[quiet]) == pytest.approx(spread, rel=0.06), name


def test_a_probability_is_asked_of_a_switch() -> None:
    with pytest.raises(ValueError, match=r"make-data: sarcasm is a probability, found 1\.5"):
        Switches(sarcasm=1.5)


# The ceilings


def _kalman_smoother(trial: Latents, cues: dict[str, Cue], names: list[str]) -> Floats:
    """The naive twin: a Kalman filter and an RTS smoother over all states, frame by frame."""
    rate, dt = 3**0.5 / 2.0, 1 / FPS
    step = np.exp(-rate * dt) * np.array([[1 + rate * dt, dt], [-(rate**2) * dt, 1 - rate * dt]])
    keep = np.exp(-dt / np.array([cues[n].tau for n in names]))
    size = 6 + 2 * len(names)
    transition = np.eye(size)
    transition[:2, :2] = transition[2:4, 2:4] = step
    transition[range(6, 6 + len(names)), range(6, 6 + len(names))] = keep
    slow, bias = [cues[n].slow ** 2 for n in names], [cues[n].bias ** 2 for n in names]
    cov = np.diag([1.0, rate**2, 1.0, rate**2, 1.0, 1.0, *slow, *bias])
    noise = cov - transition @ cov @ transition.T
    feel = np.zeros((2, size))
    feel[0, [0, 4]] = 0.40, 0.25
    feel[1, [0, 2, 5]] = 0.40 * 0.25, 0.40 * (1 - 0.25**2) ** 0.5, 0.25
    mean = np.zeros(size)
    filtered, predicted = [], []
    for t in range(len(trial.labels)):
        if t:
            mean, cov = transition @ mean, transition @ cov @ transition.T + noise
        predicted.append((mean, cov))
        for i, name in enumerate(names):
            value = trial.cues[name][t]
            if np.isfinite(value):
                row = feel[cues[name].of].copy()
                row[6 + i] = row[6 + len(names) + i] = 1
                white = cues[name].white * (cues[name].speaking if trial.speaking[t] else 1)
                gain = cov @ row / (row @ cov @ row + white**2)
                mean, cov = mean + gain * (value - row @ mean), cov - np.outer(gain, row @ cov)
        filtered.append((mean, cov))
    smooth = [filtered[-1][0]]
    for (now, spread), (ahead, wide) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        back = spread @ transition.T @ np.linalg.pinv(wide, hermitian=True)  # a bias may be none
        smooth.append(now + back @ (smooth[-1] - ahead))
    return np.stack(smooth[::-1]) @ feel.T


@given(seed=seeds)
def test_blind_reading_is_the_kalman_smoother(seed: int) -> None:
    switches = Switches(0.25, 0.5)
    trial = latents.simulate(40, switches, _generator(seed))
    readings = ceilings._readings(trial, switches)
    cues = latents.cues_for(switches)
    for subset in ceilings.SUBSETS:
        names = [name for name, cue in cues.items() if cue.modality in subset]
        expected = _kalman_smoother(trial, cues, names)
        np.testing.assert_allclose(readings["blind", "+".join(subset)], expected, atol=1e-8)


@given(seed=seeds, groups=st.integers(1, 5), given_first=st.booleans())
def test_expected_signs_are_those_of_the_enumeration(
    seed: int, groups: int, given_first: bool
) -> None:
    rng = _generator(seed)
    factor = rng.standard_normal((groups + 1, groups + 1))
    energy, prior = factor @ factor.T, rng.uniform(0.1, 0.9, groups + 1)
    given = np.full(groups + 1, np.nan)
    given[0], free = 1.0, list(range(1, groups + 1))
    if given_first:
        given[free.pop(0)] = -1.0
    total, weighted = 0.0, np.zeros(groups + 1)
    for code in np.ndindex(*[2] * len(free)):
        signs = given.copy()
        signs[free] = [1 - 2 * bit for bit in code]
        flips = [prior[g] if bit else 1 - prior[g] for g, bit in zip(free, code, strict=True)]
        weight = np.prod(flips) * np.exp(-0.5 * signs @ energy @ signs)
        total, weighted = total + weight, weighted + weight * signs
    expected = weighted / total
    np.testing.assert_allclose(ceilings._expected_signs(energy, given, prior), expected, atol=1e-9)


def test_ceilings_say_what_each_fusion_can_reach() -> None:
    table = ceilings.ceilings(16, seconds=20, switches=Switches(0.25, 0.5), seed=1)["valence"]
    whole = "V+A+T"
    best_single = max(table["achievable"][m] for m in "VAT")
    assert table["achievable"][whole] > best_single + 0.05
    assert table["achievable"][whole] > table["late"][whole] + 0.03
    assert table["known"][whole] >= table["achievable"][whole] - 0.01
    assert table["achievable"][whole] >= table["hidden"][whole] - 0.01
    plain = ceilings.ceilings(4, seconds=10, switches=Switches(0, 0))
    for target in ceilings.TARGETS:
        assert plain[target]["known"] == pytest.approx(plain[target]["hidden"])
        assert plain[target]["known"] == pytest.approx(plain[target]["blind"])


# Drawing, sounding, spelling


def _readable(inputs: Floats, cue: Floats) -> float:
    """R² on a quarter of the frames of a ridge regression on the others."""
    order = _generator(0).permutation(len(cue))
    train, test = np.split(order, [3 * len(order) // 4])
    scaled = (inputs - inputs[train].mean(0)) / (inputs[train].std(0) + 1e-3)
    middle = cue[train].mean()
    kernel = scaled[train] @ scaled[train].T
    penalty = 0.01 * len(train) * np.eye(len(train))
    weights = np.linalg.solve(kernel + penalty, cue[train] - middle)
    error = scaled[test] @ (scaled[train].T @ weights) + middle - cue[test]
    return float(1 - (error**2).mean() / cue[test].var())


def test_cues_can_be_read_from_the_pixels(tree: Path) -> None:
    inputs: dict[str, list[Floats]] = {"mouth": [], "eyes": []}
    cues: dict[str, list[Floats]] = {"mouth": [], "eyes": []}
    for name, truth in _truth(tree).items():
        pictures = read_faces(tree / "cropped_aligned" / name, np.arange(len(truth["labels"])))
        for cue in inputs:
            seen = np.isfinite(truth[f"cue_{cue}"])
            rows = slice(27, 48) if cue == "mouth" else slice(0, 48)  # not the brows' valence
            inputs[cue].append(pictures.pixels[seen, rows].mean(-1).reshape(seen.sum(), -1))
            cues[cue].append(np.clip(truth[f"cue_{cue}"][seen], -faces.CUE_LIMIT, faces.CUE_LIMIT))
    for cue in inputs:
        assert _readable(np.concatenate(inputs[cue]), np.concatenate(cues[cue])) >= 0.9, cue


def test_cues_can_be_read_from_the_sound(tree: Path) -> None:
    inputs: list[Floats] = []
    cues: list[Floats] = []
    for name, truth in _truth(tree).items():
        if truth["heard"]:
            mel = log_mel(read_audio(tree / "audio" / f"{name.removesuffix('_left')}.wav"))
            rows = patch_rows(len(mel), FPS, len(truth["labels"]))
            heard = np.isfinite(truth["cue_energy"])
            heard[-15:] = False  # a video may be half a second shorter than its labels
            inputs.append(mel[rows[heard, None] + np.arange(5)].mean(1))
            both = np.stack([truth["cue_energy"][heard], truth["cue_timbre"][heard]], 1)
            cues.append(np.clip(both, -voice.CUE_LIMIT, voice.CUE_LIMIT))
    for column, cue in enumerate(("energy", "timbre")):
        found = _readable(np.concatenate(inputs), np.concatenate(cues)[:, column])
        assert found >= 0.9, cue


@given(seed=seeds)
def test_sarcasm_is_a_nasal_band_of_the_voice(seed: int) -> None:
    trials = [latents.simulate(60, Switches(q, 0.5), _generator(seed)) for q in (0, 1)]
    plain, nasal = (
        voice.draw_voice(t, voice.draw_syllables(t), _generator(seed)).astype(float) for t in trials
    )
    hertz = np.fft.rfftfreq(len(plain), 1 / voice.RATE)
    band, rest = (hertz > 950) & (hertz < 1350), (hertz > 200) & (hertz < 800)

    def share(sound: Floats) -> float:
        power = np.abs(np.fft.rfft(sound)) ** 2
        return float(10 * np.log10(power[band].sum() / power[rest].sum()))

    if trials[0].speaking.mean() > 0.3:
        assert share(nasal) > share(plain) + 2


@given(seed=seeds)
def test_words_lie_in_their_utterance_and_mean_what_the_cue_says(seed: int) -> None:
    trial = latents.simulate(300, Switches(), _generator(seed))
    words = speech.draw_words(trial, lexicon.content_words(), _generator(seed))
    spoken = [word for word in words if word.text not in {".", "!"}]
    times = [(word.start, word.end) for word in spoken]
    assert times == sorted(times)
    for word in spoken:
        assert 100 <= word.end - word.start <= 350
        assert trial.speaking[int((word.start + word.end) / 2 / 1000 * FPS)]
    slots = np.flatnonzero(np.isfinite(trial.cues["word"]))
    assert len(spoken) <= 2 * len(slots)
    assert (len(slots) == 0) == (not words)
    middles = (slots - latents.WORD_FRAMES / 2) / FPS * 1000
    vocabularies = (
        ("word", lexicon.content_words(), middles + 150),
        ("emphasis", lexicon.FUNCTION_WORDS, middles + 10),
    )
    for cue, vocabulary, starts in vocabularies:
        values = dict(zip(vocabulary.words, vocabulary.values, strict=True))
        for word in spoken:
            if word.text in values and word.confidence > 0.7:  # the others were misheard
                said = trial.cues[cue][slots[np.abs(starts - word.start).argmin()]]
                assert abs(values[word.text] - np.clip(said, -1, 1)) < 1.2  # six deviations


@given(seed=seeds, cue=st.sampled_from([-1.6, -0.7, 0.0, 0.4, 1.0, 1.6]))
def test_a_drawn_word_is_near_its_cue(seed: int, cue: float) -> None:
    rng, words = _generator(seed), lexicon.content_words()
    drawn = np.array([words.values[lexicon.draw(words, cue, rng)] for _ in range(60)])
    assert drawn.mean() == pytest.approx(np.clip(cue, -0.95, 0.95), abs=0.15)


def test_the_lexicon_has_a_word_once() -> None:
    words = lexicon.content_words().words
    assert len(words) == len(set(words)) == 120
    assert len(lexicon.FUNCTION_WORDS.words) == len(set(lexicon.FUNCTION_WORDS.words)) == 60
    assert not set(words) & set(lexicon.FUNCTION_WORDS.words)


@pytest.mark.skipif(
    importlib.util.find_spec("vaderSentiment") is not None, reason="vaderSentiment is installed"
)
def test_vader_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="--lexicon vader needs 'pip install vaderSentiment'"):
        lexicon.content_words("vader")


def test_vaders_scores_become_values(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"good": 1.9, "worst": -3.1, ":-)": 1.3, "great": 4.0}
    vader = types.ModuleType("vaderSentiment.vaderSentiment")
    analyzer = types.SimpleNamespace(lexicon=scores)
    monkeypatch.setattr(vader, "SentimentIntensityAnalyzer", lambda: analyzer, raising=False)
    monkeypatch.setitem(sys.modules, vader.__name__, vader)
    words = lexicon.content_words("vader")
    assert words.words == ("good", "worst", "great")
    np.testing.assert_allclose(words.values, [0.475, -0.775, 1.0])


def test_an_unknown_lexicon_is_named() -> None:
    with pytest.raises(ValueError, match="the lexicon is 'own' or 'vader', found 'other'"):
        lexicon.content_words("other")


# The tree


def test_the_same_seed_makes_the_same_tree(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again, first = _digest(affwild2.tree(tmp_path_factory, mp4=True)), _digest(tree)
    media = {"audio", "videos", str(layout.FRAME_RATES)}
    same = {name for name in first if name.split("/")[0] not in media}
    assert {name for name in again if name.split("/")[0] not in media} == same
    assert all(first[name] == again[name] for name in same)
    truth = _truth(affwild2.tree(tmp_path_factory, mp4=True))
    for name, arrays in _truth(tree).items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(value, truth[name][key])


@given(seed=seeds)
def test_the_same_seed_makes_the_same_voice_and_another_one_another(seed: int) -> None:
    def sound(of: int) -> np.ndarray:
        trial = latents.simulate(20, Switches(), _generator(seed))
        return voice.draw_voice(trial, voice.draw_syllables(trial), _generator(of))

    np.testing.assert_array_equal(sound(seed), sound(seed))
    assert len(sound(seed)) == round(20 / FPS * voice.RATE)
    assert not np.array_equal(sound(seed), sound(seed + 1))


def test_the_manifest_has_the_sums_of_the_labels(tree: Path) -> None:
    manifest = json.loads((tree / "MANIFEST.json").read_text())
    assert len(manifest["sha256"]) == 8
    digest = _digest(tree)
    for name, value in manifest["sha256"].items():
        assert digest[name] == value


def test_the_tree_has_every_difficulty(tree: Path) -> None:
    found = layout.resolve(tree)
    assert found.problems == ()
    counts = {p: sum(t.partition == p for t in found.trials) for p in layout.PARTITIONS}
    assert counts == {"train": 6, "validation": 2, "test": 2}
    labels = {t.name: layout.read_annotation(t.labels) for t in found.trials if t.labels}
    truth = _truth(tree)
    assert set(truth) == {t.name for t in found.trials}
    lengths = {name: len(a.values) for name, a in labels.items()}
    assert min(lengths.values()) < 300 < max(lengths.values())
    assert any(not a.valid[0] for a in labels.values()), "no trial begins with -5"
    assert any(a.valid[0] and not a.valid.all() for a in labels.values()), "no gap of -5"
    for trial in found.trials:
        drawn = {int(p.stem) - 1 for p in trial.faces.glob("*.jpg")}
        assert drawn == set(np.flatnonzero(~truth[trial.name]["face_missing"]).tolist())
    longer = [t for t in found.trials if lengths.get(t.name, 0) == found.rates[t.source][1] + 1]
    assert [t.name for t in longer] == ["video3"]
    wanted = challenge.read_sample_lengths(tree / layout.TEST_SAMPLE)
    test = [t for t in found.trials if t.partition == "test"]
    assert sorted(wanted[t.name] - found.rates[t.source][1] for t in test) == [0, 1]
    shared = [t.name for t in found.trials if t.name != t.source]
    assert shared == ["video5_left", "video5_right", "7-15-112x112_right"]
    assert any(t["mouth_hidden"].any() for t in truth.values())
    assert any(t["eyes_hidden"].any() for t in truth.values())
    for trial in found.trials:
        assert trial.transcript is not None
        assert read_transcript(trial.transcript)


def test_labels_are_those_of_the_truth(tree: Path) -> None:
    for name, truth in _truth(tree).items():
        for path in tree.glob(f"6th ABAW Annotations/*/*/{name}.txt"):
            annotation = layout.read_annotation(path)
            valid = annotation.valid
            np.testing.assert_allclose(annotation.values[valid], truth["labels"][valid], atol=1e-6)
            assert (annotation.values[~valid] == -5).all()


def test_a_full_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        make_data(tmp_path)


def test_a_mistake_on_the_command_line_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    monkeypatch.setattr("sys.argv", ["affwild2", "make-data", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="is not empty; name a new folder"):
        main()


# The layout


@pytest.mark.parametrize(
    ("trial", "source"),
    [
        ("video10_1_left", "video10_1"),
        ("video59", "video59"),
        ("video59_right", "video59"),
        ("10-60-1280x720_right", "10-60-1280x720"),
        ("video2_left", "video2"),
        ("turn_left", "turn_left"),
        ("alone_right", "alone_right"),
    ],
)
def test_a_suffix_is_stripped_where_a_video_remains(trial: str, source: str) -> None:
    videos = {"video10_1", "video10", "video59", "10-60-1280x720", "video2", "turn_left", "turn"}
    assert layout.source_of(trial, videos) == source


def test_both_spellings_of_the_annotations_are_read(tmp_path: Path) -> None:
    for official, authors in layout.ANNOTATIONS.values():
        for i, folder in enumerate((official, authors)):
            path = tmp_path / str(i) / folder / f"{Path(folder).name}.txt"
            path.parent.mkdir(parents=True)
            path.write_text("valence,arousal\n0.1,-0.2\n")
    for i in (0, 1):
        found = layout.resolve(tmp_path / str(i))
        assert [trial.partition for trial in found.trials] == ["train", "validation"]
        assert "no test trials" in found.missing[0]


def test_a_trial_in_two_partitions_is_kept_in_the_first(tmp_path: Path) -> None:
    for official, _ in layout.ANNOTATIONS.values():
        (tmp_path / official).mkdir(parents=True)
        (tmp_path / official / "video1.txt").write_text("valence,arousal\n0,0\n")
    found = layout.resolve(tmp_path)
    assert [trial.partition for trial in found.trials] == ["train"]
    assert any("video1 is in train already" in line for line in found.problems)


def test_no_trials_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no trials; expected 6th ABAW Annotations"):
        layout.resolve(tmp_path)
    with pytest.raises(ValueError, match="no such folder; give the folder that holds cropped_ali"):
        layout.resolve(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"arousal,valence\n0,0\n", "line 1 must be 'valence,arousal', found 'arousal,valence'"),
        (b"0.1,0.2\n0,0\n", r"line 1 must be 'valence,arousal', found '0\.1,0\.2'"),
        (b"valence,arousal\n-5,-5\n", "has no valid frame among its 1"),
        (b"valence,arousal\n", "has no valid frame among its 0"),
        (b"\xff\xd8\xff\xe0\x00", "is not a text file"),
    ],
)
def test_a_damaged_annotation_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "trial.txt"
    path.write_bytes(text)
    with pytest.raises(files.DamagedFile, match=message) as caught:
        layout.read_annotation(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_annotation_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(files.DamagedFile, match="cannot be read"):
        layout.read_annotation(tmp_path / "none.txt")


def test_rows_outside_the_range_or_without_numbers_are_invalid(tmp_path: Path) -> None:
    path = tmp_path / "trial.txt"
    rows = ["-0.024,0.279", "-5,-5", "0.1, 0.2", "nan,0.1", "0.5", "1.0,-1.0", "0,-5"]
    rows += ["1.1,0", "-1.1,0", "0,inf"]
    path.write_text("\n".join(["valence, arousal", *rows]))
    annotation = layout.read_annotation(path)
    assert annotation.valid.tolist() == [True, False, True, False, False, True, *[False] * 4]
    problem, outside = annotation.problems
    assert "3 of 10 lines are not two numbers (the first is line 5)" in problem
    assert "2 of 10 lines lie outside of [-1, 1] and are not -5" in outside
    assert "(the first is line 9: '1.1,0'); those frames are left out; is it another" in outside


def test_a_damaged_sample_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "sample.txt"
    path.write_text("video1/00001.jpg,0,0\n")
    with pytest.raises(files.DamagedFile, match="line 1 must be 'image_location,valence,arousal'"):
        challenge.read_sample_lengths(path)


@pytest.mark.parametrize(
    "row", ["video1,0,9", "video1,nan,9", "video1,15", "video1,15,x", "v,15,0"]
)
def test_a_damaged_frame_rate_is_one_line(tmp_path: Path, row: str) -> None:
    folder = tmp_path / layout.ANNOTATIONS["train"][0]
    folder.mkdir(parents=True)
    (folder / "video1.txt").write_text("valence,arousal\n0,0\n")
    (tmp_path / layout.FRAME_RATES).write_text(f"video,fps,frames\n{row}\nvideo2,29.97,5\n")
    found = layout.resolve(tmp_path)
    assert found.rates == {"video2": (29.97, 5)}
    assert any("line 2 must be 'video,fps,frames'" in line for line in found.problems)


def test_a_frame_rate_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    names = tmp_path / layout.TEST_NAMES
    names.parent.mkdir(parents=True)
    names.write_text("video2\n\nvideo1\n")
    (tmp_path / layout.FRAME_RATES).write_bytes(b"\xff\xd8\x00")
    found = layout.resolve(tmp_path)
    assert [trial.name for trial in found.trials] == ["video1", "video2"]
    assert found.rates == {}
    assert f"{tmp_path / layout.FRAME_RATES}: is not a text file" in found.problems


@given(length=st.integers(1, 9), wanted=st.integers(0, 12))
def test_rows_are_cut_or_the_last_one_is_repeated(length: int, wanted: int) -> None:
    rows = np.arange(2 * length).reshape(length, 2)
    fitted = layout.fit_length(rows, wanted)
    assert fitted.shape == (wanted, 2)
    for i in range(wanted):
        assert fitted[i].tolist() == rows[min(i, length - 1)].tolist()


def test_no_row_cannot_be_repeated() -> None:
    with pytest.raises(ValueError, match="there is no row to repeat"):
        layout.fit_length(np.zeros((0, 2)), 3)
