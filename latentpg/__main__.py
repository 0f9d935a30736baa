"""``python -m latentpg`` is the ``latentpg`` command: what ``torchrun -m latentpg`` starts in each worker."""

import sys

from latentpg.cli import main

if __name__ == "__main__":
    sys.exit(main())
