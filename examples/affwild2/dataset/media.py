"""Finds the video, the sound and the transcript of a trial among the files of a tree."""

import re
from pathlib import Path

from examples.affwild2.dataset.scan import Scan
from examples.affwild2.dataset.transcript import is_transcript

VIDEO = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")
SOUND = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".opus")
WORDS = (".csv", ".json", ".tsv", ".vtt", ".srt")  # those with times of words first
LANGUAGE = re.compile(r"\.[a-z]{2,3}(-[A-Za-z]+)?")  # some tools write video.en.vtt
Media = dict[str, dict[str, list[Path]]]


def index_media(found: Scan, problems: list[str]) -> Media:
    """Lists media by suffix and by the name of the video."""
    media: Media = {}
    for path in found.files:
        suffix, name = path.suffix.lower(), path.stem
        if suffix in {*VIDEO, *SOUND, *WORDS}:
            if suffix in WORDS and Path(name).suffix.lower() in {*VIDEO, *SOUND}:
                name = Path(name).stem  # some tools write video.mp4.json
            media.setdefault(suffix, {}).setdefault(name, []).append(path)
            if suffix in WORDS and _has_language(name):
                media[suffix].setdefault(Path(name).stem, []).append(path)
    problems += [
        f"{same[0]}: is used; another file has its name: {same[1]}"
        for suffix in VIDEO
        for same in media.get(suffix, {}).values()
        if len({path.stat().st_size for path in same if path.exists()}) > 1
    ]
    return media


def media_of(
    media: Media, source: str, problems: list[str]
) -> tuple[Path | None, Path | None, Path | None]:
    """Finds the video, the sound and the transcript of a source, the latter by its content."""
    video, sound, words = (
        [path for suffix in suffixes for path in media.get(suffix, {}).get(source, [])]
        for suffixes in (VIDEO, SOUND, WORDS)
    )
    words.sort(key=lambda path: path.stem != source and _has_language(path.stem))
    good = words if len(words) < 2 else [path for path in words if is_transcript(path)]
    if len(good) > 1:
        problems.append(f"{good[0]}: is used; {good[1]} is another transcript of this video")
    return (
        next(iter(video), None),
        next(iter(sound), None),
        next(iter(good or words), None),
    )


def _has_language(name: str) -> bool:
    return LANGUAGE.fullmatch(Path(name).suffix) is not None
