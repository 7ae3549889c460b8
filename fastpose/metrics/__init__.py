# SPDX-License-Identifier: Apache-2.0
"""Scores that the field compares."""

from fastpose.metrics.pckh import format_pckh, pckh, pckh_from_mat

__all__ = ["format_pckh", "pckh", "pckh_from_mat"]
