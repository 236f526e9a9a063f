"""`repairlab du` and `repairlab gc`: what a store holds, what for, and what may go."""

from __future__ import annotations

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flows.terminal import tell
from infra.storage import Entry, Store, StoreError
from infra.text import one_line
from tasks.references import Inventory, list_requests, take_inventory


def print_usage(store: Store, console: Console) -> None:
    """What a person reads: bytes by kind and by study, in 80 columns."""
    inventory = take_inventory(store)
    table = _table("kind", "files", "size")
    for kind, (n_files, n_bytes) in inventory.count_kinds().items():
        table.add_row(Text(one_line(kind)), f"{n_files:,}", decimal(n_bytes))
    console.print(table)
    if inventory.studies:
        console.print()
        table = _table("study", "files", "size, shared files included")
        for study, keys in inventory.studies.items():
            n_files = sum(entry.key in keys for entry in inventory.entries)
            table.add_row(Text(one_line(study)), f"{n_files:,}", decimal(inventory.bytes_of(study)))
        console.print(table)
    _tell_kept(inventory, console)
    garbage = inventory.garbage()
    console.print(
        f"\nno study refers to {len(garbage):,} files older than a day, {_size(garbage)}: repairlab gc removes them",
        highlight=False,
    )


def collect_garbage(store: Store, console: Console, *, dry_run: bool) -> None:
    """Removes what no study refers to, or says what would be removed."""
    inventory = take_inventory(store)
    _tell_kept(inventory, console)
    garbage = inventory.garbage()
    for entry in garbage:
        if not dry_run:
            # Whoever has begun since may refer to it.
            if list_requests(store) != inventory.requests:
                raise StoreError(
                    "a study has begun on this store in the meantime, so nothing more is removed: call gc again once "
                    "it has ended"
                )
            store.remove(entry.key)
        tell(console, f"{decimal(entry.n_bytes):>9}  {entry.key}", soft_wrap=True)
    done = "would be removed" if dry_run else "removed"
    console.print(f"{len(garbage):,} files, {_size(garbage)}, {done}", highlight=False)


def _tell_kept(inventory: Inventory, console: Console) -> None:
    """Why more is kept than studies refer to."""
    if inventory.unfinished:
        _say(f"{', '.join(inventory.unfinished)}: not all endpoints are there, so all measured pairs are kept", console)
    if inventory.foreign:
        _say(
            f"{', '.join(inventory.foreign)}: not gathered to its end by this version, and another may name files "
            "otherwise, so all are kept; run it again, or remove its folder",
            console,
        )


def _say(sentence: str, console: Console) -> None:
    tell(console, sentence, soft_wrap=True)


def _size(entries: list[Entry]) -> str:
    return decimal(sum(entry.n_bytes for entry in entries))


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(titles[0], overflow="fold")
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    return table
