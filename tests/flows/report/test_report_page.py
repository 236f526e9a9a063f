"""The report as a person sees it, in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from browsing import look_at, open_browser
from made_tables import ablation_rows, axis_rows, layer_rows, path_rows, write_study
from object_storage import BUCKET
from playwright.sync_api import Browser, Page
from s3fs import S3FileSystem

from flows.report.page import write_report
from infra.storage import Store
from tasks.tables import schema
from tasks.tables.sweep import FIELDS

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="alert(1)"></script><script>alert(2)</script>'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def write_grid(store: Store, depths=(2, 4, 16), widths=(64, 128), words=("none", "batch"), dataset="digits") -> str:
    """A study of all these networks; returns where its page lies."""
    ablation, paths, layers, axes = [], [], [], []
    for word in words:
        for width in widths:
            cell = {"width": width, "normalization": word}
            rows = pd.DataFrame(ablation_rows(depths=depths, dataset=dataset)).assign(**cell)
            ablation.append(rows.assign(cell_id=rows["cell_id"] + f"-{width}-{word}"))
            for depth in depths:
                own = cell | {"depth": depth, "cell_id": f"{dataset}-{depth}-{width}-{word}", "dataset": dataset}
                for seed in (1, 2):
                    own |= {"seed_b": seed, "merge_id": f"{own['cell_id']}-{seed}"}
                    paths += path_rows({"none": 0.3, "repair": 0.7 + 0.01 * seed}, **own)
                    layers += [
                        row | {"variance_ratio": row["sd_correlation"], "variance_ratio_target": 0.9}
                        for row in layer_rows({"none": [0.9, 0.4], "repair": [0.9, 0.9]}, **own)
                    ]
                    axes += axis_rows({"hidden.0": 0.6, "hidden.1": 0.5}, **own)
    frames = {"ablation": pd.concat(ablation, ignore_index=True).assign(new_pair_low=0.1, new_pair_high=0.2)}
    frames |= {name: pd.DataFrame(rows) for name, rows in (("paths", paths), ("layers", layers), ("axes", axes))}
    write_study(store, **frames)
    where = write_report(store, "s")
    return f"file://{Path(where).resolve()}" if store.is_local else where


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_grid(Store(str(tmp_path_factory.mktemp("report") / "store")))


def scroll_through(page: Page) -> None:
    """Figures are drawn where a person comes by."""
    for section in page.locator("section.charts").all():
        section.scroll_into_view_if_needed()
        section.locator(".plot .main-svg").first.wait_for()


def rows_shown(page: Page) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator("#rows tbody tr:visible").all()]


def titles(page: Page, section: str) -> list[str]:
    return page.locator(f"#figure-{section} .panel h3").all_inner_texts()


def drawn(page: Page, section: str) -> list[list[dict]]:
    """What plotly holds of every panel of a section: its traces with markers or lines of their own, without bands."""
    return page.evaluate(
        """(section) => [...document.querySelectorAll(`#figure-${section} .plot`)].map((plot) =>
            plot.data.filter((trace) => trace.hoverinfo !== "skip").map(({ x, y, text }) => ({ x, y, text })))""",
        section,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 360])
def test_every_figure_draws_without_an_error_or_a_request(browser: Browser, url: str, scheme, width: int):
    with look_at(browser, url, width, scheme=scheme) as (page, seen):
        scroll_through(page)
        names = [section.get_attribute("id") for section in page.locator("section.charts").all()]
        assert names == [
            f"figure-{name}" for name in ("barriers", "paths", "variance", "correlation", "errors", "predictions")
        ]
        for plot in page.locator(".plot").all():
            assert plot.locator(".scatterlayer .trace").count() > 0
        assert seen.errors == []
        assert [request for request in seen.requests if not request.startswith(("file:", "data:", "blob:"))] == []
        assert len([request for request in seen.requests if request.startswith("file:")]) == 1


def test_the_plots_show_the_tables_numbers(browser: Browser, url: str):
    with look_at(browser, url) as (page, _):
        scroll_through(page)
        panels = dict(zip(titles(page, "barriers"), drawn(page, "barriers"), strict=True))
        assert set(panels) == {f"{word}, width {width}" for word in ("none", "batch") for width in (64, 128)}
        direct, _, aligned, repaired = panels["none, width 64"]
        assert aligned["y"] == pytest.approx([5, 10, 40])
        assert direct["y"] == aligned["y"]
        assert repaired["y"] == pytest.approx([1.25, 2.5, 10])
        assert "6 pairs of 4 seeds<br>a new pair: 10 to 20" in aligned["text"][0]
        assert len(drawn(page, "paths")) == 12
        assert {tuple(trace["y"]) for panel in drawn(page, "correlation") for trace in panel} == {
            (0.6, 0.5), (0.05, 0.05),
        }  # fmt: skip


def test_a_filter_holds_for_the_table_and_every_figure(browser: Browser, url: str):
    with look_at(browser, url) as (page, seen):
        assert len(rows_shown(page)) == 48
        page.locator("select[data-factor=width]").select_option("64")
        page.locator("select[data-factor=normalization]").select_option("batch")
        scroll_through(page)
        assert page.locator("#count").inner_text() == "12 of 48 rows"
        assert {(row[0], row[1]) for row in rows_shown(page)} == {("batch", "64")}
        assert titles(page, "barriers") == ["batch, width 64"]
        for section in ("paths", "variance", "correlation"):
            assert titles(page, section) == [f"batch, depth {depth}, width 64" for depth in (2, 4, 16)]
        assert [[len(trace["x"]) for trace in panel] for panel in drawn(page, "errors")] == [[3], [3]]
        page.get_by_role("button", name="aligned", exact=True).click()
        scroll_through(page)
        assert len(rows_shown(page)) == 9
        assert len(drawn(page, "barriers")[0]) == 3
        assert len(drawn(page, "errors")) == 1
        page.get_by_placeholder("words in the table").fill("direct 16")
        assert [row[2:4] for row in rows_shown(page)] == [["16", "direct"], ["16", "direct, REPAIR"]]
        page.get_by_role("button", name="show all").click()
        assert len(rows_shown(page)) == 48
        scroll_through(page)
        assert len(titles(page, "paths")) == 12
        assert seen.errors == []


def test_published_points_and_samples_that_are_swept_are_filtered_too(browser: Browser, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    ablation = pd.concat(
        [
            pd.DataFrame(ablation_rows(depths=(4,))).assign(
                width=width, cell_id=f"c{width}", statistics=n, measurement=str(n), new_pair_low=None, new_pair_high=0.9
            )
            for width in (64, 128)
            for n in (100.0, 500.0)
        ],
        ignore_index=True,
    )
    point = {"study": "s", "split": "test", "dataset": "digits", "architecture": "mlp", "normalization": "none"}
    point |= {"depth": 4, "matcher": "activation", "correction": "none", "method": "aligned", "verdict": "inside"}
    point |= {"recipe": "r", "n_pairs": 6, "n_seeds": 4, "n_diverged": 0, "n_untrained": 0, "mean": 0.6}
    paper = [
        point | {"width": width, "metric": metric, "published": 0.5, "point": f"{width}/{metric}"}
        | ({"cell_id": f"c{width}", "measurement": n} if width < 512 else {"mean": None, "n_pairs": 0})
        for width in (64, 128, 512)
        for n in ("100.0", "500.0")[: 2 if width < 512 else 1]
        for metric in ("midpoint_accuracy", "endpoint_accuracy")
    ]  # fmt: skip
    axes = [
        row | {"cell_id": f"c{width}", "width": width, "merge_id": f"{width}-{n}", "statistics": n}
        for width in (64, 128)
        for n in (100.0, 500.0)
        for row in axis_rows({"hidden.0": 0.6}, depth=4)
    ]
    frames = {"ablation": ablation, "axes": pd.DataFrame(axes)}
    frames["paper"] = pd.DataFrame(paper).reindex(columns=list(schema.PAPER.columns))
    extra = {"statistics": FIELDS["statistics"]}
    write_study(store, **frames, extra={"ablation": extra, "axes": extra})
    with look_at(browser, f"file://{write_report(store, 's')}") as (page, seen):
        page.locator("#figure-barriers select").nth(1).select_option("width")
        page.locator("select[data-factor=width]").select_option("64")
        page.locator("select[data-factor=statistics]").select_option("500")
        scroll_through(page)
        points = [trace for panel in drawn(page, "barriers") for trace in panel if "published" in trace["text"][0]]
        assert [len(trace["x"]) for trace in points] == [1]
        assert titles(page, "correlation") == ["width 64, statistics 500"]
        beside = [text for panel in drawn(page, "comparison") for trace in panel for text in trace["text"]]
        assert beside
        assert all("width: 64<br>" in text for text in beside)
        assert seen.errors == []


def test_barriers_are_looked_at_by_any_metric_against_any_factor(browser: Browser, url: str):
    with look_at(browser, url) as (page, seen):
        scroll_through(page)
        what, against = page.locator("#figure-barriers select").all()
        assert against.locator("option").all_inner_texts() == ["depth", "width", "normalization"]
        against.select_option("normalization")
        assert len(titles(page, "barriers")) == 6
        assert page.locator("#figure-barriers .xtick").first.text_content() == "batch"
        what.select_option("loss barrier")
        assert max(max(trace["y"]) for panel in drawn(page, "barriers") for trace in panel) == pytest.approx(1.2)
        assert seen.errors == []


def test_a_click_on_a_heading_sorts_by_size_and_a_second_one_the_other_way(browser: Browser, url: str):
    with look_at(browser, url) as (page, _):
        heading = page.locator("#rows th", has_text="accuracy barrier")
        at = page.locator("#rows th").all_inner_texts().index(heading.inner_text())
        for descending in (False, True):
            heading.click()
            barriers = [float(row[at].split()[0]) for row in rows_shown(page)]
            assert barriers == sorted(barriers, reverse=descending)
            assert heading.get_attribute("aria-sort") == ("descending" if descending else "ascending")
        heading = page.locator("#rows th", has_text="accuracy removed")
        heading.press("Enter")
        at = page.locator("#rows th").all_inner_texts().index(heading.inner_text())
        # What is missing stands last.
        assert [row[at] == "-" for row in rows_shown(page)] == sorted(row[at] == "-" for row in rows_shown(page))


@pytest.mark.parametrize("width", [320, 390, 768, 1300])
def test_nothing_is_wider_than_the_screen(browser: Browser, url: str, width: int):
    with look_at(browser, url, width) as (page, _):
        scroll_through(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_of_200_cells_draws_no_more_than_a_person_can_look_at(browser: Browser, tmp_path: Path):
    many = write_grid(Store(str(tmp_path / "store")), depths=range(2, 27), widths=(32, 64, 128, 256))
    with look_at(browser, many) as (page, seen):
        scroll_through(page)
        assert len(page.locator("#rows tbody tr").all()) == 800
        assert len(titles(page, "paths")) == 12
        assert page.locator("#figure-paths .place").inner_text() == "1 to 12 of 200"
        page.locator("#figure-paths").get_by_role("button", name="Further panels").click()
        assert page.locator("#figure-paths .place").inner_text() == "13 to 24 of 200"
        assert len(page.locator(".plot").all()) <= 12 * page.locator("section.charts").count()
        page.locator("select[data-factor=depth]").select_option("9")
        assert page.locator("#count").inner_text() == "32 of 800 rows"
        scroll_through(page)
        assert len(titles(page, "paths")) == 8
        assert seen.errors == []


def test_what_a_stranger_wrote_into_a_table_is_text_in_a_browser_too(browser: Browser, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    write_grid(store, dataset="plain")
    frames = {name: pd.read_parquet(f"{store.url}/studies/s/{name}.parquet") for name in ("ablation", "paths")}
    for frame in frames.values():
        half = frame["normalization"] == "none"
        frame.loc[half, "dataset"] = HOSTILE
        frame.loc[half, "cell_id"] += HOSTILE
    write_study(store, **frames)
    with look_at(browser, f"file://{write_report(store, 's')}") as (page, seen):
        scroll_through(page)
        page.locator(".plot .scatterlayer .point").first.hover(force=True)
        page.locator("select[data-factor=dataset]").select_option(HOSTILE)
        scroll_through(page)
        assert page.locator("img").count() == 0
        assert HOSTILE in titles(page, "barriers")[0]
        assert seen.errors == []


@pytest.mark.s3
@pytest.mark.usefixtures("s3_credentials")
def test_a_page_on_s3_opens_by_a_link_alone(browser: Browser):
    store = Store(f"s3://{BUCKET}/report-page")
    write_grid(store)
    link = S3FileSystem().sign(f"{BUCKET}/report-page/studies/s/report.html", expiration=600)
    with look_at(browser, link) as (page, seen):
        scroll_through(page)
        assert len(rows_shown(page)) == 48
        assert seen.errors == []
        assert len(seen.requests) == 1


def test_the_data_of_a_page_are_json_without_gaps(url: str):
    page = Path(url.removeprefix("file://")).read_text()
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    data = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert len(data["cells"]) == 12
    assert [factor["name"] for factor in data["factors"]] == ["normalization", "depth", "width"]
