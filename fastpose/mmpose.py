# SPDX-License-Identifier: Apache-2.0
"""The name by which an mmpose config imports `fastpose.integrations.mmpose`."""

from fastpose.integrations.mmpose import FastposeDataPreprocessor, FastposeHeatmap, FastposePack

__all__ = ["FastposeDataPreprocessor", "FastposeHeatmap", "FastposePack"]
