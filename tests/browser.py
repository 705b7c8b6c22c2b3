"""A headless Chromium for tests of pages; as a script, the picture of the search example's page for README.md.

python tests/browser.py examples/search/page.png
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def missing() -> str:
    """What is not installed of all that is needed, in words; empty if nothing."""
    names = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(names)} not installed" if names else ""


@contextmanager
def chromium(width: int = 1440, height: int = 1190, dark: bool = False) -> Iterator[Chrome]:
    """A browser with a profile of its own; it and its helpers are gone at the end.

    Args:
        width: Of the window, in pixels.
        height: Likewise.
        dark: Whether pages are told that the user likes dark ones.
    """
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        for option in (*OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(option)
        driver = Chrome(options, Service(shutil.which("chromedriver")))
        try:
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield driver
        finally:
            driver.quit()


def wait_until(condition: Callable[[], Any], patience: float = 20.0) -> Any:
    """What the condition gives once it is true; fails if it is not within `patience` seconds."""
    until = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < until, "not in time"
        time.sleep(0.05)
    return found


def take_picture(path: Path, seconds: float = 42.0, dark: bool = False) -> None:
    """Write the page as it is after a search, in the middle of a load, as a PNG."""
    from PIL import Image
    from search.server import Server
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    with Server(processes=2) as server, chromium(dark=dark) as browser:
        browser.get(server.url)
        browser.find_element(By.NAME, "q").send_keys("wrap text to a width")
        browser.find_element(By.CSS_SELECTOR, "#search button").click()
        wait_until(lambda: browser.find_elements(By.CSS_SELECTOR, "#hits li"))
        button = browser.find_element(By.CSS_SELECTOR, "#load button")
        for waiting in ("4", "16", "64"):
            wait_until(lambda: button.text == "Fire load")
            Select(browser.find_element(By.NAME, "waiting")).select_by_visible_text(waiting)
            button.click()
            time.sleep(seconds / 3)
            if waiting != "64":
                button.click()
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
        picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    take_picture(Path(sys.argv[1]).resolve(), dark="--dark" in sys.argv)
