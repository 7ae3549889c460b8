# SPDX-License-Identifier: Apache-2.0
"""Options of the commands: what there are, what was asked for, and what is in effect."""
