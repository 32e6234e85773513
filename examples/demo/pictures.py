"""
``python -m demo.pictures FOLDER``: the picture and the recording of the README, from a demo that runs for them.

They show what the pages show now: run it (``make pictures``) after a change of the pages.
"""

import argparse
import io
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from demo.facts import FACTS, TASKS, watch
from demo.monitor import Monitor
from demo.programs import DemoError
from demo.stage import Stage
from demo.traffic import Traffic

#: What the leak has to keep before its curve is worth a picture, bytes.
KEPT = 2 * 1024 * 1024
#: Time limit of the facts, seconds.
READY_S = 300.0
VIEW = {"width": 1280, "height": 800}
#: Width of the recording, pixels.
WIDE = 960
COMMAND = "trace.context_data"


class Recording:
    """Frames of a page, each with the time for which it is shown."""

    def __init__(self, page):
        self._page = page
        self._frames = []

    def look(self, seconds):
        """Show the page as it is now for so long."""
        picture = Image.open(io.BytesIO(self._page.screenshot())).convert("RGB")
        high = round(picture.height * WIDE / picture.width)
        self._frames.append((picture.resize((WIDE, high), Image.Resampling.LANCZOS), seconds))

    def save(self, path):
        """Write an animated WebP; returns its length in seconds."""
        pictures, lengths = zip(*self._frames, strict=True)
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=[round(1000 * one) for one in lengths], loop=0,
            quality=55, method=4,
        )  # fmt: skip
        return sum(lengths)


def wait_for_facts(stage, monitor, traffic):
    """
    Wait until the leak is certain and large, and a failure was captured.

    Raises:
        DemoError: They were not seen in time.
    """
    deadline = time.monotonic() + READY_S
    facts = [fact for fact in FACTS if fact[0] != "shell"]
    missing = watch(stage, monitor, traffic, facts, lambda *_: None, deadline)
    while not missing and time.monotonic() < deadline:
        rows = monitor.get("leaks", verdict="leaking", limit=50)["leaks"]
        if any(row["name"] == f"{TASKS}.remember_order" and row["kept_bytes_total"] > KEPT for row in rows):
            return
        stage.check()
        time.sleep(1)
    raise DemoError(f"not seen within {READY_S:g} s: {missing or 'a leak that keeps enough'}")


def tour(page, stage, folder):
    """The picture, and the way from the overview to the leak, the failed task's locals and the memory of workers."""
    recording = Recording(page)
    page.goto(stage.login_link)
    page.wait_for_url("**/trace")
    page.locator(".tr-item").first.wait_for()
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(folder / "overview.webp", quality=82, method=6)
    recording.look(4)
    page.locator(".tr-item", has_text="remember_order keeps").get_by_role("link", name="Line").click()
    page.locator(".u-over").first.wait_for()
    recording.look(3)
    page.locator("#growth").scroll_into_view_if_needed()
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(300)
    recording.look(3)
    page.goto(stage.monitor_page)
    page.locator(".tr-item", has_text="create_error fails").get_by_role("link", name="Line").click()
    line = page.locator("#console-input:enabled")
    line.wait_for()
    recording.look(2.5)
    for length in range(3, len(COMMAND) + 1, 3):
        line.fill(COMMAND[:length])
        recording.look(0.15)
    line.fill(COMMAND)
    page.keyboard.press("Escape")
    line.press("Enter")
    page.locator("#console-log", has_text="'Hello'").wait_for()
    recording.look(3.5)
    page.goto(f"{stage.monitor_url}/trace/workers")
    page.locator(".u-over").first.wait_for()
    recording.look(3.2)
    return recording.save(folder / "tour.webp")


def main():
    """Make them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="demo.pictures", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        print("The pictures need Chromium (Debian: chromium).")
        return 1
    try:
        with Stage(print) as stage:
            traffic = Traffic(stage.broker_url, stage.site_url)
            traffic.start()
            try:
                wait_for_facts(stage, Monitor(stage.monitor_url, stage.password), traffic)
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
                    page = browser.new_page(viewport=VIEW, color_scheme="light")
                    page.set_default_timeout(90_000)
                    seconds = tour(page, stage, folder)
                    browser.close()
            finally:
                traffic.stop()
    except DemoError as error:
        print(f"FAILED  {error}")
        return 1
    for path in sorted(folder.glob("*.webp")):
        print(f"{path}  {path.stat().st_size // 1024} KiB")
    print(f"The recording is {seconds:.0f} s long.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
