"""The command `repairlab`, which can be stopped from its first moment on: all that takes time to import comes after.

Processes that multiprocessing starts import their parent's main module, and with it this one, before what they are to
run.
"""

import signal
import sys

GOES_ON = "repairlab: stopped; the same command goes on from here"

STARTS_OVER = "repairlab: stopped; the same command starts over"

_KEEPS_WHAT_IS_FINISHED = ("run", "demo", "import")


def main() -> None:
    """Runs the command that the command line names."""
    # From here on Ctrl-C waits for who can tell what it means.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    import logging

    from infra.interrupt import end_when_stopped

    end_when_stopped(GOES_ON if sys.argv[1:2] and sys.argv[1] in _KEEPS_WHAT_IS_FINISHED else STARTS_OVER)
    # Prefect reports log lines that its server does not take on standard error, in the middle of other lines.
    logging.raiseExceptions = False
    from flows.cli import main as run_command

    run_command()


# What Python calls the main module in a process that multiprocessing has started.
if "__mp_main__" in sys.modules:
    from infra.lifeline import begin_worker

    begin_worker()
elif __name__ == "__main__":
    main()
