"""The main job: render every row of a manifest on the cluster that this script is submitted to.

    ray job submit --working-dir . -- python jobs/render.py MANIFEST --out DIR [--num-workers N] [--width 128 ...]

Takes what `sakuga bulk --help` lists; options fill what a row leaves out. DIR is an absolute path on storage that all
nodes share, as a job runs in a copy of the working directory; so is MANIFEST, unless it was uploaded with that. Run
again, it renders what is missing or failed. The last line is one JSON object: the summary, or the error. Exit codes as
in `sakuga --help`.
"""

import sys

from sakuga.cli.main import main

if __name__ == "__main__":
    main(["bulk", *sys.argv[1:], "--address", "auto", "--json"])
