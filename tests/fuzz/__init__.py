# SPDX-License-Identifier: Apache-2.0
"""Calls of every kind: fuzz_ops.cpp calls the C++ entries without torch, fuzz_calls.py the ops from Python."""
