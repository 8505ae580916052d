"""The command `phiscope`. Nothing here imports torch before a command runs."""

from collections.abc import Sequence

from phiscope.cli.chat import CHAT
from phiscope.cli.checkpoints import CONVERT, INFO, VERIFY
from phiscope.cli.command import Command, make_parser
from phiscope.cli.doctor import DOCTOR
from phiscope.cli.embedding import EMBED
from phiscope.cli.exits import USAGE, run_to_exit_code
from phiscope.cli.generation import GENERATE
from phiscope.cli.states import STATES
from phiscope.cli.training import TRAIN

COMMANDS: tuple[Command, ...] = (
    GENERATE,
    CHAT,
    STATES,
    EMBED,
    CONVERT,
    INFO,
    VERIFY,
    TRAIN,
    DOCTOR,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    return run_to_exit_code(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = make_parser(COMMANDS)
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return USAGE
    code: int = arguments.command.run(arguments)
    return code
