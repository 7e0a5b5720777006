"""``python -m sigmoid_l2``: the command line, for where the script ``sigmoid-l2`` is not on the path."""

import sys

from sigmoid_l2.cli.main import main

sys.exit(main())
