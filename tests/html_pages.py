"""A strict reader of our pages: tags close in order, nothing is loaded, nothing runs."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "line", "polyline"}


class Checker(HTMLParser):
    """Fails on tags that do not close in order, and collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.images: list[bytes] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [tag] if tag in ("script", "link", "iframe", "object", "base", "form") else []
        for name, value in attrs:
            prefix = "data:image/png;base64,"
            if name == "src" and (value or "").startswith(prefix):
                self.images.append(base64.b64decode((value or "").removeprefix(prefix)))
            elif name in ("src", "href", "srcset", "action") or name.startswith("on"):
                self.loads.append(f"{name}={value}")
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert checker.loads == []
    assert "url(" not in page
    assert "@import" not in page
    return checker
