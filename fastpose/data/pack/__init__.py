# SPDX-License-Identifier: Apache-2.0
"""A data set packed for training, see `format.py`."""

from fastpose.data.pack.dataset import Pack, read_packed_persons
from fastpose.data.pack.format import Margins, PackError, Plan, is_pack, margins_of, pack_of, read_index
from fastpose.data.pack.write import write_pack

__all__ = [
    "Margins",
    "Pack",
    "PackError",
    "Plan",
    "is_pack",
    "margins_of",
    "pack_of",
    "read_index",
    "read_packed_persons",
    "write_pack",
]
