"""Train on the cluster that this script is submitted to: a LoRA, a full fine-tuning or a distillation.

    ray job submit --working-dir . -- python jobs/train.py --model wan-mini --data DATA --out RUN --mode lora --rank 16

Takes what `sakuga train --help` lists; without --num-workers one worker trains. RUN is an absolute path on storage that
all nodes share, as a job runs in a copy of the working directory; so is DATA, a prepared folder (`jobs/prepare.py`),
unless it was uploaded with that. Submitted again, a run goes on where it stopped. The last line is one JSON object: the
result, or the error. Exit codes as in `sakuga --help`.
"""

import sys

from sakuga.cli.main import main

if __name__ == "__main__":
    main(["train", "--workers", "1", *sys.argv[1:], "--address", "auto", "--json"])
