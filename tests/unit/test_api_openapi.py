"""The OpenAPI document: requests made from it are answered as it says, and every code is written down."""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save

from api_farm import LIMIT_S, lines
from profile_cases import speed_profile
from sakuga.api import errors
from sakuga.errors import SakugaError, StoreError

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "ignored_auth", "unsupported_method", "allow_header_conformance",
    "missing_required_header",
)  # fmt: skip
"""Not those for which every text that fits a type must be taken: a file must also be a LoRA, a text a JSON object."""
SEED = 20260924
MIN_REQUESTS = 1000
SMALL = {"prompt": "A fairy dances.", "size": "32x32", "num_frames": 5, "num_inference_steps": 2}


def small_lora(rank: int) -> bytes:
    parts = {"lora_A": torch.ones(rank, 192), "lora_B": torch.ones(192, rank)}
    return save({f"blocks.0.self_attn.q.{part}.weight": tensor for part, tensor in parts.items()})


def config(api, tenant: str) -> str:
    """Ids that exist, so that routes have more to answer than 404; a key, so that one without it is missed."""
    http = api.http(tenant)

    def created(path: str, **sent: object) -> str:
        return http.post(path, **sent).json()["id"]

    lora, gone = (created("/v1/loras", files={"file": small_lora(rank)}) for rank in (2, 3))
    batch = created("/v1/batches", headers={"content-type": "application/jsonl"}, content=lines(SMALL))
    video, deleted = created("/v1/videos", json=SMALL), created("/v1/videos", json=SMALL)
    entry = api.stores.profiles.promote(tenant, speed_profile("openapi").as_dict(), "0" * 64)
    while api.stores.jobs.counts().get("queued"):
        api.render()
    return f"""
        [auth.openapi.HTTPBearer]
        bearer = "{api.key(tenant, scopes=("read", "write", "admin"))}"
        [parameters]
        video_id = "{video}"
        batch_id = "{batch}"
        lora_id = "{lora}"
        profile = "{entry.id}"
        [[operations]]
        include-name = "DELETE /v1/videos/{{video_id}}"
        parameters = {{ video_id = "{deleted}" }}
        [[operations]]
        include-name = "DELETE /v1/loras/{{lora_id}}"
        parameters = {{ lora_id = "{gone}" }}
        [[operations]]
        include-name = "GET /v1/profiles/{{profile}}"
        parameters = {{ profile = "openapi" }}
    """


def test_requests_made_from_the_document_are_answered_as_it_says(api, tenant, tmp_path):
    """Schemathesis makes them: each value and each limit of each field, right and wrong, then some at random."""
    (tmp_path / "config.toml").write_text(config(api, tenant))
    report = tmp_path / "report.json"
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file=config.toml", "run",
        f"{api.url}/openapi.json", "--exclude-path-regex=/events$",  # a stream, which has no end
        "--phases=coverage,fuzzing", "--mode=all", "--max-examples=3", f"--seed={SEED}", "--generation-database=none",
        f"--checks={','.join(CHECKS)}", f"--request-timeout={LIMIT_S}", f"--report-json-path={report}", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=4 * LIMIT_S)
    for entry in api.stores.profiles.versions():
        api.stores.profiles.retire(entry.id)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(report.read_text())
    assert told["operations"]["tested"] == told["operations"]["total"] - 1 > 20
    assert told["test_cases"]["generated"] > MIN_REQUESTS


def test_every_code_of_the_api_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    kinds = [SakugaError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    ours = {kind.code for kind in kinds if kind.__module__ == errors.__name__} - {StoreError.code}
    assert ours == set(re.findall(r"^\| `(E_\w+)` \| \d", page, flags=re.MULTILINE))
    statuses = {kind.code: str(errors.STATUS[kind]) for kind in errors.STATUS if getattr(kind, "code", "") in ours}
    for code, status in statuses.items():
        assert any(line.startswith(f"| `{code}`") and status in line for line in page.splitlines()), (code, status)
