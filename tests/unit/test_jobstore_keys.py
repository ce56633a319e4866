"""API keys: shown once, kept as a hash, refused in the same words whatever is wrong."""

import pytest

from sakuga.errors import AuthError, NotFoundError, RecipeError
from sakuga.jobstore import AUDIT_TENANT, JobStore, open_database
from sakuga.jobstore.keys import START, ApiKeys


@pytest.fixture
def keys(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    yield ApiKeys(JobStore(engine))
    engine.dispose()


def test_a_secret_opens_its_key_and_is_not_kept(keys, tmp_path):
    key, secret = keys.create("app", quota_gpu_s=60.0)
    assert secret.startswith(START) and len(secret) > 40
    assert keys.authenticate(secret) == key
    assert (key.tenant, key.scopes, key.quota_gpu_s) == ("app", ("read", "write"), 60.0)
    assert secret.startswith(key.shown) and len(key.shown) < 20
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert not any(secret.encode() in content for content in files)


def test_what_does_not_open(keys):
    _, secret = keys.create("app")
    key, revoked = keys.create("app")
    keys.revoke(key.id)
    _, expired = keys.create("app", expires_at=1.0)
    words = set()
    for wrong in ("", "Bearer", secret[:-1], secret.upper(), revoked, expired, "sk-sakuga-" + "x" * 43, "ключ"):
        with pytest.raises(AuthError) as raised:
            keys.authenticate(wrong)
        words.add(str(raised.value))
    assert len(words) == 1
    assert keys.authenticate(secret)


def test_a_tenant_s_keys(keys):
    one, _ = keys.create("app")
    keys.create("another")
    assert keys.of_tenant("app") == [one]
    with pytest.raises(NotFoundError):
        keys.revoke("key_0")
    with pytest.raises(RecipeError, match="did you mean 'write'"):
        keys.create("app", scopes=["wrte"])


def test_nobody_gets_a_key_of_the_farms_own_tenant(keys):
    with pytest.raises(RecipeError, match="'sakuga-audit' is the farm's own"):
        keys.create(AUDIT_TENANT)
