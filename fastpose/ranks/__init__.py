# SPDX-License-Identifier: Apache-2.0
"""The processes of one run, one or several: what they exchange, and what happens if one is lost."""

from fastpose.ranks.joining import is_other_rank, joined_ranks
from fastpose.ranks.ranks import ALONE, OtherRankError, RankLostError, Ranks, lost_if_it_fails, report_lost

__all__ = [
    "ALONE",
    "OtherRankError",
    "RankLostError",
    "Ranks",
    "is_other_rank",
    "joined_ranks",
    "lost_if_it_fails",
    "report_lost",
]
