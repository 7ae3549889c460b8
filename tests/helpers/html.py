# SPDX-License-Identifier: Apache-2.0
"""A page of HTML as its reader's browser and screen reader have it, and what every page must keep to."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

EMPTY = {"meta", "img", "path", "circle", "br", "input"}


class Page(HTMLParser):
    """Every element of a page with its attributes, and the text in it; wrong nesting is an AssertionError."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[str]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open, [self.elements[place][0] for place in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])
        if tag not in EMPTY:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag, tag

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.texts[place].append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        """The text in each element of that name, with single spaces."""
        found = [text for (name, _), text in zip(self.elements, self.texts, strict=True) if name == tag]
        return [" ".join("".join(text).split()) for text in found]

    def rows(self, caption: str) -> dict[str, list[str]]:
        """The cells of the table of that caption by the name of their row."""
        places = [
            place
            for place, (tag, _) in enumerate(self.elements)
            if tag == "caption" and "".join(self.texts[place]) == caption
        ]
        assert len(places) == 1, (caption, self.text("caption"))
        rows: dict[str, list[str]] = {}
        name = ""
        for (tag, attributes), text in zip(self.elements[places[0] + 1 :], self.texts[places[0] + 1 :], strict=True):
            if tag == "table":
                break
            if tag == "th" and attributes["scope"] == "row":
                name = "".join(text)
                rows[name] = []
            elif tag == "td":
                rows[name].append("".join(text))
        return rows


def check_page(text: str) -> Page:
    """Checks what holds for every page of a run; returns it."""
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}]
    policies = [one.get("content") for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("href", "xlink:href", "srcset", "action"), (tag, name, value)
            if name == "src":
                assert value is not None
                assert value.startswith("data:image/jpeg;base64,")
    assert not re.search(r"url\(|@import|https?:", text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(level <= before + 1 for before, level in itertools.pairwise(levels)), levels
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    for svg in page.all("svg"):
        if svg.get("aria-hidden") != "true":
            assert svg["role"] == "img"
            assert {*str(svg["aria-labelledby"]).split()} <= set(ids)
    assert len(page.text("desc")) == len([svg for svg in page.all("svg") if svg.get("role")])
    assert all(page.text("desc"))
    assert all(picture["alt"] and picture["width"] and picture["height"] for picture in page.all("img"))
    assert not re.search(r"(?<![a-z])(nan|inf)(?![a-z])", re.sub(r'"data:[^"]*"', "", text))  # as numbers are written
    return page
