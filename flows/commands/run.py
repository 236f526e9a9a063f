"""`repairlab run`: a study from the words of a command to its tables and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.declaration import RunOptions
from flows.options import STUDY_FILE, StudyOptions, read_study
from flows.plan import Plan, make_plan, refuse_training
from flows.refusals import WrongWordsError, checking_words
from flows.resolve import resolve
from flows.terminal import make_console, say
from flows.trust import check_folder
from infra.paths import report_key, table_key
from infra.settings import Settings
from infra.storage import Store
from tasks.data.datasets import describe_dataset
from tasks.science.specs.request import Request


def run_command(
    asked: RunOptions, settings: Settings, store: Store, *, dry_run: bool, at_most_hours: float, as_json: bool
) -> None:
    """Resolve the options, plan the study, run it unless the plan forbids it, and print its outcome."""
    with checking_words():
        options = find_options(asked)
        request = resolve(options, store, lambda name: describe_dataset(name, settings.data_dir))
    plan = make_plan(store, request, settings.workers)
    refusal = refuse_training(store, request, settings.device)
    if dry_run:
        _tell_plan(plan, refusal)
        return
    _check_start(options.study, plan, refusal, at_most_hours)
    store.check_writable()
    _carry_out(options, settings, store, as_json=as_json)


def find_options(asked: RunOptions) -> StudyOptions:
    """Return the options with the study of a file, where they name one. ValueError for a file that is not one."""
    fields: dict[str, Any] = asked.model_dump()
    if not asked.study.endswith(STUDY_FILE):
        return StudyOptions(**fields)
    own = read_study(Path(asked.study))
    if not asked.trust_code:
        check_folder(Path.cwd())
    fields |= {"study": own.name, "own": own}
    return StudyOptions(**fields)


def _tell_plan(plan: Plan, refusal: str | None) -> None:
    say(plan.describe())
    if refusal is not None:
        say(f"not to be trained here: {refusal}")


def _check_start(study: str, plan: Plan, refusal: str | None, at_most_hours: float) -> None:
    """Raise WrongWordsError where training is refused or takes longer than `at_most_hours`."""
    if refusal is not None:
        raise WrongWordsError(refusal)
    if plan.hours > at_most_hours:
        raise WrongWordsError(
            f"{study} would take about {plan.hours:.2g} hours here. --yes starts it, --dry-run prints its plan; fewer "
            "--seeds or widths, or another --size, take less"
        )


def _carry_out(options: StudyOptions, settings: Settings, store: Store, *, as_json: bool) -> None:
    """Run the study and print its outcome, also where a part of it is unfinished; UnfinishedError is raised then."""
    # A plan needs no Prefect.
    from flows.report.outcome import outcome_json
    from flows.study import UnfinishedError, find_request, run_study

    request, _ = find_request(options, store, settings.data_dir)
    unfinished = None
    try:
        run_study(options, settings)
    except UnfinishedError as error:
        unfinished = error
    if as_json:
        say(outcome_json(store, request, unfinished.problems if unfinished else ()))
    else:
        _tell_outcome(request, store, quiet=settings.quiet)
    if unfinished is not None:
        raise unfinished


def _tell_outcome(request: Request, store: Store, *, quiet: bool) -> None:
    from flows.report.outcome import print_ablation

    if not quiet:
        print_ablation(store, request, make_console())
    for sentence in request.left_out():
        say(sentence)
    say(f"tables  {store.locate(table_key(request.study, 'ablation'))}")
    say(f"report  {store.locate(report_key(request.study))}")
