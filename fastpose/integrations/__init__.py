# SPDX-License-Identifier: Apache-2.0
"""fastpose inside other frameworks; nothing of fastpose imports these."""
