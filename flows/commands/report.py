"""`repairlab report`: the page of a study, drawn and opened."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path

from flows.presets import find_preset
from flows.report.gathered import has_tables
from flows.terminal import say
from infra.paths import report_key
from infra.sealing import read_sealed
from infra.storage import Store
from tasks.science.specs.identity import safe_name


def check_study(store: Store, study: str) -> None:
    """Raise ValueError for a study that neither has tables in the store nor comes with repairlab."""
    safe_name(study)
    if not has_tables(store, study):
        find_preset(study)


def draw_page(store: Store, study: str) -> None:
    """Draw a study's figures and page from its tables, and print where the page lies."""
    from flows.report.page import write_report

    say(write_report(store, study))


def open_page(store: Store, study: str) -> bool:
    """Open a study's page in a browser, drawn where it is missing, and return whether there is a browser.

    A page outside a folder is copied to one, since browsers cannot read it there.
    """
    if not store.exists(report_key(study)):
        draw_page(store, study)
    data = read_sealed(store, report_key(study))
    where = store.locate(report_key(study))
    page = Path(where)
    if "://" in where:
        page = Path(tempfile.mkdtemp(prefix="repairlab-")) / f"{study}.html"
        page.write_bytes(data)
    say(str(page))
    if webbrowser.open(page.absolute().as_uri()):
        return True
    say("repairlab: there is no browser here; the page is the file above", err=True)
    return False
