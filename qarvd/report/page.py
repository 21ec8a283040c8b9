"""A report as one HTML page that carries its charts, pictures and videos inside it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .css import CSS
from .numerals import number_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
"""Lets the page load nothing from anywhere, whatever is written into it."""
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Figure:
    """A chart; `svg` is markup and goes into the page as it is, such as the functions of `charts` return it."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Picture:
    """A picture; `png` is the content of a PNG file."""

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Clip:
    """A short looping video; `mp4` is the content of an mp4 file."""

    title: str
    caption: str
    mp4: bytes


@dataclass(frozen=True)
class Table:
    """Rows of the same keys, of which the first names the row; `folded` hides them until they are asked for."""

    caption: str
    rows: Sequence[Mapping[str, object]]
    folded: bool = False


@dataclass(frozen=True)
class Chapter:
    """A part of a page with a heading of its own; a blank line in `text` starts a paragraph."""

    title: str
    text: str
    parts: Sequence[Figure | Picture | Clip | Table]


def render_page(
    title: str,
    summary: str,
    table: Sequence[Mapping[str, object]] = (),
    figures: Sequence[Figure] = (),
    pictures: Sequence[Picture] = (),
    clips: Sequence[Clip] = (),
    table_caption: str = "Results",
    chapters: Sequence[Chapter] = (),
) -> str:
    """The page; a blank line in `summary` starts a paragraph, and each mapping of `table` is a row of it."""
    sections = [
        f'<section class="card">{_table(table, table_caption)}</section>' if table else "",
        _section((_figure(clip) for clip in clips), "grid small"),
        _section(_figure(figure) for figure in figures),
        *(_section([_figure(picture)]) for picture in pictures),
        *(_chapter(chapter) for chapter in chapters),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1>{_paragraphs(summary)}</header>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(cards: Iterable[str], kind: str = "grid") -> str:
    inside = "\n".join(cards)
    return f'<section class="{kind}">\n{inside}\n</section>' if inside else ""


def _chapter(chapter: Chapter) -> str:
    parts = "\n".join(_folded(part) if isinstance(part, Table) else _figure(part, "h3") for part in chapter.parts)
    grid = f'<div class="grid even">\n{parts}\n</div>\n' if parts else ""
    return f'<section class="chapter">\n<h2>{escape(chapter.title)}</h2>{_paragraphs(chapter.text)}\n{grid}</section>'


def _folded(table: Table) -> str:
    markup = _table(table.rows, table.caption)
    if table.folded:
        markup = f"<details><summary>{escape(table.caption)}</summary>{markup}</details>"
    return f'<div class="card whole">{markup}</div>'


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _figure(what: Figure | Picture | Clip, heading: str = "h2") -> str:
    caption = f"<p>{escape(what.caption)}</p>" if what.caption else ""
    title = f"<{heading}>{escape(what.title)}</{heading}>"
    return f"<figure><figcaption>{title}{caption}</figcaption>{_content(what)}</figure>"


def _content(what: Figure | Picture | Clip) -> str:
    if isinstance(what, Figure):
        return _scroll(what.title, what.svg)
    return _image(what) if isinstance(what, Picture) else _video(what)


def _scroll(name: str, content: str) -> str:
    """What may be wider than a small screen; it can be scrolled by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{content}</div>'


def _image(picture: Picture) -> str:
    return f'<img src="{_data("image/png", picture.png)}" alt="{escape(picture.caption or picture.title)}">'


def _video(clip: Clip) -> str:
    source = _data("video/mp4", clip.mp4)
    return f'<video src="{source}" aria-label="{escape(clip.title)}" autoplay loop muted playsinline controls></video>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"


def _table(rows: Sequence[Mapping[str, object]], caption: str) -> str:
    """The first column names the rows; the columns are all keys, in the order they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {column for column in columns[1:] if any(_is_number(row.get(column)) for row in rows)}
    kind = {column: ' class="number"' if column in numeric else "" for column in columns}
    head = "".join(f'<th scope="col"{kind[column]}>{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{_cell(row.get(columns[0]))}</th>'
        + "".join(f"<td{kind[column]}>{_cell(row.get(column))}</td>" for column in columns[1:])
        + "</tr>\n"
        for row in rows
    )
    markup = (
        f"<table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    )
    return _scroll(caption, markup)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return number_text(value) if isinstance(value, float) else escape(str(value))
