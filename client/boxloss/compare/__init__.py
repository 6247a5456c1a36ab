"""Which loss for these boxes: all losses over the same pairs.

>>> from boxloss.compare import compare, match_images
>>> comparison = compare(client, match_images(client, images))

They need the extra: pip install 'boxloss[audit]'.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxloss.compare.comparison import Comparison, compare
    from boxloss.compare.export import write_comparison
    from boxloss.compare.pairs import Pairs, match_images

__all__ = ["Comparison", "Pairs", "compare", "match_images", "write_comparison"]

_HOMES = {"Comparison": "comparison", "compare": "comparison", "write_comparison": "export"}


if not TYPE_CHECKING:  # Type checkers are to miss what is not there.

    def __getattr__(name: str) -> Any:
        """Imports what is asked for, and with it packages of the extra."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'pairs')}"), name)
