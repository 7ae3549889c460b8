# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, however often and wherever, goes on to the bits of the undisturbed one."""

from __future__ import annotations

import pytest

from tests.helpers.kills import kill_runs


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kills"), [(1, 50), (2, 6)])
def test_runs_that_are_killed_at_random_moments_go_on_to_the_bits_of_undisturbed_ones(tmp_path, ranks, kills):
    trial = kill_runs(tmp_path, kills, count=ranks)
    assert not trial.faults
    assert trial.equal == trial.runs
    assert trial.kills >= kills
