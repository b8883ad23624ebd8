"""`python -m gnfast`: the command line without an installed script."""

import sys

from gnfast.cli import main

sys.exit(main())
