"""The OpenAPI document: requests made from it are answered as it says, and every code is written down."""

import re
from pathlib import Path

import hypothesis
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sakuga.api import errors
from sakuga.errors import SakugaError, StoreError

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
OPTIONS = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def test_requests_made_from_the_document_are_answered_as_it_says(api, tenant, seed):
    headers = {"authorization": f"Bearer {api.key(tenant)}"}
    document = schemathesis.openapi.from_url(f"{api.url}/openapi.json").exclude(path_regex="/events$")  # it has no end
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:

        @hypothesis.seed(seed)
        @OPTIONS
        @given(case=operation.as_strategy())
        def ask(case) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS)

        ask()


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
