"""The built site in headless Chromium: no error in its console, and no horizontal scroll.

``sphinx-build -b html docs docs/_build/html`` builds the site first.
"""

import html
import json
import re
from pathlib import Path

import pytest
from helpers.browser import needs_chromium, run_chromium

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
PAGES = sorted(path for path in SITE.glob("*.html") if path.stem not in ("genindex", "search"))
# Pages load one after the other in a frame, whose width is that of a phone or a desktop.
MEASURE = """<!doctype html><body><pre id="result"></pre><script>
const measure = (url, width) => new Promise(done => {
  const frame = document.body.appendChild(document.createElement("iframe"));
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  frame.onload = () => {
    const page = frame.contentDocument.documentElement;
    done([url.split("/").at(-1), width, page.scrollWidth - page.clientWidth]);
    frame.remove();
  };
  frame.src = url;
});
(async () => {
  const result = [];
  for (const url of PAGES) for (const width of [390, 1280]) result.push(await measure(url, width));
  document.getElementById("result").textContent = JSON.stringify(result);
})();
</script></body>"""


@needs_chromium
@pytest.mark.slow
@pytest.mark.skipif(not PAGES, reason="the site is not built")
def test_site_fits_phone_and_desktop_without_errors(tmp_path):
    wrapper = tmp_path / "wrapper.html"
    addresses = json.dumps([page.as_uri() for page in PAGES])
    wrapper.write_text(MEASURE.replace("PAGES", addresses))
    options = ("--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=120000")
    dom, errors = run_chromium(wrapper, *options, profile=tmp_path / "profile")
    measured = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', dom)[1]))
    assert len(measured) == 2 * len(PAGES)
    assert [page for page in measured if page[2] > 0] == []
    offline = ("net::ERR", "MathJax", "mathjax")  # formulas need the network
    assert [error for error in errors if not any(word in error for word in offline)] == []
