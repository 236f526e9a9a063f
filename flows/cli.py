"""`repairlab`: run studies, list, report and compare them with the paper; merge two networks of a person's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from infra.faults import SERVER_FAULTS

# Prefect reads these as it is imported. A user's own values stand.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", SERVER_FAULTS)
os.environ.setdefault("DO_NOT_TRACK", "1")

import typer

from flows.terminal import make_console, say, tell
from infra.paths import report_key, table_key
from infra.sealing import read_sealed
from infra.settings import DEVICES, RUNNERS, Settings, load_settings
from infra.storage import Store, StoreError
from infra.text import one_line
from tasks.science.specs.identity import safe_name

LONG_HOURS = 2
"""What takes longer is not started by mistake."""

app = typer.Typer(
    help="How the loss barrier between independently trained networks depends on width, depth and normalization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[
    str | None, typer.Option("--store", help="Folder or s3:// URL of the store [REPAIRLAB_STORE, ./runs]")
]
UpstreamOption = Annotated[
    str | None,
    typer.Option("--upstream", help="Store to read what one's own lacks from, never written [REPAIRLAB_UPSTREAM]"),
]
RunnerOption = Annotated[str | None, typer.Option("--runner", help=f"{', '.join(RUNNERS)} [REPAIRLAB_RUNNER]")]
SchedulerOption = Annotated[
    str | None,
    typer.Option("--scheduler", help="Address of a Dask scheduler; else dask starts its own [REPAIRLAB_SCHEDULER]"),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help=f"What networks are trained on: {' or '.join(DEVICES)} [REPAIRLAB_DEVICE]"),
]


def _settings(**changes: Any) -> Settings:
    given = {name: value for name, value in changes.items() if value is not None}
    for name, words in (("runner", RUNNERS), ("device", DEVICES)):
        if given.get(name, words[0]) not in words:
            raise ValueError(f"--{name} takes {', '.join(words[:-1])} or {words[-1]}, got {given[name]}")
    for name, value in given.items():
        os.environ[f"REPAIRLAB_{name.upper()}"] = value
    return load_settings()


def _find_store(settings: Settings) -> Store:
    """The store for a command that a person waits for: one that does not answer is not asked for long."""
    return Store(settings.store, settings.upstream, patience_seconds=0)


def _words(values: list[str] | None) -> list[str] | None:
    """An option that can be repeated, or given as a comma-separated list."""
    if values is None:
        return None
    words = [word.strip() for value in values for word in value.split(",")]
    if not all(words):
        raise ValueError(f"an option was given an empty value: {','.join(values)!r}")
    return words


def _matchers(values: list[str] | None) -> list[str] | None:
    """As `_words`; but a matcher's own options are separated by commas too, so `a/x=1,y=2,b` are two matchers."""
    words: list[str] = []
    for word in _words(values) or []:
        if "=" in word and "/" not in word and words:
            words[-1] = f"{words[-1]},{word}"
        else:
            words.append(word)
    return words or None


def _numbers(values: list[str] | None, name: str) -> list[int] | None:
    try:
        return [int(word) for word in words] if (words := _words(values)) else None
    except ValueError as error:
        raise ValueError(f"--{name} takes whole numbers, got {', '.join(values or [])}") from error


def _sweeps(values: list[str] | None) -> dict[str, list[Any]] | None:
    """`learning_rate=.1,.2` as a field and its values."""
    from tasks.tables.sweep import parse_value

    swept: dict[str, list[Any]] = {}
    for text in values or []:
        name, equals, words = text.partition("=")
        if not (equals and all(words.split(","))):
            raise ValueError(f"--sweep takes FIELD=VALUE,VALUE,..., got {text}")
        swept[name] = [parse_value(name, word.strip()) for word in words.split(",")]
    return swept or None


@app.command()
def run(
    study: Annotated[
        str, typer.Argument(help="Name of the study, or a file with one; `repairlab studies` lists them")
    ] = "own",
    store: StoreOption = None,
    network: Annotated[str | None, typer.Option(help="package.module:function that makes a network of yours")] = None,
    data: Annotated[str | None, typer.Option(help="Data set, or package.module:function that loads yours")] = None,
    size: Annotated[str | None, typer.Option(help="Another of the study's sizes: smoke, small or paper")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Data set, repeatable or comma-separated")] = None,
    width: Annotated[list[str] | None, typer.Option(help="Width, repeatable or comma-separated")] = None,
    depth: Annotated[list[str] | None, typer.Option(help="Hidden layers, repeatable or comma-separated")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of each cell")] = None,
    recipe: Annotated[str | None, typer.Option(help="Another of the study's training recipes")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs instead of the recipe's")] = None,
    precision: Annotated[
        str | None, typer.Option(help="What training computes in: float32, bfloat16, or on a GPU float16")
    ] = None,
    alphas: Annotated[int | None, typer.Option(help="Odd number of points on each path")] = None,
    architecture: Annotated[list[str] | None, typer.Option(help="Only these of the study's architectures")] = None,
    normalization: Annotated[list[str] | None, typer.Option(help="Only these of the study's normalizations")] = None,
    matcher: Annotated[
        list[str] | None, typer.Option(help="How B is permuted, repeatable: activation, weight/restarts=5, none, ...")
    ] = None,
    correction: Annotated[
        list[str] | None, typer.Option(help="What is done after interpolation: repair, reset, none, ...")
    ] = None,
    statistics: Annotated[int | None, typer.Option(help="Train images that matchers and corrections see")] = None,
    evaluation: Annotated[int | None, typer.Option(help="Images of each split that curves are evaluated on")] = None,
    draw: Annotated[int | None, typer.Option(help="Another choice and augmentation of the statistics images")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=VALUE,VALUE,...: any field of recipes or measurements; repeatable, then crossed"),
    ] = None,
    controls: Annotated[
        bool | None, typer.Option("--controls/--no-controls", help="One pair of each cell at random and against itself")
    ] = None,
    ensembles: Annotated[
        bool | None, typer.Option("--ensembles/--no-ensembles", help="Every pair with its outputs averaged as well")
    ] = None,
    logit_shifts: Annotated[
        bool | None,
        typer.Option(
            "--logit-shifts/--no-logit-shifts", help="Of data in halves, endpoints with half of their logits shifted"
        ),
    ] = None,
    joint_training: Annotated[
        bool | None,
        typer.Option(
            "--joint-training/--no-joint-training", help="Of data in halves, every seed on both halves as well"
        ),
    ] = None,
    upstream: UpstreamOption = None,
    runner: RunnerOption = None,
    scheduler: SchedulerOption = None,
    device: DeviceOption = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the code that the study's file, or what was imported, names")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop")] = False,
    yes: Annotated[bool, typer.Option("--yes", help=f"Start what takes more than {LONG_HOURS} hours")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress and no table: where tables and report lie")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Quiet, and at the end all of it as JSON")] = False,
) -> None:
    """Run a study: train, align, interpolate, repair, and gather what was measured into tables."""
    from flows.commands.imports import resolve
    from flows.options import STUDY_FILE, StudyOptions, read_study
    from flows.plan import make_plan, refuse_training
    from flows.trust import check_folder
    from tasks.data.datasets import describe_dataset

    with _checking_words():
        settings = _settings(store=store, upstream=upstream, runner=runner, scheduler=scheduler, device=device)
        settings = settings.model_copy(update={"quiet": settings.quiet or quiet or as_json})
        own = read_study(Path(study)) if study.endswith(STUDY_FILE) else None
        if own is not None and not trust_code:
            check_folder(Path.cwd())
        options = StudyOptions(
            study=own.name if own else study,
            own=own,
            network=network,
            data=data,
            trust_code=trust_code,
            size=size,
            dataset=_words(dataset),
            width=_numbers(width, "width"),
            depth=_numbers(depth, "depth"),
            seeds=seeds,
            recipe=recipe,
            epochs=epochs,
            precision=precision,
            alphas=alphas,
            architecture=_words(architecture),
            normalization=_words(normalization),
            matcher=_matchers(matcher),
            correction=_words(correction),
            statistics=statistics,
            evaluation=evaluation,
            draw=draw,
            sweep=_sweeps(sweep),
            controls=controls,
            ensembles=ensembles,
            logit_shifts=logit_shifts,
            joint_training=joint_training,
        )
        target = _find_store(settings)
        request = resolve(options, target, lambda name: describe_dataset(name, settings.data_dir))
    plan, refusal = make_plan(target, request, settings.workers), refuse_training(target, request, settings.device)
    if dry_run:
        say(plan.describe())
        if refusal is not None:
            say(f"not to be trained here: {refusal}")
        return
    if refusal is not None:
        raise WrongWordsError(refusal)
    if plan.hours > LONG_HOURS and not yes:
        raise WrongWordsError(
            f"{options.study} would take about {plan.hours:.2g} hours here: --yes starts it, --dry-run says what it "
            "would do, and fewer --seeds or widths, or another --size, are less of it"
        )
    target.check_writable()
    from flows.report.outcome import outcome_json, print_ablation
    from flows.study import UnfinishedError, find_request, run_study

    request, _ = find_request(options, target, settings.data_dir)
    try:
        run_study(options, settings)
        problems = None
    except UnfinishedError as error:
        problems = error
    if as_json:
        say(outcome_json(target, request, problems.problems if problems else ()))
        if problems is not None:
            raise problems
        return
    if not settings.quiet:
        print_ablation(target, request, make_console())
    for sentence in request.left_out():
        say(sentence)
    say(f"tables  {target.locate(table_key(request.study, 'ablation'))}")
    say(f"report  {target.locate(report_key(request.study))}")
    if problems is not None:
        raise problems


@app.command()
def demo() -> None:
    """Run digits-depth as it comes: four depths, four seeds, on a laptop, without a network."""
    run("digits-depth")


@app.command()
def studies(
    size: Annotated[str | None, typer.Option(help="Only the names of those that come in this size")] = None,
) -> None:
    """List the studies there are: what each asks, its size, and what of it was run."""
    from flows.plan import measure_flops_per_second, request_flops
    from flows.presets import PRESETS
    from tasks.data.datasets import published_shape

    if size is not None:
        say("\n".join(name for name, preset in PRESETS.items() if size in preset.sizes))
        return
    rate = measure_flops_per_second()
    for preset in PRESETS.values():
        request = preset.request(published_shape)
        say(f"{preset.name}: {preset.question}")
        say(
            f"    {len(request.trained_cells) * preset.n_seeds} endpoints, {request.n_pairs} pairs, "
            f"{request_flops(request) / rate / 3600:.2g} core-hours here; data {', '.join(preset.datasets)}"
        )
        recipes = dict.fromkeys((*preset.default_recipes, *preset.recipes))
        facts = {"recipes": ", ".join(recipes), "sizes": ", ".join(preset.sizes), "figure": preset.figure}
        told = [f"{name} {fact}" for name, fact in facts.items() if fact]
        say(f"    {'; '.join([*told, f'run here: {preset.ran}'])}")


@app.command(name="report")
def redraw(
    study: Annotated[str, typer.Argument(help="Name of a study that was run on this store")],
    store: StoreOption = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page that there is in a browser; it is drawn only where it lacks")
    ] = False,
) -> None:
    """Draw a study's figures and report page again, from its tables alone."""
    from flows.report.page import write_report

    with _checking_words():
        target = _find_store(_settings(store=store))
        _check_study(target, study)
    if not (open_page and target.exists(report_key(study))):
        say(write_report(target, study))
    if open_page:
        _open_page(target, study)


def _open_page(store: Store, study: str) -> None:
    """Opens a study's page in a browser; a copy where the store is not a folder, which a browser cannot read from."""
    import tempfile
    import webbrowser

    data = read_sealed(store, report_key(study))
    where = store.locate(report_key(study))
    page = Path(where)
    if "://" in where:
        page = Path(tempfile.mkdtemp(prefix="repairlab-")) / f"{study}.html"
        page.write_bytes(data)
    say(str(page))
    if not webbrowser.open(page.absolute().as_uri()):
        say("repairlab: there is no browser here; the page is the file above", err=True)
        raise typer.Exit(1)


def _check_study(store: Store, study: str) -> None:
    """ValueError for a study that neither has tables in the store nor could be run."""
    from flows.presets import find_preset
    from flows.report.gathered import has_tables

    safe_name(study)
    if not has_tables(store, study):
        find_preset(study)


@app.command(name="compare")
def compare_study(
    study: Annotated[str, typer.Argument(help="Name of a study that was run on this store")], store: StoreOption = None
) -> None:
    """Set a study beside the figures that the authors of REPAIR saved, with a verdict on each."""
    from flows.commands.compare import compare

    with _checking_words():
        settings = _settings(store=store)
        _check_study(_find_store(settings), study)
    compare(_find_store(settings), study, make_console())


@app.command()
def doctor(
    store: StoreOption = None,
    upstream: UpstreamOption = None,
    runner: RunnerOption = None,
    scheduler: SchedulerOption = None,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for a program")] = False,
) -> None:
    """Say what this machine, its store and its servers have for a study, and what is wrong; exit code 1 then."""
    from flows.commands.doctor import examine, print_findings

    with _checking_words():
        settings = _settings(store=store, upstream=upstream, runner=runner, scheduler=scheduler, device=device)
    findings = examine(settings)
    print_findings(findings, make_console(), as_json=as_json)
    if not all(finding.is_well for finding in findings):
        raise typer.Exit(1)


@app.command()
def du(store: StoreOption = None, upstream: UpstreamOption = None) -> None:
    """Say how much a store holds, by kind and by study."""
    from flows.commands.housekeeping import print_usage

    with _checking_words():
        settings = _settings(store=store, upstream=upstream)
    print_usage(_find_store(settings), make_console())


@app.command()
def gc(
    store: StoreOption = None,
    upstream: UpstreamOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and stop")] = False,
) -> None:
    """Remove what no study of a store refers to, and what killed writers have left, once it is a day old."""
    from flows.commands.housekeeping import collect_garbage

    with _checking_words():
        settings = _settings(store=store, upstream=upstream)
    collect_garbage(_find_store(settings), make_console(), dry_run=dry_run)


@app.command()
def check(
    store: StoreOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the files that are damaged")] = False,
    seal: Annotated[
        bool, typer.Option("--seal", help="Add digests to files of a version of repairlab that wrote none")
    ] = False,
) -> None:
    """Read every file of a store and list those that are not what was written; exit code 1 where there are any."""
    from flows.commands.housekeeping import check_files

    with _checking_words():
        target = _find_store(_settings(store=store))
    if not check_files(target, make_console(), delete=delete, seal=seal):
        raise typer.Exit(1)


@app.command()
def merge(
    a: Annotated[Path, typer.Argument(metavar="A", help="Weights of network A: safetensors, or a torch file")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Weights of network B, of the same architecture")],
    network: Annotated[str, typer.Option(help="package.module:function that builds the network")],
    data: Annotated[str, typer.Option(help="A known data set, or package.module:function that loads one")],
    out: Annotated[Path, typer.Option(help="Safetensors file to write; it must not be there yet")],
    alpha: Annotated[float, typer.Option(help="Where between A (0) and B (1)")] = 0.5,
    matcher: Annotated[str, typer.Option(help="How units are aligned, with its options")] = "activation",
    correction: Annotated[str, typer.Option(help="What is done to the interpolated network")] = "repair",
    statistics: Annotated[int, typer.Option(help="Train images that activations are measured on")] = 5000,
    allow_extra_layers: Annotated[
        bool, typer.Option("--allow-extra-layers", help="Write tensors that the network's class lacks, if need be")
    ] = False,
) -> None:
    """Merge two networks that were trained anywhere, and write weights that their own class loads."""
    from flows.commands.merge import MergeOptions, merge_files, print_merge

    with _checking_words():
        options = MergeOptions(a, b, network, data, out, alpha, matcher, correction, statistics, allow_extra_layers)
        sources = options.find(_settings().data_dir)
    print_merge(merge_files(options, sources), options, make_console())


@app.command(name="import")
def import_endpoints(
    files: Annotated[list[str], typer.Argument(help="Weights files, or patterns of them: safetensors, or torch files")],
    network: Annotated[str, typer.Option(help="package.module:function that builds the network, or an architecture")],
    data: Annotated[str, typer.Option(help="A known data set, or package.module:function that loads one")],
    store: StoreOption = None,
    study: Annotated[str, typer.Option(help="The study that they become the endpoints of")] = "imported",
    known: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE: what is known of their training; or width, depth, normalization"),
    ] = None,
    seed_from: Annotated[str, typer.Option(help="order: of the files; name: the last number in each")] = "order",
) -> None:
    """Bring networks that were trained elsewhere into a store, as the endpoints of a study that trains nothing."""
    from flows.commands.imports import ImportOptions, import_files, print_imports

    with _checking_words():
        settings = _settings(store=store)
        options = ImportOptions(tuple(files), network, data, study, _facts(known), seed_from)
        target = _find_store(settings)
        target.check_writable()
        console = make_console()
        trained = import_files(options, target, settings.data_dir, partial(tell, console, soft_wrap=True))
    print_imports(trained, options, console)


def _facts(texts: list[str] | None) -> dict[str, str]:
    """`learning_rate=.1` as a field and its value."""
    facts: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (equals and value):
            raise ValueError(f"--set takes FIELD=VALUE, got {text}")
        facts[name] = value
    return facts


class WrongWordsError(Exception):
    """What was asked for cannot be; the message says what can."""


@contextmanager
def _checking_words() -> Generator[None]:
    """A ValueError in here is a person's, not the program's."""
    try:
        yield
    except ValueError as error:
        raise WrongWordsError(str(error)) from error


def main() -> None:
    """Runs the command; what a person can mend is said in one sentence, with exit code 2 for wrong words, else 1."""
    sys.exit(_guarded(app))


def _guarded(command: Callable[[], Any]) -> int:
    try:
        command()
    except WrongWordsError as error:
        code, sentences = 2, [str(error)]
    except Exception as error:
        if not _is_for_a_person(error):
            raise
        code, sentences = 1, getattr(error, "problems", [str(error)])
    else:
        return 0
    say("repairlab: " + "\n".join(map(one_line, sentences)), err=True)
    return code


def _is_for_a_person(error: Exception) -> bool:
    """Whether an error's message is a sentence with the way out, to be shown without a traceback."""
    from infra.weights import WeightsError
    from tasks.science.networks.fitting import MergeError
    from tasks.science.specs.user_code import UserCodeError
    from tasks.science.symmetry.tracing import TraceError

    if isinstance(error, WeightsError | UserCodeError | MergeError | TraceError):
        return True  # Before Prefect is imported: merging needs none.
    from flows.study import UnfinishedError
    from infra.runners import ServerError
    from tasks.data.published import DataError

    return isinstance(error, StoreError | DataError | ServerError | UnfinishedError)
