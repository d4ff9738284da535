"""``python -m pipeline`` is ``duet``; so ``torchrun … -m pipeline fit …`` works."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
