"""A store that is emptied while a study runs: one sentence, no result, and the same command makes it all again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import flows.study
import tasks.gather
from flows.lasting import Lasting
from flows.options import StudyOptions
from flows.study import run_study
from infra.settings import Settings
from infra.storage import Store, StoreError
from tasks.stored.expansion import Expansion

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server"), pytest.mark.xdist_group("prefect")]


def run(store: Store) -> None:
    options = StudyOptions(study="digits-depth", depth=[2], width=[32], seeds=3, epochs=4, alphas=3)  # pyright: ignore
    run_study(options, Settings(store=store.url, runner="threads", workers=2, quiet=True))


def before(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Callable[[], object]) -> None:
    """Has `fault` happen each time just before `name` of `module` is called."""
    original = getattr(module, name)

    def first(*arguments: Any, **options: Any) -> Any:
        fault()
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, first)


@pytest.mark.parametrize(
    ("module", "name", "folder"),
    [
        (tasks.gather, "collect", ""),
        (Expansion, "members", ""),
        (Expansion, "members", "endpoints"),
        (Lasting, "check_kept", "endpoints"),
        (flows.study, "align_pairs", ""),
        (flows.study, "measure_paths", ""),
        (flows.study, "measure_paths", "studies"),
        (flows.study, "report", "studies"),
    ],
)
def test_half_a_result_is_never_reported_as_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, folder: str
):
    def empty() -> None:
        shutil.rmtree(Path(store.url) / folder, ignore_errors=True)

    if name == "report":
        before(monkeypatch, flows.study.report, "with_options", empty)
    else:
        before(monkeypatch, module, name, empty)
    with pytest.raises(StoreError, match=r"was emptied, or lost some of its files, while digits-depth ran") as caught:
        run(store)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    run(store)
    paths = pd.read_parquet(f"{store.url}/studies/digits-depth/barriers.parquet").query("kind == 'pair'")
    assert len(paths.drop_duplicates(["seed_a", "seed_b", "matcher", "correction"])) == 3 * 2 * 2
