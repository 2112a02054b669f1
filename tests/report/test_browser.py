"""report.html in a real browser: from disk, in light and in dark, on a desk and on a phone."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
import sample_report
from PIL import Image

from quantkit.report import read_report, write_pages

PHONE, DESK = 375, 1200
VIEWS = [(width, scheme) for width in (320, PHONE, DESK) for scheme in ("light", "dark")]
# What is wider than the window, or than the part of the page that scrolls by itself.
TOO_WIDE = """[...document.querySelectorAll("body *:not(svg *)")].filter(one =>
    one.getBoundingClientRect().right > innerWidth + 0.5 && !one.closest(".scroll"))
    .map(one => one.outerHTML.slice(0, 80))"""
# Names beside marks that cover each other.
COVERED = """[...document.querySelectorAll("svg")].flatMap(svg => {
    const names = [...svg.querySelectorAll(".name text")].map(name => [name.textContent, name.getBoundingClientRect()])
    return names.flatMap(([one, a], i) => names.slice(i + 1).filter(([other, b]) =>
        a.width && b.width && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(([other, b]) => one + " and " + other))})"""
# Text of plots in pixels.
LETTERS = """[...document.querySelectorAll("svg text")].filter(text => text.getBoundingClientRect().width)
    .map(text => parseFloat(getComputedStyle(text).fontSize) * text.getCTM().a)"""
SHOWN = '[...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height > 50).length'


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    path = browser.find()
    if path is None:
        end = pytest.fail if os.environ.get("QUANTKIT_REQUIRE_BROWSER") == "1" else pytest.skip
        end(f"there is no browser here: none of {', '.join(browser.NAMES)}")
    with browser.Browser(path, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a report with mixes; a folder's name may need quoting in an address."""
    folder = sample_report.write(tmp_path_factory.mktemp("page") / "a report #1", sample_report.optimized)
    return write_pages(read_report(folder), folder)[0]


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_it_is_seen_as_it_should(chromium: browser.Browser, page: Path, width: int, scheme: browser.Scheme) -> None:
    seen = chromium.look(page, width=width, scheme=scheme)
    assert seen.requests == [page.as_uri()]
    assert seen.complaints == []
    assert seen.ask("document.title") == "my-phi-4 on 12.00 GiB"
    assert seen.ask("document.documentElement.scrollWidth") == width
    assert seen.ask(TOO_WIDE) == []
    assert seen.ask(COVERED) == []
    assert seen.ask(SHOWN) == 5
    assert min(seen.ask(LETTERS)) > (8 if width == 320 else 9)
    image = Image.open(io.BytesIO(seen.screenshot)).convert("RGB")
    assert image.width == width and image.height > 2000
    corner = image.getpixel((2, 2))
    assert (min(corner) > 240) if scheme == "light" else (max(corner) < 40)
    assert len(image.getcolors(1 << 24) or []) > 100


def test_it_is_seen_without_its_folder(chromium: browser.Browser, page: Path, tmp_path: Path) -> None:
    """The file alone, as it is mailed."""
    alone = tmp_path / "report.html"
    alone.write_bytes(page.read_bytes())
    seen = chromium.look(alone)
    assert (seen.requests, seen.complaints) == ([alone.as_uri()], [])


# What is wrong with a page: where that is seen.
FAULTS = {
    '<img src="http://127.0.0.1:9/x.png">': "requests",
    '<link rel="stylesheet" href="file:///nothing.css">': "requests",
    '<script>console.error("a complaint")</script>': "complaints",
    '<script>throw new Error("a complaint")</script>': "complaints",
    '<p style="width: 2000px">wide</p>': "too wide",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_would_be_seen(chromium: browser.Browser, page: Path, tmp_path: Path, fault: str) -> None:
    """Of a page without the policy that already keeps most of it from happening."""
    spoilt = tmp_path / "spoilt.html"
    policy, text = "Content-Security-Policy", page.read_text()
    assert policy in text
    spoilt.write_text(text.replace(policy, "x").replace("</main>", f"{fault}</main>"))
    seen = chromium.look(spoilt, width=PHONE)
    assert (len(seen.requests) > 1) == (FAULTS[fault] == "requests")
    assert bool(seen.ask(TOO_WIDE)) == (FAULTS[fault] == "too wide")
    assert seen.complaints or FAULTS[fault] != "complaints"


def test_the_policy_keeps_scripts_and_requests_out(chromium: browser.Browser, page: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.html"
    script = '<script>document.title = "obeyed"</script><img src="http://127.0.0.1:9/x.png">'
    spoilt.write_text(page.read_text().replace("</main>", f"{script}</main>"))
    seen = chromium.look(spoilt)
    assert seen.ask("document.title") == "my-phi-4 on 12.00 GiB"
    assert len(seen.complaints) == 2 and all("Content Security Policy" in complaint for complaint in seen.complaints)
