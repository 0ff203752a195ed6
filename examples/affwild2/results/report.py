"""Writes a run's report: one HTML file with everything in it, pictures included."""

import base64
import html
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from examples.affwild2.dataset.files import whole
from examples.affwild2.results.plots import WIDE
from examples.affwild2.results.table import Row, Table

PACKAGES = ("crossfuse", "torch", "numpy", "accelerate", "matplotlib", "pillow", "av")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#22303c;max-width:64rem;
margin:2rem auto;padding:0 1rem}
h1{line-height:1.2}h2{margin-top:2.4rem;border-bottom:1px solid #d8dee4}
table{border-collapse:separate;border-spacing:0;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .8rem;border-bottom:1px solid #e6eaee;text-align:right}
th{vertical-align:bottom}th:first-child,td:first-child{text-align:left;min-width:9rem;
position:sticky;left:0;background:#fff}tr.ours{font-weight:600}
th.paper{white-space:nowrap}td.paper,th.paper{color:#5b6976;border-left:2px solid #d8dee4}
td.value{text-align:left}
figure{margin:1.6rem 0}figcaption{color:#52616e}.note{background:#f4f6f8;padding:.7rem 1rem}
.wide{overflow-x:auto}
@media(prefers-color-scheme:dark){:root{color-scheme:dark}body{color:#d5dde4;background:#14191e}
h2,th,td,td.paper,th.paper{border-color:#36414b}th:first-child,td:first-child{background:#14191e}
td.paper,th.paper,figcaption{color:#9aa8b5}.note{background:#1f272e}img{background:#fff}}
@media(max-width:40rem){img{width:36rem}h1{font-size:1.6rem}
th,td{padding:.25rem .45rem}ul{padding-left:1.2rem}}
"""

GENERATED = (
    "All results below are on <b>generated</b> data in the layout of Aff-Wild2. The grey column "
    "quotes the paper, on Aff-Wild2 itself: other data; never compare across that line. A ceiling "
    "is the correlation that the best possible model reaches with what the row sees, computed from "
    "how the data was made."
)
REAL = (
    "The grey column quotes the paper. Its fusion is the best of several folds of Aff-Wild2, its "
    "single modality is quoted there from elsewhere: beside a score on the official split, or on "
    "other data, neither is a comparison."
)


def write_report(
    path: Path,
    table: Table,
    pictures: Sequence[tuple[Path, str]],
    settings: Mapping[str, object],
    *,
    note: str | None = None,
) -> None:
    """Writes the report.

    Args:
        path: The HTML file.
        table: Its numbers.
        pictures: PNG files and what is to be seen on each.
        settings: How the run was made.
        note: What a reader must know first.
    """
    generated = all(row.data in table.ceilings for row in table.rows)
    sections = [
        _paragraph(GENERATED if generated else REAL),
        *([] if note is None else [_paragraph(html.escape(note))]),
    ]
    for heading, rows in table.groups():
        sections += [f"<h2>{html.escape(heading[0].upper() + heading[1:])}</h2>", _table(rows)]
    if pictures:
        sections.append("<h2>Pictures</h2>")
    sections += [_figure(picture, caption) for picture, caption in pictures]
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    sections += ["<h2>Settings</h2>", _pairs(settings)]
    sections += ["<h2>The preset of all networks</h2>", _pairs(table.preset)]
    sections += ["<h2>Versions</h2>", _pairs(versions)]
    title = "Valence and arousal from faces, voices and words"
    with whole(path) as partial:
        partial.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
            f"<style>{STYLE}</style></head><body><h1>{title}</h1>{''.join(sections)}</body></html>\n",
            encoding="utf-8",
        )


def _table(rows: Sequence[Row]) -> str:
    head = (
        "<tr><th>method</th><th>CCC</th><th>spread</th><th>runs</th><th>ceiling</th>"
        '<th class="paper">paper, on Aff-Wild2<br>(fusion: its best fold)</th></tr>'
    )
    body = "".join(
        f"<tr{' class=ours' if row.ours else ''}>"
        f"<td>{html.escape(row.title)}</td><td>{row.mean:.3f}</td>"
        f"<td>{_number(row.spread if len(row.runs) > 1 else None, 3)}</td>"
        f"<td>{len(row.runs)}</td><td>{_number(row.ceiling, 2)}</td>"
        f'<td class="paper">{_number(row.paper, 3)}</td></tr>'
        for row in rows
    )
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _figure(picture: Path, caption: str) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><div class="wide"><img alt="{text}" width="{WIDE * 96}" '
        f'src="data:image/png;base64,{data}"></div><figcaption>'
        f"{text}</figcaption></figure>"
    )


def _paragraph(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _pairs(values: Mapping[str, object]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(str(key))}</td><td class="value">{html.escape(str(value))}</td></tr>'
        for key, value in values.items()
    )
    return f'<div class="wide"><table>{rows}</table></div>'
