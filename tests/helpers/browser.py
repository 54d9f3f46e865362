"""A page in a real headless Chromium.

`python tests/helpers/browser.py report.html docs` takes the screenshots of docs/results.md.
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
    """Return the path of the browser, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Opened:
    """A page with its errors and its network requests."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium with an empty profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium(), args=FLAGS.split())
        yield started
        started.close()


@contextmanager
def opened(
    started: Any,
    file: Path,
    size: tuple[int, int] = WIDE,
    scheme: str = "light",
    scripts: bool = True,
    spy: str = "",
    **more: Any,
) -> Iterator[Opened]:
    """Open the file in a new window; errors and requests are recorded, and the script `spy` runs, before it loads."""
    viewport = {"width": size[0], "height": size[1]}
    context = started.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=scripts, **more)
    page = context.new_page()
    view = Opened(page)
    page.on("console", lambda line: view.errors.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: view.errors.append(str(error)))
    page.on("request", lambda request: view.requests.append(request.url))
    if spy:
        page.add_init_script(spy)
    page.goto(file.absolute().as_uri())
    yield view
    context.close()


def pictures(file: Path, folder: Path) -> list[Path]:
    """Take the screenshots of the results: the overview, and, dark, a question that A has right and B wrong."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with browser() as started:
        for name, section, scheme in (("report", "choose", "light"), ("report-tokens", "viewer", "dark")):
            with opened(started, file, (1440, 900), scheme, reduced_motion="reduce", device_scale_factor=1.25) as shown:
                if section == "viewer":
                    shown.page.locator("#g-differ").check()
                shown.page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
                shown.page.wait_for_timeout(300)
                files.append(folder / f"{name}.png")
                shown.page.screenshot(path=files[-1])
                Image.open(files[-1]).convert("RGB").save(files[-1], optimize=True)
    return files


if __name__ == "__main__":
    print(*pictures(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
