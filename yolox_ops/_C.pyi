from typing import Any

torch_version: str
compiler: str
cpu_capabilities: tuple[str, ...]
backends: tuple[str, ...]
sanitizers: str

def load_acquire(stamps: Any, index: int) -> int: ...
def store_release(stamps: Any, index: int, value: int) -> None: ...
def compare_exchange(stamps: Any, index: int, expected: int, desired: int) -> bool: ...
