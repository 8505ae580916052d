"""`phiscope chat`: a talk in the terminal, in the model card's chat format.

The model is a base model: it continues the written talk, and its format ends an answer where the
other speaker would begin. When the talk outgrows the context, its oldest turns are left out.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from phiscope.cli.arguments import add_model_arguments, as_unicode, load_model
from phiscope.cli.command import Command
from phiscope.cli.exits import OK, UsageError, usage_errors
from phiscope.cli.generation import add_sampling_arguments, draft_setting, sampling_options
from phiscope.cli.printing import emit_json, emit_piece, note
from phiscope.prompts import PromptFormat, make_chat_format

if TYPE_CHECKING:
    from phiscope.api import Phi

_HELP = """\
/reset  forget the talk so far
/help   show this
/quit   leave (so does Ctrl-D)
Ctrl-C stops an answer."""


@dataclass
class Talk:
    """The turns so far, and how the next one is asked."""

    phi: "Phi"
    format: PromptFormat
    max_new_tokens: int
    settings: dict[str, Any]
    turns: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> Iterator[str]:
        """Give the answer piece by piece, and keep as much of it as was read."""
        prompt = self._fit(text)
        with usage_errors():
            pieces = self.phi.stream(
                prompt,
                stop=self.format.stop,
                max_new_tokens=self.max_new_tokens,
                **self.settings,
            )
        return self._keep(text, pieces)

    def _keep(self, text: str, pieces: Iterator[str]) -> Iterator[str]:
        self.turns.append((text, ""))
        for piece in pieces:
            self.turns[-1] = (text, self.turns[-1][1] + piece)
            yield piece

    def _fit(self, text: str) -> str:
        """Render the prompt, leaving out the oldest turns until the answer has room."""
        limit = self.phi.config.max_position_embeddings
        dropped = 0
        while True:
            prompt = self.format.render(text, self.turns)
            length = len(self.phi.tokenizer.encode(prompt)) + self.max_new_tokens
            if length <= limit:
                break
            if not self.turns:
                raise UsageError(f"that is too long: {length} tokens with the answer, of {limit}")
            del self.turns[0]
            dropped += 1
        if dropped:
            note(
                f"(the context of {limit} tokens is full: the oldest {dropped} turns are left out)"
            )
        return prompt


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--user", default="Alice", metavar="NAME", help="you (default: Alice)")
    parser.add_argument("--name", default="Bob", metavar="NAME", help="the model (default: Bob)")
    add_sampling_arguments(parser, leave_out=("--n", "--logprobs"))
    add_model_arguments(parser)


def _run(arguments: Namespace) -> int:
    if sys.stdin is None:
        raise UsageError("stdin is closed, so nobody can talk")
    with usage_errors():
        format = make_chat_format(arguments.user, arguments.name)
    settings = sampling_options(arguments)
    phi = load_model(arguments)
    settings |= draft_setting(arguments)
    max_new_tokens = settings.pop("max_new_tokens", min(128, _half_context(phi)))
    talk = Talk(phi, format, max_new_tokens, settings)
    if _is_interactive():
        _greet(arguments, phi)
    while _take_turn(talk, arguments):
        pass
    return OK


def _half_context(phi: "Phi") -> int:
    return phi.config.max_position_embeddings // 2


def _greet(arguments: Namespace, phi: "Phi") -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    note(f"{arguments.model} in mode {phi.mode.name}. /help lists the commands, Ctrl-D leaves.")


def _take_turn(talk: Talk, arguments: Namespace) -> bool:
    """Read a line and serve it; False when the talk is over. Ctrl-C ends the turn, not the talk."""
    try:
        line = as_unicode(input(f"{arguments.user}: " if _is_interactive() else "")).strip()
        if line and line != "/quit":
            _serve(talk, line, arguments)
    except EOFError:
        return False
    except UnicodeError:
        note("(that is not valid UTF-8)")
    except UsageError as error:
        note(f"({error})")
    except KeyboardInterrupt:
        if not _is_interactive():
            raise
        note("\n(stopped; /quit or Ctrl-D leaves)")
    else:
        return line != "/quit"
    return True


def _serve(talk: Talk, text: str, arguments: Namespace) -> None:
    if text == "/reset":
        talk.turns.clear()
        note("(forgotten)")
    elif text.startswith("/"):
        note(_HELP)
    elif arguments.json:
        emit_json({"prompt": text, "text": "".join(talk.ask(text)).strip()})
    else:
        _answer(talk.ask(text), arguments.name)


def _answer(pieces: Iterator[str], name: str) -> None:
    emit_piece(f"{name}: ")
    with closing(_without_leading_space(pieces)) as shown:
        for piece in shown:
            emit_piece(piece)
    emit_piece("\n")


def _without_leading_space(pieces: Iterator[str]) -> Generator[str, None, None]:
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        if shown:
            yield shown


def _is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


CHAT = Command(
    name="chat",
    summary="talk with the model in the terminal",
    usage="[options]",
    add_arguments=_add_arguments,
    run=_run,
    notes=f"Commands in the chat:\n{_HELP}",
)
