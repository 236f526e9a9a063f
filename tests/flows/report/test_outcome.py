from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pandas as pd
from made_tables import ablation_rows, write_study

from flows.report.outcome import print_ablation
from flows.report.summary import summarise_ablation
from infra.storage import Store


def test_the_terminal_shows_whole_numbers_in_80_columns(store: Store, ablation: pd.DataFrame):
    from rich.console import Console

    write_study(store, ablation)
    out = io.StringIO()
    cells = [SimpleNamespace(id="digits-4"), SimpleNamespace(id="digits-16")]
    request: Any = SimpleNamespace(
        study="s", cells=cells, matchers=("none", "activation"), corrections=("none", "repair"),
        measurements=(SimpleNamespace(name="default"),),
    )  # fmt: skip
    print_ablation(store, request, Console(width=80, file=out))
    assert "…" not in out.getvalue()
    assert "40.0 [20.0, 44.0]" in out.getvalue()
    assert "Left out of pairs: 2 diverged of 3 endpoints" in out.getvalue()
    request.cells = cells[:1]
    print_ablation(store, request, Console(width=80, file=(alone := io.StringIO())))
    assert "40.0 [20.0, 44.0]" not in alone.getvalue()
    assert "10.0 [5.0, 11.0]" in alone.getvalue()


def test_with_two_factors_every_cell_has_a_line_above_its_paths(store: Store):
    from rich.console import Console

    cells = [
        pd.DataFrame(ablation_rows(depths=(20,))).assign(
            architecture=architecture, normalization=word, cell_id=f"{architecture}-{word}", depth=depth
        )
        for architecture, depth in (("resnet20", 20), ("vgg11", 11))
        for word in ("batch", "none")
    ]
    ablation = pd.concat(cells, ignore_index=True)
    write_study(store, ablation)
    request: Any = SimpleNamespace(
        study="s", cells=[SimpleNamespace(id=word) for word in ablation["cell_id"].unique()],
        matchers=("none", "activation"), corrections=("none", "repair"),
        measurements=(SimpleNamespace(name="default"),),
    )  # fmt: skip
    print_ablation(store, request, Console(width=80, file=(out := io.StringIO())))
    words = out.getvalue().split()
    assert words.count("architecture") == 4
    # A depth that follows from the architecture tells nothing more.
    assert "depth" not in words
    assert "depth" not in summarise_ablation(ablation).columns
    assert out.getvalue().count("aligned, REPAIR") == 4
