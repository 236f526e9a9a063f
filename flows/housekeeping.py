"""`repairlab du`, `gc` and `check`: what a store holds, what for, what may go, and what is damaged."""

from __future__ import annotations

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flows.terminal import tell
from infra.storage import Entry, Store, StoreError
from infra.text import one_line
from tasks.integrity import add_digest, find_damage, has_no_digest
from tasks.references import Inventory, list_declarations, take_inventory


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
            if list_declarations(store) != inventory.requests:
                raise StoreError(
                    "a study has begun on this store in the meantime, so nothing more is removed: call gc again once "
                    "it has ended"
                )
            store.remove(entry.key)
        tell(console, f"{decimal(entry.n_bytes):>9}  {entry.key}", soft_wrap=True)
    done = "would be removed" if dry_run else "removed"
    console.print(f"{len(garbage):,} files, {_size(garbage)}, {done}", highlight=False)


def check_files(store: Store, console: Console, *, delete: bool, seal: bool) -> bool:
    """Read every file of a store, print those that are damaged, and return whether none is left.

    With `delete` they are removed; with `seal` files of a version without digests get one first.
    """
    n_files, n_sealed, damaged = 0, 0, list[Entry]()
    for entry, error in find_damage(store.own, store.own.entries()):
        n_files += 1
        if error is None:
            continue
        if seal and has_no_digest(error) and add_digest(store.own, entry.key):
            n_sealed += 1
            continue
        damaged.append(entry)
        _say(str(error).partition(": delete it")[0], console)
        if delete:
            store.own.remove(entry.key)
    if seal:
        _say(f"{n_sealed:,} files have a digest now", console)
    if damaged and not delete:
        _say(
            f"{len(damaged):,} of {n_files:,} files are damaged: `repairlab check --delete` removes them, and the "
            "studies that they belong to make them anew when they are run again (imports, imported again)",
            console,
        )
    else:
        _say(f"{n_files - len(damaged):,} files are whole, {len(damaged):,} damaged ones were removed", console)
    return delete or not damaged


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
