"""docs/operations.md knows every setting and every alert, as they are today."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.prometheus import rules
from tests.test_dashboard import TITLES

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
SETTINGS = runpy.run_path(str(DOCS / "settings.py"))
ALERTS = {rule["alert"]: rule for rule in rules("alert")}
ALERT_TEXT = re.sub(r"```promql.*?```", "", PAGE.partition("\n## Alerts\n")[2].partition("\n## ")[0], flags=re.DOTALL)
SERVER = DOCS.parent / "server/boxloss_server"


@pytest.mark.parametrize("name", SETTINGS["rows"]())
def test_every_setting_has_its_row(name: str) -> None:
    row = SETTINGS["rows"]()[name]
    assert row in PAGE, f"docs/operations.md does not say what {name} does; run: python docs/settings.py"


def test_the_table_has_nothing_else() -> None:
    assert SETTINGS["page"](PAGE) == PAGE, "run: python docs/settings.py"


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_its_section(alert: str) -> None:
    rule = ALERTS[alert]
    when = f"once this has lasted for {rule['for']}" if "for" in rule else "at once"
    severity = rule["labels"]["severity"].capitalize()
    head = f"\n### {alert}\n\n{severity}, {when}:\n\n```promql\n{rule['expr'].strip()}\n```\n\n"
    assert head in PAGE, f"docs/operations.md has no section about {alert}, or not as the rules have it: {head}"
    leads = re.findall(r"^\*\*([\w ]+)[.*]* ?\S", PAGE.partition(head)[2].partition("\n#")[0], re.MULTILINE)
    assert leads == ["Means", "Look at", "Do"]


@pytest.mark.parametrize("panel", re.findall(r"\*([A-Z][^*]+)\*", ALERT_TEXT.replace("**", "")))
def test_every_panel_that_a_section_names_is_on_the_dashboard(panel: str) -> None:
    assert panel in {*TITLES, "Targets"}  # The latter is Prometheus's own page.


def test_every_log_line_that_a_section_names_is_written() -> None:
    code = " ".join(path.read_text(encoding="utf-8") for path in SERVER.rglob("*.py"))
    named = {" ".join(words.split()) for words in re.findall(r"`(?!kubectl)([a-z]+(?:\s[a-z;]+){2,})`", ALERT_TEXT)}
    assert len(named) > 5
    assert [words for words in sorted(named) if words not in code] == []


def test_every_setting_that_a_section_names_is_one() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in SETTINGS["rows"]()}
    assert set(re.findall(r"`(--[a-z-]+)", ALERT_TEXT)) <= flags


def test_no_section_is_about_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (Boxloss\w+)$", PAGE, re.MULTILINE)) == ALERTS.keys()
