"""What the benchmarks print: one JSON object as the last line of stdout, with or without --json.

Run: pytest tests/unit/test_benchmarks.py
"""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmark("first_light", "--json")` is the module, its command line set."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str, *words: str):
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *words])
        return importlib.import_module(name)

    yield load
    for name in ("common", "first_light", "mini_quality"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_first_light_ends_in_one_line_of_json(benchmark, words, monkeypatch, capsys):
    module = benchmark("first_light", *words)
    for part in ("time_synth", "time_demo", "time_render"):
        monkeypatch.setattr(module, part, lambda *_, part=part: {part: 0.25})
    module.main()
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert (result["benchmark"], result["time_demo"]) == ("first_light", 0.25)
    assert ('"time_demo": 0.25' in printed.err) is not bool(words)


def test_a_result_that_is_no_number_is_refused(benchmark):
    with pytest.raises(ValueError, match="JSON"):
        benchmark("common").print_result({"gain_db": float("nan")}, as_json=True)
