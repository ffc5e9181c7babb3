"""``python -m mixflow``: the same as the ``mixflow`` command."""

import sys

from .cli import main

sys.exit(main())
