"""Load generators of others, unmodified, against `atoll serve`: what they count is what the server counts."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from tests.cli.test_serve import serving
from tests.serve.bytes_model import model

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
REQUESTS, TOKENS = 12, 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("guidellm") and find_spec("llmeter")), reason="needs load generators: pip install 'atoll[load]'"
    ),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model that takes conversations."""
    path = tmp_path_factory.mktemp("home")
    save_model(path / "small", model(), ByteTokenizer())
    (path / "small" / "chat_template.jinja").write_text(TEMPLATE)
    return path


def ran(home: Path, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=home,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def counted(url: str) -> dict[str, float]:
    """What the server says of itself, by name, over all labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_guidellm(home):
    with serving(home, "small", "--kernel", "torch") as (url, _):
        ran(
            home,
            *("-m", "guidellm", "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={url}"),
            *("--profile", "kind=concurrent,streams=4"),
            *("--constraint", f"kind=max_requests,count={REQUESTS}"),
            *("--tokenizer", "kind=huggingface_auto,model=small"),
            *("--data", f"kind=synthetic_text,prompt_tokens=40,output_tokens={TOKENS}"),
            *("--output", "kind=json,path=report.json"),
        )
        server = counted(url)
    (benchmark,) = json.loads((home / "report.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (REQUESTS, 0, 0)
    assert {request["output_metrics"]["text_tokens"] for request in benchmark["requests"]["successful"]} == {TOKENS}
    assert server["atoll_generation_tokens_total"] == REQUESTS * TOKENS
    assert server["atoll_requests_running"] == server["atoll_kv_cache_usage_ratio"] == 0


METER = """
import asyncio, json, sys
from llmeter.endpoints.openai import OpenAICompletionStreamEndpoint
from llmeter.runner import Runner

url, requests, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
endpoint = OpenAICompletionStreamEndpoint("small", base_url=f"{url}/v1", api_key="none")
payload = endpoint.create_payload("Say something.", max_tokens=tokens)
result = asyncio.run(Runner(endpoint).run(payload=payload, n_requests=requests, clients=1))
print(json.dumps({name: value for name, value in result.stats.items() if isinstance(value, int | float)}))
"""


def test_llmeter(home):
    with serving(home, "small", "--kernel", "torch") as (url, _):
        stats = json.loads(ran(home, "-c", METER, url, str(REQUESTS), str(TOKENS)).splitlines()[-1])
        server = counted(url)
    assert stats["failed_requests"] == 0
    assert stats["time_to_first_token-p50"] <= stats["time_to_last_token-p50"]
    assert server["atoll_requests_total"] == REQUESTS
    assert server["atoll_generation_tokens_total"] == stats["total_output_tokens"]
    assert server["atoll_prompt_tokens_total"] == stats["total_input_tokens"]
    assert server["atoll_requests_running"] == server["atoll_kv_cache_usage_ratio"] == 0
