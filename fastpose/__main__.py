# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose` is the script `fastpose`."""

from __future__ import annotations

import sys

from fastpose.cli import main

if __name__ == "__main__":
    sys.exit(main())
