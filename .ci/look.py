"""
Look at the documentation in a browser: ``python .ci/look.py [--shots FOLDER]`` after ``make docs``.

Every page is opened 1280 and 390 pixels wide, and must not be wider than that. ``--shots`` takes pictures as well, light and
dark. Needs Chromium or Chrome, headless.
"""

import argparse
import functools
import html
import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGES = Path(__file__).resolve().parents[1] / "docs" / "_build" / "html"
WIDTHS = (1280, 390)
HARNESS = """<!doctype html><title>Looking</title><pre id="found"></pre><script type="module">
const found = [];
for (const page of PAGES) for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.style.width = width + "px"; frame.style.height = "900px"; frame.style.border = "0";
  await new Promise((done) => { frame.onload = done; frame.src = page; document.body.append(frame); });
  const inside = frame.contentDocument.documentElement;
  const broken = [...frame.contentDocument.images].filter((image) => image.complete && !image.naturalWidth);
  found.push([page, width, inside.scrollWidth, broken.map((image) => image.src)]);
  frame.remove();
}
document.getElementById("found").textContent = JSON.stringify(found);
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without saying so; the harness is a page among them."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Serve the harness or a file."""
        if self.path != "/harness":
            super().do_GET()
            return
        pages = sorted(
            f"/{path.relative_to(PAGES).as_posix()}" for path in PAGES.rglob("*.html") if "_modules" not in path.parts
        )
        body = HARNESS.replace("PAGES", json.dumps(pages), 1).replace("WIDTHS", json.dumps(WIDTHS), 1).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)


def browse(browser: str, *options: str) -> str:
    """
    Open a page.

    :param browser: the program
    :param options: its options, and the address
    :return: what it prints
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=600).stdout


def main(argv: Sequence[str] | None = None) -> None:
    """
    Look.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :raises SystemExit: if a page is too wide, or lacks a picture
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=Path, help="folder for pictures of the pages")
    options = parser.parse_args(argv)
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if browser is None:
        raise SystemExit("There is no chromium and no google-chrome.")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(PAGES)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    dom = browse(browser, "--virtual-time-budget=600000", "--window-size=1400,1000", "--dump-dom", f"{address}/harness")
    match = re.search(r'<pre id="found">(.+?)</pre>', dom)
    found = json.loads(html.unescape(match[1])) if match else []
    wrong = [
        f"{page}: {is_wide} pixels at {width}, broken {broken}"
        for page, width, is_wide, broken in found
        if is_wide > width or broken
    ]
    print(f"{len(found) // len(WIDTHS)} pages looked at")
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
        for page in ("index", "quickstart", "benchmark", "branching", "hybrid_grpo", "recipes/resume"):
            for width in WIDTHS:
                for scheme, value in (("light", 1), ("dark", 0)):
                    shot = options.shots / f"{page.replace('/', '_')}_{width}_{scheme}.png"
                    settings = (f"--blink-settings=preferredColorScheme={value}", f"--window-size={width},1400")
                    browse(browser, *settings, "--hide-scrollbars", f"--screenshot={shot}", f"{address}/{page}.html")
    if wrong or not found:
        raise SystemExit("\n".join(wrong) or "The browser has not answered.")


if __name__ == "__main__":
    main()
