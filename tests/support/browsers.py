"""A real Chromium, driven by Playwright."""

import contextlib
import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

SIZES = {"desktop": (1280, 900), "phone": (390, 800)}  # pixels
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@contextlib.contextmanager
def chromium():
    """Start Playwright's own Chromium where it is installed, else the system's."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = own if Path(own).exists() else shutil.which("chromium") or shutil.which("chrome")
        assert path, (
            "no Chromium; install the package chromium, or run `playwright install chromium`"
        )
        browser = playwright.chromium.launch(executable_path=path, args=_QUIET)
        try:
            yield browser
        finally:
            browser.close()


class Files(SimpleHTTPRequestHandler):
    """Gives the files of a folder, as any web server does, and says nothing."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def __init__(self, *args, more, **options):
        self.more = more  # headers beside those of any web server
        super().__init__(*args, **options)

    def end_headers(self):
        for name, value in self.more.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def files_of(folder, *, headers=None, port=0):
    """Serve a folder, at a free port unless one is given; yield its address."""
    handler = functools.partial(Files, directory=str(folder), more=headers or {})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class Opened:
    """A tab with the page; what it asked for and complained of is looked at when it closes."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.address, self.asked, self.complaints = address, [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)

    def _console(self, message):
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def __enter__(self):
        self.page.goto(self.address)
        self.page.get_by_text("Model of").first.wait_for()
        return self.page

    def __exit__(self, *error):
        self.context.close()
        if error[0] is None:
            origin = "/".join(self.address.split("/")[:3])
            own = (self.address, f"blob:{origin}/", "data:")
            assert [url for url in self.asked if not url.startswith(own)] == []
            assert self.complaints == []
