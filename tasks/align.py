"""The verb that finds the permutations of a cell's pairs and stores those that preserve the function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.data.datasets import check_data, load_dataset
from tasks.science.alignment.matching import match
from tasks.science.data.augmentation import statistics_images
from tasks.science.networks import build_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.specs.pairing import Pairing
from tasks.science.specs.state import State
from tasks.science.symmetry.controls import permuted_self
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE, function_error
from tasks.stored.artifacts import LazyStates, load_weights, save_match
from tasks.stored.expansion import UsableMatch


@task(**TASK_OPTIONS)
def align(pairings: Sequence[Pairing], store: Store, data_dir: Path) -> list[str]:
    """Align the missing ones of pairings of one cell and the same samples, those of a matcher in one pass.

    Returns a sentence for each pair that must stop.
    """
    pairings = [pairing for pairing in pairings if not UsableMatch(pairing).is_in(store)]
    if not pairings:
        return []
    cell = pairings[0].cell
    network, spec = build_network(cell), cell_permutation_spec(cell)
    dataset = check_data(load_dataset(cell.data.name, data_dir), cell.data)
    images = statistics_images(dataset, cell.recipe.augmentation, pairings[0].samples)
    ends = list(
        dict.fromkeys(end for pairing in pairings for end in ((pairing.a, False), (pairing.b, pairing.permuted_self)))
    )

    def load(position: int) -> State:
        member, permuted = ends[position]
        state = load_weights(store, [member])[member]
        return permuted_self(spec, state) if permuted else state

    states = LazyStates(load)
    stopped: list[str] = []
    for matcher in dict.fromkeys(pairing.matcher for pairing in pairings):
        wanted = [pairing for pairing in pairings if pairing.matcher == matcher]
        pairs = [(ends.index((pairing.a, False)), ends.index((pairing.b, pairing.permuted_self))) for pairing in wanted]
        found = match(network, spec, states, pairs, matcher, images)
        for pairing, matched, (_, position) in zip(wanted, found, pairs, strict=True):
            b = states[position]
            error = function_error(network, b, spec.apply(b, matched.permutation), images)
            exact = error <= FUNCTION_TOLERANCE
            save_match(store, pairing, matched, error, exact)
            if not exact:
                stopped.append(
                    f"{cell.label}, seeds {pairing.a.seed} and {pairing.b.seed}: the permutation changes B's function "
                    f"(error {error:.2g}, at most {FUNCTION_TOLERANCE:g}); the pair stops here"
                )
    run_logger().info("%s: %d pairs aligned, %d stopped", cell.label, len(pairings), len(stopped))
    return stopped
