"""The commands of `repairlab`: one function each, whose options come from the models that declare them."""

from __future__ import annotations

import math
import os
import sys
from functools import partial
from typing import Annotated

from infra.faults import SERVER_FAULTS

# Prefect reads these as it is imported. A user's own values stand.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", SERVER_FAULTS)
os.environ.setdefault("DO_NOT_TRACK", "1")

import typer

from flows.commands.declared import ImportOptions, MergeOptions
from flows.declaration import RunOptions
from flows.parameters import takes, takes_settings
from flows.refusals import checking_words, guarded
from flows.terminal import make_console, tell
from infra.settings import Settings, load_settings
from infra.storage import Store

app = typer.Typer(
    help="Measure the loss barrier between independently trained networks, and how much of it REPAIR removes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

LONG_HOURS = 2
"""Runs estimated to take longer than this ask for `--yes`."""

StudyArgument = Annotated[str, typer.Argument(help="Name of a study that was run on this store")]

_PLACE = ("store", "upstream")
_WHERE = (*_PLACE, "runner", "scheduler", "device")


def _open_store(settings: Settings) -> Store:
    """Return the store for a command that a user waits for, which does not wait long for a server."""
    with checking_words():
        return Store(settings.store, settings.upstream, patience_seconds=0)


@app.command()
@takes("options", RunOptions)
@takes_settings(*_WHERE)
def run(
    options: RunOptions,
    settings: Settings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and stop")] = False,
    yes: Annotated[bool, typer.Option("--yes", help=f"Start a run estimated to take over {LONG_HOURS} hours")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print only the places of tables and report: no progress and no table")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the outcome, as JSON")] = False,
) -> None:
    """Run a study: train, align, interpolate, repair, and gather the measurements into tables."""
    from flows.commands.run import run_command

    settings = settings.model_copy(update={"quiet": settings.quiet or quiet or as_json})
    at_most_hours = math.inf if yes else LONG_HOURS
    run_command(options, settings, _open_store(settings), dry_run=dry_run, at_most_hours=at_most_hours, as_json=as_json)


@app.command()
def demo() -> None:
    """Run digits-depth: four depths, four seeds, on a laptop and without internet access."""
    run(study="digits-depth")


@app.command()
def studies(
    size: Annotated[str | None, typer.Option(help="Print only the names of the studies that come in this size")] = None,
) -> None:
    """List the studies with their questions, sizes and costs, and the parts of them that were run."""
    from flows.commands.studies import list_names, list_studies

    list_studies() if size is None else list_names(size)


@app.command(name="report")
@takes_settings("store")
def redraw(
    study: StudyArgument,
    settings: Settings,
    opens: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser; it is drawn only where it is missing")
    ] = False,
) -> None:
    """Draw a study's figures and report page again, from its tables alone."""
    from flows.commands.report import check_study, draw_page, open_page

    store = _open_store(settings)
    with checking_words():
        check_study(store, study)
    if not opens:
        draw_page(store, study)
    elif not open_page(store, study):
        raise typer.Exit(1)


@app.command(name="compare")
@takes_settings("store")
def compare_study(study: StudyArgument, settings: Settings) -> None:
    """Compare a study with the figures that the authors of REPAIR saved, with a verdict on each."""
    from flows.commands.compare import compare
    from flows.commands.report import check_study

    store = _open_store(settings)
    with checking_words():
        check_study(store, study)
    compare(store, study, make_console())


@app.command()
@takes_settings(*_WHERE)
def doctor(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON")] = False,
) -> None:
    """Examine this machine, its store and its servers before a study; exit code 1 where something is wrong."""
    from flows.commands.doctor import examine_machine, print_findings

    findings = examine_machine(settings)
    print_findings(findings, make_console(), as_json=as_json)
    if not all(finding.is_well for finding in findings):
        raise typer.Exit(1)


@app.command()
@takes_settings(*_PLACE)
def du(settings: Settings) -> None:
    """Print the bytes in a store, by kind of file and by study."""
    from flows.commands.housekeeping import print_usage

    print_usage(_open_store(settings), make_console())


@app.command()
@takes_settings(*_PLACE)
def gc(
    settings: Settings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files that would be removed, and stop")] = False,
) -> None:
    """Remove files that no study of a store refers to, and remains of killed writers, once they are a day old."""
    from flows.commands.housekeeping import collect_garbage

    collect_garbage(_open_store(settings), make_console(), dry_run=dry_run)


@app.command()
@takes_settings("store")
def check(
    settings: Settings,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the damaged files")] = False,
    seal: Annotated[
        bool, typer.Option("--seal", help="Add digests to files of a version of repairlab that wrote none")
    ] = False,
) -> None:
    """Read every file of a store and list the damaged ones; exit code 1 where there are any."""
    from flows.commands.housekeeping import check_files

    if not check_files(_open_store(settings), make_console(), delete=delete, seal=seal):
        raise typer.Exit(1)


@app.command()
@takes("options", MergeOptions)
def merge(options: MergeOptions) -> None:
    """Merge two networks that were trained anywhere, and write weights that their own class loads."""
    from flows.commands.merge import find_sources, merge_files, print_merge

    with checking_words():
        sources = find_sources(options, load_settings().data_dir)
    print_merge(merge_files(options, sources), options, make_console())


@app.command(name="import")
@takes("options", ImportOptions)
@takes_settings("store")
def import_networks(options: ImportOptions, settings: Settings) -> None:
    """Import networks that were trained elsewhere into a store, as the endpoints of a study that trains none."""
    from flows.commands.imports import check_options, import_files, print_imports

    console = make_console()
    with checking_words():
        check_options(options)
        store = _open_store(settings)
        store.check_writable()
        trained = import_files(options, store, settings.data_dir, partial(tell, console, soft_wrap=True))
    print_imports(trained, options, console)


def main() -> None:
    """Run the command of this process and exit with its code: 2 for words that cannot be, 1 for other errors."""
    sys.exit(guarded(app))
