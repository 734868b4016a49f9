"""Nodes of large YAML files: libyaml finds what a file consists of, five to ten times as fast as PyYAML's own scanner.

PyYAML's own composer makes the nodes of it: libyaml's recurs without a limit, and a file of brackets would end the
process. Without libyaml this module cannot be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yaml._yaml import CParser
from yaml.composer import Composer
from yaml.resolver import Resolver

from llm_headroom.config.errors import MOST_VALUES, OversizeError

if TYPE_CHECKING:
    from yaml.nodes import Node


class FastLoader(Composer, CParser, Resolver):
    """A loader for `yaml.compose`."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        Composer.__init__(self)
        Resolver.__init__(self)
        self._left = MOST_VALUES

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:  # noqa: ANN401 - as PyYAML has it
        """The next node; `index` is None of a key, which is no value.

        Raises:
            OversizeError: there are too many.
        """
        self._left -= index is not None
        if self._left < 0:
            raise OversizeError
        return super().compose_node(parent, index)

    def dispose(self) -> None:
        """`CParser` has nothing to let go of."""
