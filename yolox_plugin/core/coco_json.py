"""COCO's annotation files, read once: the entries, and where in the text each of them stands."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

LISTS = ("images", "annotations")
# As long as all else together, and looked at by nobody who reads an annotation file for boxes.
LEFT_OUT = ("segmentation",)

_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_space = re.compile(r"[ \t\n\r]*").match
_comma = re.compile(r"[ \t\n\r]*,[ \t\n\r]*").match
_colon = re.compile(r"[ \t\n\r]*:[ \t\n\r]*").match

Spans = list[tuple[int, int]]


class CocoFile(NamedTuple):
    """What is in an annotation file."""

    path: Path
    state: list[int]  # of the file, see `state_of`
    text: str
    content: Any  # its value; the entries of `images` and `annotations` without what `LEFT_OUT` names
    spans: dict[str, Spans]  # of each entry of those that are lists, in `text`

    def entry(self, kind: str, place: int) -> str:
        """The text of an entry, whole."""
        begin, end = self.spans[kind][place]
        return self.text[begin:end]


def state_of(about: os.stat_result) -> list[int]:
    """Another one when the file has been written to, or another one has come in its place, whatever times that has."""
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def read_coco(path: str | os.PathLike[str]) -> CocoFile:
    """An annotation file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is no JSON, or somebody writes to it meanwhile.
    """
    with open(path, "rb") as file:
        state = state_of(os.fstat(file.fileno()))
        text = file.read().decode("utf-8-sig")
        after = state_of(os.fstat(file.fileno()))
    if state != after:
        raise ValueError(f"{path} changed while it was read: start again when it is complete")
    try:
        content, spans = _parse(text)
    except (StopIteration, IndexError):
        content, spans = json.loads(text), {}  # which says what is wrong
    return CocoFile(Path(path), state, text, content, spans)


def _parse(text: str) -> tuple[Any, dict[str, Spans]]:
    """See `CocoFile`.

    Raises:
        StopIteration, IndexError: it is no JSON object.
    """
    content: dict[str, Any] = {}
    spans: dict[str, Spans] = {}
    at = _after(_space, text, 0)
    if text[at] != "{":
        raise StopIteration(at)
    at = _after(_space, text, at + 1)
    while text[at] != "}":
        if text[at] != '"':
            raise StopIteration(at)
        name, at = _scan(text, at)
        at = _after(_colon, text, at)
        spans.pop(name, None)  # of a name that comes twice, the last counts
        if name in LISTS and text[at] == "[":
            content[name], spans[name], at = _parse_list(text, at)
        else:
            content[name], at = _scan(text, at)
        at = _after_item(text, at, "}")
    if _after(_space, text, at + 1) != len(text):
        raise StopIteration(at)
    return content, spans


def _parse_list(text: str, at: int) -> tuple[list[Any], Spans, int]:
    """Its entries, where they stand, and where it ends."""
    entries: list[Any] = []
    spans: Spans = []
    at = _after(_space, text, at + 1)
    while text[at] != "]":
        entry, end = _scan(text, at)
        if isinstance(entry, dict):
            # The scanner makes new strings of the same few names for each entry.
            entry = {sys.intern(name): value for name, value in entry.items() if name not in LEFT_OUT}
        entries.append(entry)
        spans.append((at, end))
        at = _after_item(text, end, "]")
    return entries, spans, at + 1


def _after(pattern: Any, text: str, at: int) -> int:
    found = pattern(text, at)
    if found is None:
        raise StopIteration(at)
    end: int = found.end()
    return end


def _after_item(text: str, at: int, closing: str) -> int:
    """Where the next item of a list or an object begins, or where it closes."""
    comma = _comma(text, at)
    if comma is None:
        at = _after(_space, text, at)
        if text[at] != closing:
            raise StopIteration(at)
        return at
    if text[comma.end()] == closing:
        raise StopIteration(comma.end())
    return comma.end()
