# SPDX-License-Identifier: Apache-2.0
"""One file per op: what the user calls, its kernel in plain torch, its fake kernel and its gradient."""
