"""The program `dermalyze`, also as `python -m dermalyze` where nothing is installed."""

import signal

from dermalyze.cli.signals import SIGNALS, end


def run() -> None:
    """Run the command line; a signal before its first line and after its last one ends it too."""
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, end)
    from dermalyze.cli.main import main

    try:
        main(prog_name="dermalyze")
    except KeyboardInterrupt:  # it came between the two
        end(signal.SIGINT)
    finally:  # nothing of ours may run while Python takes itself apart
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    run()
