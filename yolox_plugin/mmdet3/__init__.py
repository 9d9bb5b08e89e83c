"""What stands in for classes of MMDetection 3.x, mmengine and torch: their interfaces, over the arithmetic of
`yolox_plugin.core`."""

from types import ModuleType

from ..parts import Parts

PARTS: Parts = {}
NAMED_IN: dict[type, ModuleType] = {}
