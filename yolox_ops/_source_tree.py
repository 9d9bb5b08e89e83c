"""Where the compiled part is when Python imports a source tree that has none, such as a clone after `pip install .`.

In the clone's own folder Python finds the tree before the installed package. The tree then uses the compiled part of
that package, if both have the same Python files; a mixture of two versions would fail in stranger ways.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_HERE = Path(__file__).parent


def _is_built(folder: Path) -> bool:
    return any((folder / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)


def _differing(folder: Path) -> list[str]:
    files = sorted(_HERE.glob("*.py"))
    return [
        f.name for f in files if not (folder / f.name).is_file() or (folder / f.name).read_bytes() != f.read_bytes()
    ]


def compiled_part() -> list[str]:
    """The folders that the package needs on its `__path__` besides its own: none, or that of the installed package.

    Raises:
        ImportError: nothing is installed for this Python, or another version.
    """
    if _is_built(_HERE):
        return []
    places = (Path(entry or ".").resolve() / "yolox_ops" for entry in sys.path)
    installed = next((place for place in places if _is_built(place)), None)
    if installed is None:
        problem, remedy = "and none are installed for this Python", "run `pip install -e .` there"
    elif differing := _differing(installed):
        problem = f"and those in {installed} belong to another version ({differing[0]} differs)"
        remedy = "run `pip install .` there again, or start Python in another folder"
    else:
        return [str(installed)]
    # With the name, `python -m` prints this one line and no traceback.
    raise ImportError(f"{_HERE.parent} is a source tree without built operators, {problem}: {remedy}", name="yolox_ops")
