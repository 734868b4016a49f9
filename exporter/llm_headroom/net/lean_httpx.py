"""httpx without its command line.

Where rich, click and pygments are installed, as they are with us for `top`, `import httpx` loads all of them for a
command that nobody calls here (encode/httpx, httpx/__init__.py): 4.4 MB and 30 ms. It does without if that one import
fails, and an import fails while `sys.modules` holds None for its name (Python's language reference, section 5.3.1).
"""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

_COMMAND_LINE = "httpx._main"

_free = _COMMAND_LINE not in sys.modules
if _free:
    sys.modules[_COMMAND_LINE] = cast("Any", None)
try:
    import httpx
finally:
    if _free:
        del sys.modules[_COMMAND_LINE]

logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs the URL of each request, which may be a secret

__all__ = ["httpx"]
