"""What pyright is told of Triton: that it is there.

Inside @triton.jit, integers and tensors are values of Triton's language and not of Python's, and
outside a kernel takes its grid in brackets. Triton's own annotations say neither, so that every
line of a kernel would be an error. What they say of anything else, such as descriptors, holds.
"""

from typing import Any

def __getattr__(name: str) -> Any: ...
