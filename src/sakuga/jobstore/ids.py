"""Names of what is in the store.     Run: pytest tests/unit/test_jobstore.py"""

import secrets


def new_id(kind: str) -> str:
    """Unguessable: 120 bits.

    >>> new_id("video").startswith("video_"), len(new_id("video"))
    (True, 36)
    """
    return f"{kind}_{secrets.token_hex(15)}"
