"""A page as a headless Chromium lays it out: what a reader on a telephone or in the dark sees.

Owns finding the browser and asking it. Nothing is fetched: the page is put into a frame of the
width that is asked for, because a window has a least width.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
_PROBE = """
<!doctype html><style>body{margin:0}iframe{border:0;display:block}</style>
<iframe width=%d height=%d srcdoc="%s"></iframe><pre id=seen></pre><script>
window.onload = () => {
  const d = document.querySelector("iframe").contentDocument, w = d.defaultView;
  const box = e => {
    const r = e.getBoundingClientRect();
    return [r.left, r.top, r.right, r.bottom];
  };
  const style = (e, name) => w.getComputedStyle(e)[name];
  const pictures = [...d.querySelectorAll("svg")].map(svg => ({
    title: svg.getAttribute("aria-label"), box: box(svg),
    texts: [...svg.querySelectorAll("text")].map(t => [t.textContent, box(t)]),
    letters: 12 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width,
    ink: svg.querySelector("text") && style(svg.querySelector("text"), "fill"),
    card: style(svg.parentElement, "backgroundColor"),
  }));
  document.getElementById("seen").textContent = JSON.stringify({
    width: d.documentElement.clientWidth, wide: d.documentElement.scrollWidth,
    tall: d.documentElement.scrollHeight, title: d.title,
    ink: style(d.body, "color"), ground: style(d.body, "backgroundColor"), pictures: pictures,
    broken: w.performance.getEntriesByType("resource").length,
  });
};
</script>
"""


def find() -> str | None:
    """The browser's path, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def look(
    page: Path, scratch: Path, *, width: int, dark: bool = False, picture: Path | None = None
) -> dict[str, Any]:
    """What the page looks like at this width, in CSS pixels and colours.

    With `picture` a screenshot is written there as well. Raises AssertionError if the browser
    does not answer.
    """
    browser = find()
    assert browser is not None
    wrapper = scratch / "wrapper.html"
    wrapper.write_text(_PROBE % (width, 2600, escape(page.read_text("utf-8"))), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={scratch / 'profile'}", f"--window-size={max(width, 500)},2600"]
    command += ["--virtual-time-budget=3000", f"--blink-settings=preferredColorScheme={1 - dark}"]
    ask = [*command, "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=90, check=False)
    seen = re.search('<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert seen, done.stderr[-2000:]
    if picture is not None:
        shot = [*command, f"--screenshot={picture}", wrapper.as_uri()]
        subprocess.run(shot, capture_output=True, timeout=90, check=True)
    found: dict[str, Any] = json.loads(unescape(seen[1]))
    return found


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as CSS gives them, 1 to 21 (WCAG 2, relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
