"""docs/operations.md knows every setting and every alert, as they are today."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.prometheus import rules

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
SETTINGS = runpy.run_path(str(DOCS / "settings.py"))
ALERTS = {rule["alert"]: rule for rule in rules("alert")}


@pytest.mark.parametrize("name", SETTINGS["rows"]())
def test_every_setting_has_its_row(name: str) -> None:
    row = SETTINGS["rows"]()[name]
    assert row in PAGE, f"docs/operations.md does not say what {name} does; run: python docs/settings.py"


def test_the_table_has_nothing_else() -> None:
    assert SETTINGS["page"](PAGE) == PAGE, "run: python docs/settings.py"


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_its_section(alert: str) -> None:
    rule = ALERTS[alert]
    wait = f" for {rule['for']}" if "for" in rule else ""
    head = f"\n### {alert}\n\n`{rule['expr']}`{wait}, {rule['labels']['severity']}.\n\n"
    assert head in PAGE, f"docs/operations.md has no section about {alert}, or not as the rules have it: {head}"
    meaning = PAGE.partition(head)[2].partition("\n#")[0]
    assert len(meaning) > 100


def test_no_section_is_about_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (Boxloss\w+)$", PAGE, re.MULTILINE)) == ALERTS.keys()
