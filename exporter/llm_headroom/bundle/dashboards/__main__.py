"""Write the dashboards: `python -m llm_headroom.bundle.dashboards FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from llm_headroom.bundle.dashboards import files
from llm_headroom.bundle.thresholds import BundleSettings

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name, text in files(BundleSettings()).items():
    (folder / name).write_text(text, encoding="utf-8")
