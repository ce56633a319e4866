"""YAML that people write: sweep files and gate files. A page of plain values, and nothing in it twice.

Run: pytest tests/unit/test_tuning_sweepfile.py
"""

from __future__ import annotations

from pathlib import Path

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from sakuga.errors import InputError, shown

MAX_FILE_BYTES = 2**20


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML takes the last, and aliases: of themselves they have no end."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "an alias, where the value itself must stand", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConstructorError(None, None, f"{shown(key.value)} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, error: type[InputError]) -> object:
    """What the file holds. Raises `error` in one sentence for a file that cannot be read as YAML."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise error(f"{shown(path)} is over {MAX_FILE_BYTES // 2**20} MiB; a page of YAML is expected")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{shown(path)} cannot be read ({cause}); check the path") from cause
    except (yaml.YAMLError, ValueError) as cause:  # ValueError: a date or number that is none
        raise error(f"{shown(path)} is no YAML ({' '.join(str(cause).split())[:160]}); mend that line") from cause
    except RecursionError as cause:
        raise error(f"{shown(path)} is nested too deeply; write it flatter") from cause
