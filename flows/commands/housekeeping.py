"""`repairlab du`, `gc` and `check`: the usage of a store, its garbage, and its damaged files."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flows.terminal import tell
from infra.storage import Entry, Store, StoreError, UnreachableError
from infra.text import one_line
from tasks.stored.integrity import (
    UnreadableError,
    add_digest,
    examine_file,
    find_damaged_files,
    has_no_digest,
    is_linked,
    kind_of,
    list_files,
)
from tasks.stored.references import Inventory, list_declarations, take_inventory

_State = Literal["whole", "sealed", "left", "removed", "unreadable"]

_DRAWN = ("report", "figures")
"""The kinds of files that `repairlab report` makes."""


def print_usage(store: Store, console: Console) -> None:
    """Print the bytes of a store by kind and by study, in 80 columns."""
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
    """Remove the files that no study refers to, or print them in a dry run."""
    inventory = take_inventory(store)
    _tell_kept(inventory, console)
    garbage = inventory.garbage()
    for entry in garbage:
        if not dry_run:
            # A study that began since may refer to it.
            if list_declarations(store) != inventory.requests:
                raise StoreError(
                    "a study has begun on this store in the meantime, so nothing more is removed: run gc again once "
                    "it has ended"
                )
            store.remove(entry.key)
        tell(console, f"{decimal(entry.n_bytes):>9}  {entry.key}", soft_wrap=True)
    done = "would be removed" if dry_run else "removed"
    console.print(f"{len(garbage):,} files, {_size(garbage)}, {done}", highlight=False)


def check_files(store: Store, console: Console, *, delete: bool, seal: bool) -> bool:
    """Read every file of a store, print those that are damaged, and return whether none is left and all were readable.

    With `delete` they are removed; with `seal` files of a version without digests get one first. Raises StoreError
    where there is no file of repairlab.
    """
    entries, unlisted = list_files(store.own)
    for error in unlisted:
        _say(str(error), console)
    counts = Counter[_State]()
    for entry, error in find_damaged_files(store.own, entries):
        try:
            state = _settle(store.own, entry.key, error, console, delete=delete, seal=seal) if error else "whole"
        except FileNotFoundError:
            continue  # Removed since it was read.
        counts[state] += 1
    if not (counts or unlisted):
        raise StoreError(f"there is nothing of repairlab in {store.url}: check its name")
    told = [f"{counts['whole'] + counts['sealed']:,} whole"]
    if seal:
        told.append(f"{counts['sealed']:,} of them with a digest from now on")
    told += [f"{counts['removed']:,} not whole and removed", f"{counts['left']:,} not whole and still there"]
    told.append(f"{counts['unreadable']:,} that could not be read")
    _say(f"{counts.total():,} files: {', '.join(told)}", console)
    if unlisted:
        _say(f"{len(unlisted):,} folders or links could not be followed, and what lies there was not read", console)
    if counts["left"] and not delete:
        adds = "" if seal else "`repairlab check --seal` adds digests to files of a version that wrote none; "
        _say(f"{adds}`repairlab check --delete` removes what is not whole", console)
    if counts["left"] or counts["removed"]:
        _say(
            "a study makes its files anew when it is run again, but for requests and imports: those take the command "
            "that made them, with its own options",
            console,
        )
    return not (counts["left"] or counts["unreadable"] or unlisted)


def _settle(store: Store, key: str, found: StoreError, console: Console, *, delete: bool, seal: bool) -> _State:
    """Seal, remove or leave a file that was `found` damaged, print its damage, and return its state.

    Files are read far ahead of this, so it is read again first: another process may have replaced it.
    """
    if isinstance(found, UnreadableError):
        _say(str(found), console)
        return "unreadable"
    failure = None
    try:
        is_theirs = is_linked(store, key)
        if seal and not is_theirs and has_no_digest(found) and add_digest(store, key):
            return "sealed"
        error = examine_file(store, key)
        state: _State = "unreadable" if isinstance(error, UnreadableError) else "left" if error else "whole"
        if delete and state == "left":
            if is_theirs:
                raise StoreError(f"{key} lies behind a symbolic link, and is left there")
            store.remove(key)
            state = "removed"
    except (FileNotFoundError, UnreachableError):
        raise
    except (StoreError, OSError) as refused:
        state, error, failure = "left", found, refused
    if error is not None:
        _say(_describe(store, key, error, seal=seal), console)
    if failure is not None:
        _say(str(failure), console)
    return state


def _describe(store: Store, key: str, error: StoreError, *, seal: bool) -> str:
    """Return a sentence on the damage of a file, with the command that replaces it unless running its study does."""
    if isinstance(error, UnreadableError):
        return str(error)
    kind, study = kind_of(key), key.split("/")[1]
    reason = str(error).partition(": delete it")[0]
    if has_no_digest(error) and kind in _DRAWN:
        reason = f"{store.locate(key)} has no digest"
    elif has_no_digest(error) and seal:
        reason = f"{store.locate(key)} is not whole, and gets no digest"
    if kind in _DRAWN:
        return f"{reason}: `repairlab report {study}` makes it anew"
    if kind == "requests":
        return f"{reason}: the `repairlab run` command of {study} that made it has to be given again, with its options"
    return f"{reason}: import the weights of {study} again" if kind == "imported" else reason


def _tell_kept(inventory: Inventory, console: Console) -> None:
    """Print why files are kept that no study refers to."""
    if inventory.unfinished:
        _say(f"{', '.join(inventory.unfinished)}: not all endpoints are there, so all measured pairs are kept", console)
    if inventory.foreign:
        _say(
            f"{', '.join(inventory.foreign)}: not gathered to its end by this version and from all of its requests, "
            "or damaged (`repairlab check`), so nobody knows all of its files and all are kept; run it again, or "
            "remove its folder",
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
