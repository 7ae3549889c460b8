# SPDX-License-Identifier: Apache-2.0
"""From annotation files and images to batches: annotation reading, image reading, augmentation, loading."""
