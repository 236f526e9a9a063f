"""The cluster of one machine from end to end: `make up`, a study on S3 through Dask, its run in the Prefect UI, the
same tables as without all that, `make down`.

Needs PostgreSQL and Chromium from the system. Writes pictures of the pages it looks at into a folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from processes import assert_same_tables, read_tables  # noqa: E402

from infra.storage import Store  # noqa: E402

STUDY = ("run", "digits-depth", "--width", "64", "--depth", "4,6", "--seeds", "4", "--epochs", "40")


def call(*words: str) -> None:
    print("$", *words, flush=True)
    subprocess.run(words, cwd=ROOT, check=True)


def become_client(folder: Path) -> None:
    """What `source .stack/env` does."""
    told = subprocess.run(
        ["bash", "-c", 'source "$0" && env -0', str(folder / "env")], capture_output=True, text=True, check=True
    ).stdout
    os.environ.update(line.split("=", 1) for line in told.split("\0") if line)


def look_at_pages(pictures: Path) -> None:
    """Logs in to the Prefect UI, and takes a picture of the run's page once it says what it has to say."""
    pages = os.environ["PREFECT_API_URL"].removesuffix("/api")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{pages}/runs")
        page.locator("input[type=password]").fill(os.environ["PREFECT_API_AUTH_STRING"])
        page.keyboard.press("Enter")
        page.get_by_text("digits-depth", exact=True).first.wait_for(timeout=60_000)
        page.reload()  # Without the notes that it had asked for a password.
        page.get_by_text("digits-depth", exact=True).first.click()
        expect_words(page, "Completed", "align mlp")
        time.sleep(3)  # The graph of tasks is drawn step by step.
        page.screenshot(path=pictures / "flow-run.png")
        look_at_artifacts(page, pictures)
        browser.close()


def look_at_artifacts(page: Page, pictures: Path) -> None:
    """From a run's page to each of its artifacts: how far every stage came, the table, and the figure."""
    run_page = page.url
    stages = [f"digits-depth-progress-{stage}" for stage in ("train", "align", "interpolate", "repair")]
    for key, words in (("progress-train", "Progress: 100"), ("ablation", "removed, %"), ("report", "--open")):
        page.goto(run_page)
        page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).last.click()
        expect_words(page, *stages, "8 endpoints in", "12 pairs in", "24 paths in")
        page.screenshot(path=pictures / "artifacts.png")
        # Those of tasks are asked for once they come into view.
        page.mouse.move(800, 800)
        page.mouse.wheel(0, 10_000)
        page.get_by_text(f"digits-depth-{key}", exact=True).first.click()
        expect_words(page, words)
        if key == "report":
            figure = page.locator("img[src^='data:image/png']").first
            figure.wait_for(timeout=60_000)
            if not figure.evaluate("image => image.complete && image.naturalWidth"):
                raise ValueError("the main figure is no picture that a browser shows")
        page.screenshot(path=pictures / f"{key}.png")


def expect_words(page: Page, *words: str) -> None:
    for word in words:
        page.get_by_text(word).first.wait_for(timeout=60_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, default=ROOT / "build" / "pictures", help="folder they go into")
    pictures: Path = parser.parse_args().pictures
    # A stack of its own, where PostgreSQL's user can pass, and beside one that somebody works with.
    stack = Path(tempfile.mkdtemp(prefix="repairlab-"))
    stack.chmod(0o711)
    os.environ["REPAIRLAB_STACK_DIR"] = str(stack)
    begun = time.monotonic()
    try:
        call("make", "up")
        pictures.mkdir(parents=True, exist_ok=True)
        become_client(Path(os.environ["REPAIRLAB_STACK_DIR"]))
        remote = Store(f"{os.environ['REPAIRLAB_STORE']}-check")
        call(str(BIN / "repairlab"), *STUDY, "--store", remote.url, "--runner", "dask")
        look_at_pages(pictures)
        with tempfile.TemporaryDirectory() as folder:
            local = Store(folder)
            call(str(BIN / "repairlab"), *STUDY, "--store", local.url)
            assert_same_tables(read_tables(remote), read_tables(local))
    finally:
        call("make", "down")
        shutil.rmtree(stack, ignore_errors=True)
    print(f"the tables on S3 are those of a local run; {time.monotonic() - begun:.0f} s; pictures in {pictures}")


if __name__ == "__main__":
    main()
