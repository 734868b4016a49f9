"""How generated files are written."""

from __future__ import annotations

from typing import Final

import yaml

_HEADER: Final = "# Written by `llm-headroom bundle`: change thresholds with its options, not here.\n"


class _Plain(yaml.SafeDumper):
    """YAML without anchors."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write equal values out each time."""
        return True


def as_yaml(document: object) -> str:
    """YAML under a header that says where it comes from."""
    dumped: str = yaml.dump(document, Dumper=_Plain, sort_keys=False, width=4096, allow_unicode=True)
    return _HEADER + dumped
