# SPDX-License-Identifier: Apache-2.0
"""A terminal for tests of what is printed."""

from __future__ import annotations

import io
import re
import sys

import pytest

from fastpose import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @classmethod
    def on(cls, patch: pytest.MonkeyPatch) -> Terminal:
        """Makes a terminal of standard error, on which every state of progress is shown. Called in the test itself:
        pytest sets standard error once more between fixtures and test."""
        out = cls()
        patch.setattr(sys, "stderr", out)
        patch.setattr(progress, "SECONDS_ON_A_TERMINAL", 0.0)
        return out


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What is on standard error from the line of the error on: before it, a command may have said what it does."""
    err = capsys.readouterr().err
    begin = re.search("^error: ", err, re.MULTILINE)
    assert begin, err
    return err[begin.start() :]
