"""How layers are shown that bear the name of another package's."""

from __future__ import annotations


class ShowsPackage:
    """Of this package's own layers the repr says so: ``fused_dropout.nn.Dropout(p=0.5, ...)``."""

    def _get_name(self) -> str:
        cls = type(self)
        is_ours = cls.__module__.startswith("fused_dropout.nn.")
        return f"fused_dropout.nn.{cls.__name__}" if is_ours else cls.__name__
