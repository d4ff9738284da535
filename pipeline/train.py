"""``python -m pipeline.train`` is ``duet train``, for the reference's command lines.

``torchrun --nproc_per_node=4 -m pipeline.train --model_name_or_path …`` works, too.
"""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
