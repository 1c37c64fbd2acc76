"""The interactive notebook in a real browser: a slider is moved, and the picture must change.

python docs/browser.py docs/images/interactive.png

Runs a copy of notebooks/02_dynamics.ipynb in JupyterLab and headless Chromium
(extra `browser`) and writes a screenshot of its sliders and the picture below
them. Chromium is the one on the PATH, else that of `playwright install chromium`.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "02_dynamics.ipynb"
TIMEOUT = 180  # seconds, for all cells


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """JupyterLab on a free port of this machine, on a folder of its own."""
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are there too
        "apputils-extension/notification": {"fetchNews": "false"},
    }
    for name, values in settings.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = os.urandom(16).hex()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}"]
    environment = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}?token={token}"
        time.sleep(0.1)
    server.terminate()
    raise RuntimeError("JupyterLab did not start within 30 seconds.")


def move_a_slider(page: Page, screenshot: Path) -> None:
    """Runs all cells, moves `horizon` and waits until another picture is there."""
    select = page.get_by_role("button", name="Select Kernel")
    page.add_locator_handler(select, lambda: select.click())
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    for _ in range(20):  # JupyterLab looks ready before it is, and forgets what it was told then
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(2000)
        if page.locator(".jp-InputPrompt", has_text="[*]").count():
            break
    else:
        raise RuntimeError("JupyterLab did not start to run the cells.")
    widgets: Any = page.locator(".jp-OutputArea-output .widget-interact").last
    picture = widgets.locator("img")
    expect(picture).to_be_visible(timeout=1000 * TIMEOUT)
    before = picture.get_attribute("src")

    slider = widgets.locator(".widget-slider").filter(has_text="horizon")
    number = slider.locator(".widget-readout").inner_text()
    slider.get_by_role("slider").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(slider.locator(".widget-readout")).not_to_have_text(number)
    expect(picture).not_to_have_attribute("src", str(before), timeout=30_000)
    page.wait_for_timeout(3000)  # until the last of the three redraws
    widgets.scroll_into_view_if_needed()
    widgets.screenshot(path=screenshot)
    print(
        f"horizon {number} -> {slider.locator('.widget-readout').inner_text()}: the picture changed; see {screenshot}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("screenshot", type=Path)
    parser.add_argument("--chromium", type=Path, default=shutil.which("chromium"))
    arguments = parser.parse_args()
    arguments.screenshot.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = arguments.chromium or Path(playwright.chromium.executable_path)
        if not chromium.exists():
            sys.exit(
                "error: The interactive notebook is tried in Chromium, and there is none on the PATH nor at "
                f"{chromium}: `apt-get install chromium`, or `playwright install --with-deps chromium`."
            )
        shutil.copy(NOTEBOOK, folder)
        server, url = start(Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1500, "height": 1100})
            page.set_default_timeout(60_000)
            page.goto(url)
            try:
                move_a_slider(page, arguments.screenshot)
            except Exception:
                page.screenshot(path=arguments.screenshot.with_suffix(".failed.png"))
                raise
            browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
