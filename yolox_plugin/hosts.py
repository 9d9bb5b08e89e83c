"""Which line of MMDetection is here."""

import importlib
import importlib.metadata
import importlib.util
import re
import warnings
from pathlib import Path
from typing import NamedTuple


class Host(NamedTuple):
    """A line of MMDetection that the plugin knows, and the package in this folder that is for it."""

    package: str
    name: str
    mmcv: str  # a pattern of its versions
    mmdet: str
    needs: tuple[str, ...]  # to be imported
    install: str


HOSTS = (
    Host(
        "mmdet2", "MMDetection 2.28", r"1\.", r"2\.28\.", ("mmcv",), "pip install mmcv-full==1.7.2 mmdet==2.28.2",
    ),
    Host(
        "mmdet3", "MMDetection 3.3", r"2\.", r"3\.3\.", ("mmengine", "mmcv"),
        "pip install mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0",
    ),
    Host(
        "mmdet3", "onedl's MMDetection 3.5", r"2\.", r"3\.[45]\.", ("mmengine", "mmcv"),
        "MMCV_WITH_OPS=0 pip install onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmdetection==3.5.1",
    ),
)  # fmt: skip
# All distributions that bring the module mmcv or mmengine: pip lets one of them write over the files of another.
UNINSTALL = "pip uninstall mmcv mmcv-full mmcv-lite mmengine onedl-mmcv onedl-mmengine"


def find_host() -> str:
    """The package for the host that is installed, "mmdet2" or "mmdet3". To be called before anything of it is imported.

    Raises:
        ImportError: there is none, or one of another version, or one that cannot be imported.
    """
    mmcv, mmdet = version_of("mmcv"), version_of("mmdet")
    fitting = [host for host in HOSTS if re.match(host.mmcv, mmcv) and re.match(host.mmdet, mmdet)]
    if not fitting:
        wanted = "; or ".join(f"{host.install} ({host.name})" for host in HOSTS)
        raise _unusable(
            f"yolox_plugin needs mmcv 1.x with MMDetection 2.28.x, or mmcv 2.x with MMDetection 3.3 to 3.5; found mmcv"
            f" {mmcv} and mmdet {mmdet}: {wanted}"
        )
    [host] = fitting
    for name in host.needs:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "On January 1, 2023", UserWarning)  # mmcv 1's farewell
                importlib.import_module(name)
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise _unusable(
                f"yolox_plugin found mmcv {mmcv} and mmdet {mmdet}, but {name} cannot be imported ({reason:.200}):"
                f" {UNINSTALL}, then {host.install}"
            ) from error
    return host.package


def version_of(package: str) -> str:
    """The version of mmcv or mmdet. It is read from where that lies, as importing mmdet fails beside an mmcv that it
    does not know."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return "not there"
    file = Path(spec.origin).with_name("version.py") if spec.origin else None
    text = file.read_text() if file and file.is_file() else ""
    if match := re.search(r"^__version__ = ['\"](.+)['\"]", text, re.M):
        return match[1]
    if match := re.search(r"^__version__ = version\(['\"](.+)['\"]\)", text, re.M):  # of the maintained fork, onedl
        return importlib.metadata.version(match[1])
    return "unknown"


def _unusable(message: str) -> ImportError:
    # With this name, `python -m` prints the one line and no traceback.
    return ImportError(message, name=__package__)
