"""Audits of promoted profiles: renders of users, rendered once more the reference way and held to the gate's bars.

Run: pytest tests/unit/test_tuning_audit.py
"""

from __future__ import annotations

from dataclasses import replace

from sakuga.jobstore import NewJob

AUDIT_TENANT = "sakuga-audit"
"""Reference renders are its jobs: no user's quota or turn pays for them."""


def reference_job(job: NewJob) -> NewJob:
    """As low as work can be."""
    return replace(job, tenant=AUDIT_TENANT, priority="batch")
