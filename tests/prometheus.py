"""The real Prometheus with the files of deploy, for tests of dashboards and alerts."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.programs import tool
from tests.servers import free_port, wait_until

FOLDER = Path(__file__).parent.parent / "deploy/prometheus"
CONFIG = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
RULES = yaml.safe_load((FOLDER / "rules/boxloss.yml").read_text())

_SPEED = 50
"""Windows and waits of the rules are shortened by so much: five minutes become six seconds."""
_SCRAPE_INTERVAL = "400ms"
"""Also the time that a server has to answer, on a machine where much else runs."""
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def rules(kind: str) -> list[dict[str, Any]]:
    """The shipped rules of a kind: "record" or "alert"."""
    return [rule for group in RULES["groups"] for rule in group["rules"] if kind in rule]


class Prometheus:
    """A Prometheus that scrapes servers, ready once constructed, with the shipped configuration in fast motion.

    Args:
        folder: for its files, which must not exist yet.
        targets: addresses of the metrics of servers, such as "127.0.0.1:9464" or the URL of one.
    """

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        program = tool("prometheus")
        folder.mkdir()
        config = copy.deepcopy(CONFIG)
        config["global"] |= {"scrape_interval": _SCRAPE_INTERVAL, "evaluation_interval": _SCRAPE_INTERVAL}
        (scraped,) = config["scrape_configs"]
        del scraped["dns_sd_configs"]
        self._targets = folder / "targets.json"
        scraped["file_sd_configs"] = [{"files": [str(self._targets)]}]
        self.scrape(targets)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "rules").mkdir()
        (folder / "rules/boxloss.yml").write_text(yaml.safe_dump(_fast(RULES)))
        self._url = f"http://127.0.0.1:{free_port()}"
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={urllib.parse.urlsplit(self._url).netloc}",
            ],
            stderr=self._log,
        )
        wait_until(self._is_ready, "Prometheus is ready")

    def scrape(self, targets: Sequence[str]) -> None:
        """Scrapes these servers from now on, and no others."""
        addresses = [urllib.parse.urlsplit(url).netloc or url for url in targets]
        draft = self._targets.with_suffix(".new")
        draft.write_text(json.dumps([{"targets": addresses}]))
        draft.replace(self._targets)

    def numbers(self, query: str) -> list[float]:
        """The finite values that a query has at this moment."""
        values = (float(series["value"][1]) for series in self._ask("query", query=query)["result"])
        return [value for value in values if math.isfinite(value)]

    def firing(self) -> list[dict[str, Any]]:
        """The alerts that fire, with labels and annotations."""
        return [alert for alert in self._ask("alerts")["alerts"] if alert["state"] == "firing"]

    def names_firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.firing()}

    def is_clear(self, alerts: set[str]) -> bool:
        """Whether none of the alerts fires or is about to.

        It is not while a scrape of the last two seconds has failed: an alert without data clears, whatever is wrong.
        """
        active = {alert["labels"]["alertname"] for alert in self._ask("alerts")["alerts"]}
        return not alerts & active and self.numbers("min(min_over_time(up[2s]))") == [1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _ask(self, what: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, f"Prometheus has ended; see {self._log.name}"
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready"):
                return True
        except urllib.error.URLError:
            return False


def _fast(shipped: dict[str, Any]) -> dict[str, Any]:
    """The same rules with shorter windows and waits."""
    faster = copy.deepcopy(shipped)
    for group in faster["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"(\[|offset )(\w+)", lambda time: time[1] + _shorter(time[2]), rule["expr"])
            if "for" in rule:
                rule["for"] = _shorter(rule["for"])
    return faster


def _shorter(duration: str) -> str:
    number, unit = int(duration[:-1]), duration[-1]
    return f"{number * _SECONDS[unit] * 1000 // _SPEED}ms"
