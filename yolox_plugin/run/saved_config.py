"""The config that a checkpoint was trained with, read as values: nothing in it is executed."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from .messages import InputError


def has_config(meta: dict[str, Any]) -> bool:
    """Whether a checkpoint of MMDetection 2 or 3, or of this plugin, has the config of its training in it."""
    return _text_in(meta) is not None


def _text_in(meta: dict[str, Any]) -> str | None:
    texts = [meta.get(key) for key in ("config", "cfg")]  # of MMDetection 2, and of 3
    return next((text for text in texts if isinstance(text, str) and text), None)


def config_in(meta: dict[str, Any], path: object) -> dict[str, Any]:
    """The entries of the config that a training by MMDetection 2 or 3, or by this plugin, has put into its checkpoints.

    Args:
        meta: the checkpoint's.
        path: what to call it in errors.

    Raises:
        InputError: there is none, or it is more than values.
    """
    text = _text_in(meta)
    if text is None:
        raise InputError(f"--pth-path {path} has no config in it: name the one it was trained with by --config")
    try:
        entries = values_in(text)
        check_harmless(entries)
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"--pth-path {path} has a config that is more than values ({error}): name it by --config"
        ) from error
    return entries


def check_harmless(entries: dict[str, Any]) -> None:
    """Raises ValueError for a config that would have modules imported, or strings evaluated, that are no host's own: a
    `type` may be the name of any function in MMDetection 3, and is evaluated for NMS in mmcv."""
    imports = entries.get("custom_imports") or {}
    names = imports.get("imports") or [] if isinstance(imports, dict) else [imports]
    for name in [names] if isinstance(names, str) else names:
        if not re.fullmatch(r"yolox_plugin|(mmdet|mmcv|mmengine)(\.\w+)*", str(name)):
            raise ValueError(f"it imports {name}")
    for kind in types_in(entries):
        if not re.fullmatch(r"((mmdet|mmcv|mmengine)\.)?[A-Za-z_]\w*", str(kind)):
            raise ValueError(f"it has a part of type {kind!r:.60}")


def types_in(entries: Any) -> Iterator[Any]:
    """Every `type` in (a part of) a config."""
    if isinstance(entries, dict):
        if entries.get("type") is not None:
            yield entries["type"]
        entries = list(entries.values())
    if isinstance(entries, (list, tuple)):
        for entry in entries:
            yield from types_in(entry)


def classes_in(meta: dict[str, Any]) -> tuple[str, ...]:
    """What a checkpoint of MMDetection 2 or 3 or of this plugin calls its classes; none if it does not say."""
    return _names(meta.get("LABELS")) or config_classes_in(meta)  # LABELS are in the order of labels


def config_classes_in(meta: dict[str, Any]) -> tuple[str, ...]:
    """The same in the order of the training's config."""
    about = meta.get("dataset_meta")
    return _names(about.get("classes") if isinstance(about, dict) else None) or _names(meta.get("CLASSES"))


def _names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


def values_in(text: str) -> dict[str, Any]:
    """What the assignments of a Python text say, of literals and of dict(...) with names.

    Raises:
        SyntaxError, ValueError: for anything else.
    """
    found = {}
    for line in ast.parse(text).body:
        if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
            raise ValueError(f"line {line.lineno} is no assignment to a name")
        found[line.targets[0].id] = ast.literal_eval(_DictCalls().visit(line.value))
    return found


class _DictCalls(ast.NodeTransformer):
    """dict(a=1) becomes {"a": 1}, as mmcv and mmengine write the former."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node = self.generic_visit(node)  # type: ignore[assignment]
        names = [keyword.arg for keyword in node.keywords]
        if not (isinstance(node.func, ast.Name) and node.func.id == "dict") or node.args or None in names:
            raise ValueError(f"line {node.lineno} calls something")
        keys: list[ast.expr | None] = [ast.Constant(name) for name in names]
        return ast.copy_location(ast.Dict(keys, [keyword.value for keyword in node.keywords]), node)
