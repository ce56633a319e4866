"""The job before training: encode a data set into the cache that training reads, on the cluster it is submitted to.

    ray job submit --working-dir . -- python jobs/prepare.py DATA --out DIR [--num-workers N] [--where world=fairy ...]

Takes what `sakuga prepare --help` lists. DATA, DIR and a folder for --cache are absolute paths on storage that all
nodes share; --cache may be s3://bucket/prefix. Run again, it encodes what is missing. The last line is one JSON object:
the summary, or the error. Exit codes as in `sakuga --help`.
"""

import sys

from sakuga.cli.main import main

if __name__ == "__main__":
    main(["prepare", "--num-workers", "1", *sys.argv[1:], "--address", "auto", "--json"])
