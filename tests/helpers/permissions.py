# SPDX-License-Identifier: Apache-2.0
"""Permissions that hold for root, too."""

from __future__ import annotations

import ctypes
import os

VERSION_3, DAC_OVERRIDE, DAC_READ_SEARCH = 0x20080522, 1 << 1, 1 << 2  # linux/capability.h


def obey_permissions() -> None:
    """Lets this thread, and those that it starts, no longer pass over the permissions of files and folders.

    Raises:
        OSError: the system does not let it.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; those of the next 32 capabilities
    if libc.capget(header, sets) == 0:
        sets[0] &= ~(DAC_OVERRIDE | DAC_READ_SEARCH)
        if libc.capset(header, sets) == 0:
            return
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
