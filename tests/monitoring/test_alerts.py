"""The alert rules: promtool reads them, each fires when it should, and each metric exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from checkout import ROOT

from fedclip_edge.monitoring.definitions import AGENT, COORDINATOR

pytestmark = pytest.mark.one_python

RULES = ROOT / "broker" / "alerts.yml"
PROMTOOL = shutil.which("promtool")
OF_OTHERS = {"up", "node_textfile_mtime_seconds"}  # of Prometheus itself, and of node_exporter

# By alert: the series that make it fire, and those that do not, over more than a day in steps of
# five minutes. In promtool's notation, "1x100" is a value that stays for 100 more steps.
STEP_S, STEPS = 300, 320
STAYS = f"x{STEPS}"


def series(metric: str, **labels: str) -> str:
    shown = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{metric}{{{shown}}}"


def lab(name: str, **labels: str) -> str:
    return series(f"fedclip_edge_{name}", fleet="lab", **labels)


def cam(name: str, **labels: str) -> str:
    return series(f"fedclip_edge_agent_{name}", fleet="lab", device="cam-1", **labels)


def gauge(name: str, firing: str, quiet: str) -> tuple[dict[str, str], dict[str, str]]:
    return {name: f"{firing}{STAYS}"}, {name: f"{quiet}{STAYS}"}


ENDS, LASTS = str(4 * 86400), str(90 * 86400)
DEADLINE = {lab("deadline_seconds"): f"600{STAYS}"}
CLOSES = "round_closes_total"
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "FedclipEdgeCoordinatorDown": gauge('up{job="fedclip-edge"}', "0", "1"),
    "FedclipEdgeBrokerLost": gauge(lab("broker_connected"), "0", "1"),
    "FedclipEdgeStandsStill": (
        {
            lab("progress_timestamp_seconds"): f"0{STAYS}",
            **DEADLINE,
            lab("run_active"): f"1{STAYS}",
        },
        # The same long after the run: nothing has to happen any more.
        {
            lab("progress_timestamp_seconds"): f"0{STAYS}",
            **DEADLINE,
            lab("run_active"): f"0{STAYS}",
        },
    ),
    "FedclipEdgeClosedByQuorumAlone": (
        {lab(CLOSES, by="quorum"): f"0+3{STAYS}", lab(CLOSES, by="all"): f"0+1{STAYS}"},
        {lab(CLOSES, by="quorum"): f"0+1{STAYS}", lab(CLOSES, by="all"): f"0+3{STAYS}"},
    ),
    "FedclipEdgeDevicesLeftOut": gauge(lab("devices", state="left_out"), "1", "0"),
    "FedclipEdgeDeviceAway": gauge(lab("device_online", device="cam-1"), "0", "1"),
    "FedclipEdgeCertificateEnds": gauge(
        lab("certificate_end_timestamp_seconds", certificate="authority"), ENDS, LASTS
    ),
    "FedclipEdgeDeviceCertificateEnds": gauge(
        lab("device_certificate_end_timestamp_seconds", device="cam-1"), ENDS, LASTS
    ),
    "FedclipEdgeDiskFull": (
        {lab("disk_free_bytes"): f"9{STAYS}", lab("disk_size_bytes"): f"100{STAYS}"},
        {lab("disk_free_bytes"): f"11{STAYS}", lab("disk_size_bytes"): f"100{STAYS}"},
    ),
    "FedclipEdgeAgentStopped": (
        {'node_textfile_mtime_seconds{file="/c/fedclip_edge.prom"}': f"0{STAYS}"},
        {
            'node_textfile_mtime_seconds{file="/c/fedclip_edge.prom"}': f"0+{STEP_S}{STAYS}",
            'node_textfile_mtime_seconds{file="/c/other.prom"}': f"0{STAYS}",
        },
    ),
    "FedclipEdgeAgentAlone": gauge(cam("coordinator_online"), "0", "1"),
    "FedclipEdgeAgentNotInRun": gauge(cam("in_run"), "0", "1"),
    "FedclipEdgeAgentCertificateEnds": gauge(cam("certificate_end_timestamp_seconds"), ENDS, LASTS),
}


def text() -> str:
    return RULES.read_text(encoding="utf-8")


def expressions() -> dict[str, str]:
    """The expression of each alert; enough of YAML for this file."""
    found = {}
    for entry in re.split(r"^ +- alert: ", text(), flags=re.MULTILINE)[1:]:
        name = entry.partition("\n")[0]
        match = re.search(r"^ +expr: (.*?)^ +for:", entry, flags=re.MULTILINE | re.DOTALL)
        assert match is not None, name
        found[name] = match[1]
    return found


def test_each_rule_uses_metrics_that_are_defined_with_labels_that_they_have() -> None:
    metrics = {metric.name: metric for metric in (*COORDINATOR, *AGENT)}
    for alert, expression in expressions().items():
        used = set(re.findall(r"\b(?:fedclip_edge|node)_\w+|\bup\b", expression))
        assert used, alert
        assert used <= metrics.keys() | OF_OTHERS, alert
        for name, label, value in re.findall(r"(fedclip_edge_\w+)\{(\w+)=\"(\w+)\"\}", expression):
            assert value in metrics[name].labels[label], alert
    shown = re.findall(r"\$labels\.(\w+)", text())
    assert set(shown) <= {"instance", "fleet", "device", "certificate"}


def test_every_rule_has_a_case_here_and_a_line_in_the_guide() -> None:
    assert expressions().keys() == CASES.keys()
    guide = (ROOT / "docs" / "how-to" / "monitoring.md").read_text(encoding="utf-8")
    for alert in CASES:
        assert f"`{alert}`" in guide


needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(CASES)} rules found" in done.stdout


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    tests = [
        {
            "interval": f"{STEP_S}s",
            "input_series": [{"series": name, "values": its} for name, its in given.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{STEP_S * STEPS}s",
                    "exp_samples": [{"labels": "{}", "value": int(fires)}],
                }
            ],
        }
        for alert, cases in CASES.items()
        for fires, given in zip((True, False), cases, strict=True)
    ]
    path = tmp_path / "test.yml"
    rest = {"rule_files": [str(RULES)], "evaluation_interval": f"{STEP_S}s"}
    path.write_text(json.dumps({**rest, "tests": tests}))  # JSON is YAML
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
