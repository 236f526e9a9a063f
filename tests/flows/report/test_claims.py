from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from made_tables import ablation_rows, write_study

from flows.report.claims import answer_widths, make_claim
from flows.report.page import write_report
from infra.storage import Store
from tasks.tables import schema


def test_the_claim_is_of_the_deepest_cell_with_its_interval(ablation: pd.DataFrame):
    claim = make_claim(ablation)
    assert claim.startswith(
        "At width 128 and 16 hidden layers on digits, alignment alone leaves an accuracy barrier of "
    )
    assert "of 40.0 [20.0, 44.0] points; REPAIR removes 75 [38, 82] % of it" in claim
    assert claim.endswith("(means over 6 pairs of 4 seeds, 95 % intervals over seeds).")


def test_the_claim_names_a_network_that_is_not_an_mlp(ablation: pd.DataFrame):
    claim = make_claim(ablation.assign(architecture="resnet20", normalization="layer", depth=20))
    assert claim.startswith("For resnet20 of width 128 with normalization layer on digits, alignment alone leaves")


def test_a_study_of_one_size_has_a_sentence_for_every_network():
    cells = [
        pd.DataFrame(ablation_rows(depths=(20,))).assign(architecture="resnet20", normalization=word, cell_id=word)
        for word in ("batch", "layer")
    ]
    claim = make_claim(pd.concat(cells, ignore_index=True))
    assert claim.count("REPAIR removes 75 [38, 82] % of it") == 2
    assert "with normalization batch on digits" in claim
    assert "with normalization layer on digits" in claim


def test_a_study_without_a_barrier_claims_nothing(ablation: pd.DataFrame):
    assert make_claim(ablation.assign(mean=float("nan"), n_seeds=2)).startswith("With fewer than 3 trained seeds")
    assert make_claim(ablation[ablation["metric"] != "accuracy_barrier_reduction"]).startswith("No cell of this study")
    assert make_claim(ablation[ablation["matcher"] == "none"]).startswith("No pair was aligned by activations and")


def test_how_wide_a_network_must_be_stands_below_the_claim(store: Store, ablation: pd.DataFrame):
    assert answer_widths(pd.DataFrame(columns=list(schema.WIDTH_LAWS.columns))) == []
    asked = {"split": "test", "metric": "accuracy_barrier", "matcher": "activation", "correction": "repair"}
    laws = [
        dict.fromkeys(schema.WIDTH_LAWS.columns)
        | asked
        | {"series_id": series, "measurement": "m", "answer_text": text}
        for series, text in (("a", "This wide."), ("b", "So <wide>."))
    ]
    laws.append(laws[0] | {"correction": "none", "answer_text": "Without correction wider."})
    write_study(store, ablation, width_laws=pd.DataFrame(laws))
    page = Path(write_report(store, "s")).read_text()
    assert re.findall("<p>(.*wide.*)</p>", page) == ["This wide.", "So &lt;wide&gt;."]
