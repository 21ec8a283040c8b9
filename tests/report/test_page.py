"""A report page is one file: valid, readable, and in need of nothing from anywhere."""

import re
from base64 import b64decode
from html.parser import HTMLParser

import pytest
import torch

from qarvd.report.charts import bar_chart, line_chart, stacked_counts
from qarvd.report.page import Clip, Figure, Picture, render_page
from qarvd.report.png import png_bytes

HOSTILE = "<script>alert('1')</script> & \"quotes\""
VOID = {"meta", "img", "link", "br"}
PNG, MP4 = png_bytes(torch.rand(4, 4)), bytes(range(256))


class Tree(HTMLParser):
    """Checks that tags balance, and collects them with their attributes and texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def page(text: str = "text") -> str:
    return render_page(
        text,
        f"{text}\n\nsecond paragraph",
        [
            {"model": text, "MB": 2842, "correct": 0.98123},
            {"model": "w4a8", "correct": None, "exact": True, text: text},
        ],
        [
            Figure(text, text, line_chart({text: [1, 2]}, text, text)),
            Figure(text, text, bar_chart({text: 3.0}, text)),
            Figure(text, text, stacked_counts({f"blocks.1.{text}": (3, 64)})),
        ],
        [Picture(text, text, PNG)],
        [Clip(text, text, MP4)],
        text,
    )


@pytest.mark.parametrize("text", ["text", HOSTILE, "", "a\nb"])
def test_a_page_is_balanced_html_with_one_heading(text: str) -> None:
    html = page(text)
    tree = Tree(html)
    assert len(tree.all("h1")) == len(tree.all("main")) == html.partition("</head>")[0].count("<title>") == 1


def test_text_is_escaped_wherever_it_goes() -> None:
    html = page(HOSTILE)
    tree = Tree(html)
    assert "<script" not in html.lower() and not tree.all("script")
    assert HOSTILE in tree.said("h1") and HOSTILE in tree.said("td") and HOSTILE in tree.said("caption")
    assert all(not name.startswith("on") for _, attributes in tree.tags for name in attributes)


def test_a_page_needs_nothing_from_anywhere() -> None:
    html = page()
    foreign = re.findall(r"(?:https?:)?//[a-z][^\s\"'<>)]*", re.sub(r"base64,[A-Za-z0-9+/=]*", "", html))
    assert set(foreign) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in html and "url(" not in html
    tree = Tree(html)
    assert not tree.all("link") and not tree.all("iframe")
    for _, attributes in tree.tags:
        for name in ("src", "href", "poster", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in tree.all("meta"))


def test_pictures_and_clips_are_inside_byte_for_byte() -> None:
    tree = Tree(page())
    (image,), (video,) = tree.all("img"), tree.all("video")
    assert b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) == PNG
    assert b64decode((video["src"] or "").removeprefix("data:video/mp4;base64,")) == MP4
    assert {"autoplay", "loop", "muted", "playsinline", "controls"} <= set(video)
    assert image["alt"]


def test_a_table_names_its_rows_and_columns_and_shows_a_dash_for_what_is_missing() -> None:
    tree = Tree(page())
    assert [th["scope"] for th in tree.all("th")] == ["col"] * 5 + ["row"] * 2
    assert tree.said("th") == ["model", "MB", "correct", "exact", "text", "text", "w4a8"]
    dash = "\N{EN DASH}"
    assert tree.said("td") == ["2,842", "0.9812", dash, dash, dash, dash, "yes", "text"]


def test_each_figure_has_its_title_and_caption_and_can_be_scrolled_by_keyboard() -> None:
    tree = Tree(page())
    assert len(tree.all("figure")) == len(tree.all("figcaption")) == len(tree.all("h2")) == 5
    assert len([div for div in tree.all("div") if div.get("tabindex") == "0" and div.get("aria-label")]) == 4


def test_a_page_with_words_only_has_no_empty_sections() -> None:
    tree = Tree(render_page("title", "one\n\n\n\ntwo"))
    assert not tree.all("section") and tree.said("p") == ["one", "two"]


def test_light_and_dark_follow_the_reader() -> None:
    assert "prefers-color-scheme: dark" in page() and "color-scheme: light dark" in page()
