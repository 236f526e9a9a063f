from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from made_tables import ablation_rows, path_rows, write_study
from plotly.offline import get_plotlyjs

from flows.report.claims import make_claim
from flows.report.page import write_report
from infra.storage import Store, StoreError


def test_a_report_shows_a_figure_where_there_is_something_to_draw(store: Store):
    ablation = pd.DataFrame(ablation_rows(depths=(2, 4, 16))).assign(new_pair_low=float("nan"), new_pair_high=0.5)
    both = {"repair": 0.8, "repair-closed-form": 0.7}
    write_study(store, ablation, pd.DataFrame(path_rows(both, kind="control", control="permuted-self")))
    write_report(store, "s")
    figures = Path(store.url) / "studies/s/figures"
    assert {figure.name for figure in figures.iterdir()} == {"barriers.png", "errors.png"}
    write_study(store, ablation, pd.DataFrame(path_rows(both)))
    page = Path(write_report(store, "s")).read_text()
    names = {"barriers", "errors", "paths", "closed_form"}
    assert {figure.stem for figure in figures.iterdir()} == names
    assert set(re.findall('<section class="charts" id="figure-([a-z_]+)">', page)) == names


def test_a_report_is_one_page_that_needs_nothing_else(store: Store, ablation: pd.DataFrame):
    write_study(store, ablation)
    page = without_plotly(Path(write_report(store, "s")).read_text())
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert make_claim(ablation) in page
    assert (Path(store.url) / "studies/s/figures/barriers.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_stranger_wrote_into_a_table_is_text_on_the_page(store: Store):
    hostile = pd.DataFrame(ablation_rows(dataset="<script>alert(1)</script>"))
    more = pd.DataFrame(ablation_rows(dataset="plain"))
    write_study(store, pd.concat([hostile, more]).assign(new_pair_low=float("nan"), new_pair_high=float("nan")))
    page = without_plotly(Path(write_report(store, "s")).read_text())
    assert page.count("<script") == page.count("</script") == 3
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\\u003cscript\\u003ealert(1)" in page


def without_plotly(page: str) -> str:
    """The page without the library that draws, which names addresses of its own."""
    code = get_plotlyjs().replace("</script", "<\\/script")
    assert page.count(code) == 1
    return page.replace(code, "")


def test_a_study_that_was_never_run_has_no_report(store: Store):
    with pytest.raises(StoreError, match="has no tables of s; `repairlab run s`"):
        write_report(store, "s")
