# SPDX-License-Identifier: Apache-2.0
"""One file per op: what the user calls, what torch.compile needs to know of it, and its gradient."""

from . import fallback as fallback  # first: without the native library it defines the ops
