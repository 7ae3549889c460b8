# SPDX-License-Identifier: Apache-2.0
"""Runs the machine code of compiled kernels (SASS of sm_90) on the CPU, and counts what it issues.

No static walk through a kernel knows how often its loops turn and which lanes branch; this interpreter has real
inputs, and since it computes, its results say what nvcc made of the arithmetic. It is functional, not a model of time:
lanes of a warp diverge at branches and meet again at BSYNC as on the hardware, so the instructions that each warp
issues are exact. All warps of a launch that stand at the same instruction are executed at once, as arrays
[warps, 32].

program.py reads kernels, machine.py runs them on what state.py has; integers.py, floats.py and instructions.py say what
each opcode does. An opcode or modifier that is unknown there is an error.
"""
