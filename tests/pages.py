"""Pages of reports in headless Chromium: what holds for each of them."""

import base64
import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (360, 1280)
SCHEMES = ("light", "dark")


@contextlib.contextmanager
def chromium() -> Iterator:
    """A browser; skips the test if this machine has none."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; .ci/run installs one")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, path: Path, width: int = 1280, scheme: str = "light") -> Iterator:
    """The page, loaded offline: whole, without errors or requests, as wide as the window, in the scheme's colours.

    Errors and requests while it is used count too.
    """
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
    )
    page.goto(path.as_uri())
    assert page.evaluate("[...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll inside their own box
    ink, paper = (
        page.evaluate(f"parseInt(getComputedStyle(document.body).{name}.slice(4))")  # the red of rgb(...)
        for name in ("color", "backgroundColor")
    )
    assert (ink < paper) == (scheme == "light")
    yield page
    assert not problems
    context.close()


def names_outside(path: Path) -> set[str]:
    """What the page and its drawings refer to outside themselves."""
    text = path.read_text(encoding="utf-8")
    drawings = [base64.b64decode(code).decode() for code in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)]
    assert drawings
    named = re.findall(
        r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import\s+(\S+)""", "\n".join([text, *drawings])
    )
    return {name for names in named for name in names if name and not name.startswith(("data:", "#"))}
