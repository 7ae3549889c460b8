# SPDX-License-Identifier: Apache-2.0
"""A terminal for tests of what is printed."""

from __future__ import annotations

import io
import sys

import pytest

from fastpose import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @classmethod
    def on(cls, patch: pytest.MonkeyPatch) -> Terminal:
        """Makes a terminal of standard output, on which every state of progress is shown. Called in the test itself:
        pytest sets standard output once more between fixtures and test."""
        out = cls()
        patch.setattr(sys, "stdout", out)
        patch.setattr(progress, "SECONDS_ON_A_TERMINAL", 0.0)
        return out
