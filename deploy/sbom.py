"""Write what an image holds besides its base as a CycloneDX 1.5 document (https://cyclonedx.org/docs/1.5/json/).

Takes the folder into which the lock file was installed, with the exporter beside it. The same folder gives the same
document: it has no time in it, and its serial number is made of its components.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def sbom(folder: Path) -> dict[str, Any]:
    """The document for what is installed in a folder."""
    found = VERSION.search((folder / "llm_headroom" / "__init__.py").read_text())
    if found is None:
        raise ValueError(f"{folder}/llm_headroom/__init__.py does not contain its version")
    components = sorted(map(_component, distributions(path=[str(folder)])), key=lambda one: str(one["purl"]))
    root = _identity("llm-headroom", found[1]) | {"licenses": [{"license": {"id": "Apache-2.0"}}]}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": root | {"type": "application"}},
        "components": components,
        "dependencies": [{"ref": root["bom-ref"], "dependsOn": [one["bom-ref"] for one in components]}],
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
    return document | {"serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=5)}"}


def _identity(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
    return {"name": name, "version": version, "purl": purl, "bom-ref": purl}


def _component(installed: Distribution) -> dict[str, Any]:
    metadata = installed.metadata
    component = _identity(metadata["Name"], installed.version) | {"type": "library"}
    if "License-Expression" in metadata:
        return component | {"licenses": [{"expression": metadata["License-Expression"]}]}
    classified = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier", []) if "License :: " in line]
    names = [metadata["License"]] if "License" in metadata and "\n" not in metadata["License"] else classified
    return component | ({"licenses": [{"license": {"name": name}} for name in names]} if names else {})


if __name__ == "__main__":
    sys.stdout.write(json.dumps(sbom(Path(sys.argv[1])), indent=2) + "\n")
