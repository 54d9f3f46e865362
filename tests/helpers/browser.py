"""A page in a real headless Chromium.

`python tests/helpers/browser.py report.html docs` takes the pictures of the README.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
WIDE, PHONE = (1280, 860), (390, 844)


def chromium() -> str | None:
    """Where the browser is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Opened:
    """A page and what it complained about or asked the network for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium with a fresh profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium(), args=FLAGS.split())
        yield started
        started.close()


@contextmanager
def opened(
    started: Any, file: Path, size: tuple[int, int] = WIDE, scheme: str = "light", scripts: bool = True, **more: Any
) -> Iterator[Opened]:
    """The file in a window of its own; everything it logs or asks for is noted from before it loads."""
    view = {"width": size[0], "height": size[1]}
    context = started.new_context(viewport=view, color_scheme=scheme, java_script_enabled=scripts, **more)
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda it: found.errors.append(it.text) if it.type in ("error", "warning") else None)
    page.on("pageerror", lambda it: found.errors.append(str(it)))
    page.on("request", lambda it: found.requests.append(it.url))
    page.goto(file.absolute().as_uri())
    yield found
    context.close()


def pictures(file: Path, folder: Path) -> list[Path]:
    """The two pictures of the README: the overview, and on dark a question that A answers and B does not."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with browser() as started:
        for name, section, scheme in (("report", "overview", "light"), ("report-tokens", "viewer", "dark")):
            with opened(started, file, (1440, 900), scheme, reduced_motion="reduce", device_scale_factor=1.25) as shown:
                if section == "viewer":
                    shown.page.locator("#g-differ").check()
                shown.page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
                shown.page.wait_for_timeout(300)
                made.append(folder / f"{name}.png")
                shown.page.screenshot(path=made[-1])
                Image.open(made[-1]).convert("RGB").save(made[-1], optimize=True)
    return made


if __name__ == "__main__":
    print(*pictures(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
