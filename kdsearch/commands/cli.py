"""The command line: the table of commands, each a thin call of a public function, and how a program ends."""

import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Annotated

try:
    import typer

    import kdsearch
    from kdsearch.commands import policies, runs, shipped
    from kdsearch.core.errors import KdsearchError
    from kdsearch.core.terminal import guard_output, on_command_line, say
except KeyboardInterrupt:  # while the program starts
    raise SystemExit(130) from None

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143


def _print_version(asked: bool) -> None:
    if asked:
        say(f"kdsearch {kdsearch.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Which augmentation policy makes this student learn most from this teacher?"""


COMMANDS = (
    runs.check,
    runs.search,
    runs.train,
    runs.evaluate,
    runs.compare,
    runs.status,
    runs.regions,
    policies.export,
    policies.rank,
    policies.sheet,
    policies.diff,
    policies.trajectory,
    runs.frames,
    runs.report,
    shipped.spaces,
    shipped.studies,
    shipped.operations,
    shipped.objectives,
    shipped.losses,
    shipped.copy,
)
for _command in COMMANDS:
    app.command()(_command)


def _exit_code() -> int | str | None:
    """Run a command to the end of its output."""
    try:
        app()
        code = None
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    return code


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2, Ctrl-C is 130, SIGTERM is 143."""
    terminated = list[int]()

    def terminate(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    guard_output()
    before = signal.signal(signal.SIGTERM, terminate)
    code: int | str | None = INTERRUPTED
    with suppress(KeyboardInterrupt):  # also of a second signal, while the first is on its way here
        try:
            with on_command_line():
                code = _exit_code()
        except KdsearchError as error:
            with suppress(OSError):
                say(f"kdsearch: {error}", file=sys.stderr)
            code = BAD_INPUT
    if code == INTERRUPTED:
        with suppress(KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
        code = TERMINATED if terminated else INTERRUPTED
    signal.signal(signal.SIGTERM, before)
    raise SystemExit(code)
