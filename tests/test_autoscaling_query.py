"""What the chart asks Prometheus for an autoscaler, as promtool answers it."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kubernetes_objects import ROOT
from programs import program

if TYPE_CHECKING:
    from pathlib import Path

HELM = ROOT / "deploy/helm"
MODEL = "meta-llama/Meta-Llama-3-8B"


def queries() -> dict[str, str]:
    """Each query that is shipped, by where it is."""
    hpa = (HELM / "examples/hpa.yaml").read_text(encoding="utf-8")
    adapter = re.search(r"metricsQuery: >-\n((?:#  +\S.*\n)+)", hpa)
    assert adapter
    shown = re.search(r"## Autoscaling\n.*?```promql\n(.*?)```", (ROOT / "docs/examples.md").read_text(), re.DOTALL)
    assert shown
    values = yaml.safe_load((HELM / "llm-headroom/values.yaml").read_text(encoding="utf-8"))
    keda = yaml.safe_load((HELM / "examples/keda.yaml").read_text(encoding="utf-8"))
    return {
        "values.yaml": values["autoscaling"]["query"],
        "keda.yaml": keda["autoscaling"]["query"],
        "examples.md": shown[1],
        "hpa.yaml": adapter[1].replace("#", " ").replace("<<.LabelMatchers>>", 'namespace="llm"'),
    }


def series(engines: int, begin: int, load: float | None) -> list[dict[str, str]]:
    """Samples of each half minute of so many engines that are up from a minute on, at a load or without a figure."""
    found = []
    for number in range(engines):
        labels = f'namespace="llm",instance="{begin}-{number}",target="vllm",engine="vllm",model="{MODEL}"'
        up = {"llm_up": labels, "llm_model_loaded": labels}
        found += [
            {"series": f"{name}{{{own}}}", "values": f"_x{2 * begin} 1+0x{40 - 2 * begin}"} for name, own in up.items()
        ]
        if load is not None:
            found.append({"series": f'llm_saturation_ratio{{{labels},resource="max"}}', "values": f"{load}+0x40"})
    return found


def said(folder: Path, query: str, samples: list[dict[str, str]], low: float, high: float) -> None:
    """Have promtool answer a query at the tenth minute, and hold what it says between two bounds."""
    tested: dict[str, Any] = {
        "rule_files": [],
        "tests": [
            {
                "interval": "30s",
                "input_series": samples,
                "promql_expr_test": [
                    {
                        "expr": f"{low} <= bool ({query}) and ({query}) <= {high}",
                        "eval_time": "10m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    file = folder / "query.yml"
    file.write_text(json.dumps(tested))
    done = subprocess.run(
        [program("promtool", "prometheus"), "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", queries())
def test_engines_that_have_just_begun_do_not_add_to_the_load_which_the_others_have_had(
    place: str, tmp_path: Path
) -> None:
    """Four at their limits in five minutes, and two more for one of them: 4.4 engines' load, and not six."""
    said(tmp_path, queries()[place], [*series(4, 0, 1.0), *series(2, 9, None)], 4.2, 4.8)


@pytest.mark.parametrize("place", queries())
def test_an_engine_without_a_figure_counts_as_one_with_the_mean_of_the_others(place: str, tmp_path: Path) -> None:
    said(tmp_path, queries()[place], [*series(3, 0, 0.6), *series(2, 1, None)], 2.99, 3.01)
