"""Which promoted profile a request gets: by its name, by a word for the quality, by its deadline.

Pure: it looks at what is offered, at the request and at figures that it is given, and gives back fields and notes.

Run: pytest tests/unit/test_tuning_choice.py
"""

from __future__ import annotations

from dataclasses import dataclass

from sakuga.jobstore import ProfileEntry
from sakuga.tuning.profiles import SpeedProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A version of a promoted profile."""

    id: str
    version: int
    state: str
    owner: str
    """The tenant whose LoRAs it names."""
    profile: SpeedProfile

    @classmethod
    def of(cls, entry: ProfileEntry) -> Offer | None:
        """None for an entry from before profiles had sizes: its fields are all that there is of it."""
        if "width" not in entry.profile:
            return None
        return cls(
            id=entry.id,
            version=entry.version,
            state=entry.state,
            owner=entry.owner,
            profile=SpeedProfile.from_dict(entry.profile),
        )
