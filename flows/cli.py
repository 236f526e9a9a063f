"""`repairlab`: run studies, list them, redraw their reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

# Prefect reads these as it is imported. A user's own values stand.
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

import typer
from rich.console import Console

from infra.settings import Settings, load_settings
from infra.storage import Store, StoreError

app = typer.Typer(
    help="How the loss barrier between independently trained networks depends on width, depth and normalization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[
    str | None, typer.Option("--store", help="Folder or s3:// URL of the store [REPAIRLAB_STORE, ./runs]")
]
RunnerOption = Annotated[str | None, typer.Option("--runner", help="processes or threads [REPAIRLAB_RUNNER]")]


def _settings(**changes: Any) -> Settings:
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        os.environ[f"REPAIRLAB_{name.upper()}"] = value
    return load_settings()


def _words(values: list[str] | None) -> list[str] | None:
    """An option that can be repeated, or given as a comma-separated list."""
    words = [word.strip() for value in values or [] for word in value.split(",") if word.strip()]
    return words or None


def _numbers(values: list[str] | None, name: str) -> list[int] | None:
    try:
        return [int(word) for word in words] if (words := _words(values)) else None
    except ValueError as error:
        raise ValueError(f"--{name} takes whole numbers, got {', '.join(values or [])}") from error


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="Name of the study; `repairlab studies` lists them")],
    store: StoreOption = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Data set, repeatable or comma-separated")] = None,
    width: Annotated[list[str] | None, typer.Option(help="Width, repeatable or comma-separated")] = None,
    depth: Annotated[list[str] | None, typer.Option(help="Hidden layers, repeatable or comma-separated")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of each cell")] = None,
    recipe: Annotated[str | None, typer.Option(help="Another of the study's training recipes")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs instead of the recipe's")] = None,
    alphas: Annotated[int | None, typer.Option(help="Odd number of points on each path")] = None,
    runner: RunnerOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop")] = False,
) -> None:
    """Run a study: train, align, interpolate, repair, and gather what was measured into tables."""
    settings = _settings(store=store, runner=runner)
    from flows.study import StudyOptions, run_study

    options = StudyOptions(
        study=study,
        dataset=_words(dataset),
        width=_numbers(width, "width"),
        depth=_numbers(depth, "depth"),
        seeds=seeds,
        recipe=recipe,
        epochs=epochs,
        alphas=alphas,
    )
    from tasks.datasets import describe_dataset

    request = options.resolve(lambda name: describe_dataset(name, settings.data_dir))
    if dry_run:
        from flows.plan import make_plan

        typer.echo(make_plan(Store(settings.store), request, settings.workers).describe())
        return
    from flows.report import print_ablation

    Store(settings.store).check_writable()
    result = run_study(options, settings, settings.store)
    console = Console()
    print_ablation(Store(settings.store), study, console)
    console.print(f"tables  {os.path.dirname(result.tables[0])}", soft_wrap=True, highlight=False)
    console.print(f"report  {result.report}", soft_wrap=True, highlight=False)
    if result.problems:
        raise Unfinished(result.problems)


@app.command()
def demo() -> None:
    """Run digits-depth as it comes: four depths, four seeds, on a laptop, without a network."""
    run("digits-depth")


@app.command()
def studies() -> None:
    """List the studies there are."""
    from flows.presets import PRESETS

    for preset in PRESETS.values():
        n_cells = len(preset.datasets) * len(preset.widths) * len(preset.depths)
        n_pairs = preset.n_seeds * (preset.n_seeds - 1) // 2
        typer.echo(f"{preset.name}: {preset.question}")
        typer.echo(
            f"    {n_cells * preset.n_seeds} endpoints, {n_cells * n_pairs} pairs; "
            f"data {', '.join(preset.datasets)}; recipes {', '.join(preset.recipes)}"
        )


@app.command(name="report")
def redraw(
    study: Annotated[str, typer.Argument(help="Name of a study that was run on this store")], store: StoreOption = None
) -> None:
    """Draw a study's figures and report page again, from its tables alone."""
    settings = _settings(store=store)
    from flows.report import write_report

    typer.echo(write_report(Store(settings.store), study))


class Unfinished(Exception):
    """A study ended with something left undone, a sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))


def main() -> None:
    """Runs the command; what a person can mend is said in one sentence, with exit code 2 for wrong words, else 1."""
    sys.exit(_guarded(app))


def _guarded(command: Callable[..., Any]) -> int:
    from tasks.datasets import DataError

    try:
        command()
    except ValueError as error:
        code, message = 2, str(error)
    except (StoreError, DataError, Unfinished) as error:
        code, message = 1, str(error)
    except KeyboardInterrupt:
        code, message = 130, "stopped; run the same command again to go on from here"
    else:
        return 0
    typer.echo(f"repairlab: {message}", err=True)
    return code
