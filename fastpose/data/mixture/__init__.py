# SPDX-License-Identifier: Apache-2.0
"""Several data sets as one: a list of them in a YAML file, their persons in the joints of one network, a score each."""

from fastpose.data.mixture.dataset import Mixture
from fastpose.data.mixture.listing import is_mixture, joints_in_set

__all__ = ["Mixture", "is_mixture", "joints_in_set"]
