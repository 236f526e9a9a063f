"""Entry of the command `repairlab`, which Ctrl-C stops at any time: slow imports come after the handler is set.

Processes that multiprocessing starts import their parent's main module, and with it this one, before their function.
"""

import signal
import sys

GOES_ON = "repairlab: stopped; the same command goes on from here"

STARTS_OVER = "repairlab: stopped; the same command starts over"

_KEEPS_WHAT_IS_FINISHED = ("run", "demo", "import")


def main() -> None:
    """Run the command that the command line names."""
    # From here on Ctrl-C waits for its handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    import logging

    from infra.interrupt import end_when_stopped

    end_when_stopped(GOES_ON if sys.argv[1:2] and sys.argv[1] in _KEEPS_WHAT_IS_FINISHED else STARTS_OVER)
    # Prefect reports log lines that its server refuses on standard error, in the middle of other lines.
    logging.raiseExceptions = False
    from flows.cli import main as run_command

    run_command()


# Python's name of the main module in a process that multiprocessing has started.
if "__mp_main__" in sys.modules:
    from infra.lifeline import begin_worker

    begin_worker()
elif __name__ == "__main__":
    main()
