"""``python -m pipeline.train`` is ``duet train``: the reference's command line with this name in it.

``torchrun --nproc_per_node=4 -m pipeline.train --model_name_or_path …`` works, too.
"""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
