from typing_extensions import Buffer

torch_version: str
compiler: str
cpu_capabilities: tuple[str, ...]
backends: tuple[str, ...]
sanitizers: str

def load_acquire(stamps: Buffer, index: int) -> int: ...
def store_release(stamps: Buffer, index: int, value: int) -> None: ...
def compare_exchange(stamps: Buffer, index: int, expected: int, desired: int) -> bool: ...
