"""Pages in a real browser that are watched: what goes wrong in one fails its test, unless the test expects it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from tests.pages.chromium import ARGUMENTS

SCREENSHOTS: Final = "PAGE_SCREENSHOTS"
"""Names a folder for pictures of what the tests look at."""
HEADED: Final = "PAGE_HEADED"
SCHEMES: Final = ("light", "dark")
SEVERE: Final = ("serious", "critical")


@contextmanager
def running_browser(path: str) -> Iterator[Browser]:
    """A Chromium with a profile of its own, which goes with it."""
    with sync_playwright() as playwright:
        headless = not os.environ.get(HEADED)
        browser = playwright.chromium.launch(executable_path=path, headless=headless, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Looks:
    """Opens pages, each for somebody with cookies of his own, and gathers what went wrong in them."""

    browser: Browser
    url: str = ""
    troubles: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    _contexts: list[BrowserContext] = field(default_factory=list)

    def person(self, scheme: str = "light", *, url: str | None = None, **options: Any) -> BrowserContext:
        """Somebody with a browser of his own, which is set to light or dark."""
        settings = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", "timezone_id": "UTC"}
        settings |= {"color_scheme": scheme, "reduced_motion": "reduce", "base_url": url or self.url}
        context = self.browser.new_context(**(settings | options))
        context.set_default_timeout(15_000)
        context.on("page", self._watch)
        self._contexts.append(context)
        return context

    def expect(self, *patterns: str) -> None:
        """What is allowed to go wrong: parts of what is noted of it, as regular expressions."""
        self.expected += patterns

    def unexpected(self) -> list[str]:
        return [one for one in self.troubles if not any(re.search(pattern, one) for pattern in self.expected)]

    def close(self) -> None:
        while self._contexts:
            self._contexts.pop().close()

    def _watch(self, page: Page) -> None:
        page.on("console", lambda said: said.type in ("error", "warning") and self._note("console", said.text, page))
        page.on("pageerror", lambda error: self._note("error", str(error), page))
        page.on("requestfailed", self._failed)
        page.on("response", lambda got: got.status >= 400 and self._note(str(got.status), got.url, page))

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # by the page itself, which wants no answer any more
            self.troubles.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _note(self, kind: str, what: str, page: Page) -> None:
        self.troubles.append(f"{kind}: {what} (on {page.url})")


def screenshot(page: Page, name: str) -> None:
    """A picture of the whole page, if somebody wants pictures; its name tells light from dark."""
    folder = os.environ.get(SCREENSHOTS)
    if folder:
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        path = Path(folder) / f"{name}-{SCHEMES[dark]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path, full_page=True, animations="disabled")


def axe(page: Page, within: str = "html") -> list[str]:
    """What axe-core finds that is serious or critical in a part of the page, a finding in a text."""
    if not page.evaluate("'axe' in globalThis"):
        page.evaluate(_axe_source())  # the page's own policy lets no other script in
    found = page.evaluate("within => axe.run(within, {resultTypes: ['violations']})", within)
    return [_told(violation) for violation in found["violations"] if violation["impact"] in SEVERE]


def _told(violation: dict[str, Any]) -> str:
    nodes = [f"  {node['html'][:200]}\n    {node['failureSummary']}" for node in violation["nodes"]]
    return "\n".join([f"{violation['impact']} {violation['id']}: {violation['help']}", *nodes])


def _axe_source() -> str:
    found = find_spec("axe_playwright_python")
    [folder] = (found and found.submodule_search_locations) or [""]
    return (Path(folder) / "axe.min.js").read_text()
