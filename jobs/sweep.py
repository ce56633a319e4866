"""Run a sweep on the cluster that this script is submitted to: LoRAs trained or videos rendered with many settings.

    ray job submit --working-dir . -- python jobs/sweep.py sweeps/fairy-lora.yaml --out ROOT

Takes what `sakuga sweep --help` lists. ROOT is an absolute path on storage that all nodes share, as a job runs in a
copy of the working directory; so are the data and LoRAs that the sweep file names, unless they were uploaded with that.
Submitted again, a sweep goes on where it stopped. The last line is one JSON object: the summary, or the error. Exit
codes as in `sakuga --help`.
"""

import sys

from sakuga.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:], "--address", "auto", "--json"])
