"""A real Prometheus: the alert rules, and the queries of the Grafana dashboard."""

import contextlib
import json
import os
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from servers import free_port, running, wait_for
from services import png, service

from serving.reference import REFERENCE

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
RULES = ROOT / "tests" / "support" / "prometheus-rules-test.yml"


def test_a_planted_shift_raises_the_alert_and_an_unshifted_month_does_not():
    done = subprocess.run(
        ["promtool", "test", "rules", RULES], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@contextlib.contextmanager
def prometheus(folder, target):
    """Scrape a service each second; yield what asks a query."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "dermalyze", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML
    words = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    words += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    url = f"http://127.0.0.1:{port}"

    def ask(query):
        text = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"{url}/api/v1/query?{text}", timeout=30) as response:
            return json.load(response)["data"]["result"]

    health = f"{url}/-/ready"
    with running(
        words, health=health, cwd=folder, env=dict(os.environ), log=folder / "prometheus.log"
    ):
        yield ask


@pytest.mark.slow
def test_each_query_of_the_dashboard_returns_series(tmp_path):
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) > len(board["panels"]) > 5
    with (
        service(tmp_path, model=REFERENCE) as own,
        prometheus(tmp_path, own.port) as ask,
    ):

        def scraped():
            own.status("/predict", png())  # or nothing increases between two scrapes
            return [sample["value"][1] for sample in ask("dermalyze_confidence_count > 3")]

        wait_for(scraped, 60)
        for query in queries:
            query = query.replace("$job", "dermalyze").replace("$__rate_interval", "1m")
            wait_for(lambda query=query: ask(query), 30)
            numbers = [float(series["value"][1]) for series in ask(query)]
            assert numbers, query
            assert all(number == number for number in numbers), query  # not NaN
