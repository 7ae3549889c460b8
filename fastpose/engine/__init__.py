# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation: a step, an epoch, a run, and what they leave behind."""
