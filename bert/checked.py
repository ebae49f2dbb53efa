"""How the dataclasses of commands refuse a value."""

from pathlib import Path


class Checked:
    """Gives a dataclass the one sentence in which it refuses a field."""

    def _require(self, name: str, expected: str, is_valid: bool) -> None:
        """Refuse the field of this name, unless it is valid.

        Raises:
            ValueError: it isn't; the message names the field, what was expected and its value.
        """
        if not is_valid:
            value = getattr(self, name)
            shown = str(value) if isinstance(value, Path) else value
            raise ValueError(f"{name}: expected {expected}, got {shown!r}")
