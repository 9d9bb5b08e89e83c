"""What a command tells the user of what they gave: one sentence each."""

import sys
from collections.abc import Callable
from typing import TypeVar


def printable(text: str) -> str:
    """The same in one line, which changes nothing on a terminal: names may have anything in them."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class InputError(Exception):
    """Something that the user gave is missing or wrong; the message is one sentence for them."""

    def __str__(self) -> str:
        return printable(super().__str__())


def warn(message: str) -> None:
    """One line for the user, of something that may be meant."""
    print(f"warning: {printable(message)}", file=sys.stderr)


T = TypeVar("T")


def described(what: str, make: Callable[[], T]) -> T:
    """What a config describes.

    Raises:
        InputError: whatever making it raises is about what the user has written there, which may be any code.
    """
    try:
        return make()
    except InputError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(f"the config's {what} cannot be: {type(error).__name__}: {text:.300}") from error
