"""See `triton`'s stub: pyright doesn't judge what stands inside a kernel."""

from typing import Any

def __getattr__(name: str) -> Any: ...
