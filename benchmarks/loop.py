"""The whole circle, `sakuga loop`, from an empty folder: how long each part takes and what the profile gains.

    python benchmarks/loop.py --json

`profile.speedup` is the gate's (means over its cases, one process), `request_speedup` that of requests to the farm that
serves the profile, by its receipts. `seconds.total` is what a person waits for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine_facts, print_result  # benchmarks/common.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep everything in this folder, which must be empty")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: see every part run")
    parser.add_argument("--json", action="store_true", help="no readable form on stderr, only the JSON line")
    args = parser.parse_args()
    facts = machine_facts()
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            "loop",
            "--out",
            str(args.out or Path(scratch) / "loop"),
            *(["--quick"] if args.quick else []),
            "--json",
        ]
        sakuga = str(Path(sys.executable).with_name("sakuga"))
        run = subprocess.run([sakuga, *words], check=True, stdout=subprocess.PIPE, text=True)
    print_result({"benchmark": "loop", **facts, **json.loads(run.stdout.splitlines()[-1])}, as_json=args.json)


if __name__ == "__main__":
    main()
