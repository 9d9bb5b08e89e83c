torch_version: str
compiler: str
cpu_capabilities: tuple[str, ...]
backends: tuple[str, ...]
sanitizers: str
