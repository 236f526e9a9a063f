"""Command `python -m infra.stack up`, `down` or `status`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from infra.stack.errors import StackError

_MISSING = "the stack's own packages are not installed here: pip install 'repairlab[stack]'"


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0, or 1 if a part did not start or is not up. Errors of the user are one sentence."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description="A small cluster on this machine.")
    parser.add_argument("command", choices=["up", "down", "status"])
    command: str = parser.parse_args(arguments).command
    try:
        return {"up": _up, "down": _down, "status": _status}[command]()
    except StackError as error:
        print(f"repairlab: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in ("psutil", "distributed"):
            raise
        print(f"repairlab: {_MISSING}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("repairlab: stopped; what this command had started is ended", file=sys.stderr)
        return 130


def _up() -> int:
    from infra.stack.lifecycle import status, up, warnings
    from infra.stack.place import Folder, load_stack_settings

    settings = load_stack_settings()
    began = time.monotonic()
    started = up(settings)
    if started:
        print(f"started {', '.join(started)} in {time.monotonic() - began:.0f} s")
    else:
        print("up already")
    for report in status(settings):
        print(f"  {report.title:<15} {report.where}")
    for sentence in warnings(settings):
        print(sentence)
    print(f"Logs lie in {_near(Folder(settings.dir).logs)}. To make a terminal its client:\n")
    print(f"  source {_near(Folder(settings.dir).env)}")
    return 0


def _down() -> int:
    from infra.stack.lifecycle import down
    from infra.stack.place import load_stack_settings

    ended = down(load_stack_settings())
    print(f"ended {', '.join(ended)}; what they kept is kept" if ended else "nothing was up")
    return 0


def _status() -> int:
    from infra.stack.lifecycle import status
    from infra.stack.place import load_stack_settings

    reports = status(load_stack_settings())
    for report in reports:
        print(f"{report.condition:<8} {report.title:<15} {report.where}")
    if not reports:
        print("nothing is up")
    return 0 if reports and all(report.condition == "running" for report in reports) else 1


def _near(path: Path) -> str:
    """Return `path` in the shortest form that can be typed here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
