# SPDX-License-Identifier: Apache-2.0
"""The interpreter of machine code, on snippets with results worked out by hand, and on a kernel of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bench import kernels, launches
from bench.sass import floats
from bench.sass.machine import DeadlockError, Machine
from bench.sass.memory import Counts, Memory, MemoryFaultError, wavefronts_per_warp
from bench.sass.program import Kernel, UnsupportedInstructionError, parse, read_kernels
from bench.sass.state import Launch

ROOT = Path(__file__).resolve().parents[2]
LANES = np.arange(32)


def run(
    code: str,
    *,
    registers: dict[int, object] | None = None,
    blocks: int = 1,
    threads: int = 32,
    parameters: bytes = b"",
    memory: Memory | None = None,
) -> Machine:
    """Runs lines such as `IADD3 R0, R1, R2, RZ`; a line `name:` is a place to branch to."""
    places: dict[str, int] = {}
    lines: list[str] = []
    for line in filter(None, (line.strip() for line in code.splitlines())):
        if line.endswith(":"):
            places[line[:-1]] = 16 * len(lines)
        else:
            lines.append(line)
    for name, place in places.items():
        lines = [re.sub(rf"\b{name}\b", f"{place:#x}", line) for line in lines]
    text = "\n".join(f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate([*lines, "EXIT"]))
    launch = Launch("snippet", blocks, threads, 1024, parameters)
    machine = Machine(Kernel("snippet", parse(text)), launch, range(blocks), memory or Memory())
    for number, value in (registers or {}).items():
        machine.registers[number][:] = np.asarray(value).astype(np.int64) & 0xFFFFFFFF
    machine.run()
    return machine


def bits(*values: float) -> list[int]:
    return np.array(values, np.float32).view(np.uint32).tolist()


def single(machine: Machine, register: int) -> float:
    return float(machine.registers[register].view(np.float32)[0, 0])


def double(machine: Machine, register: int) -> float:
    words = np.array([machine.registers[register][0, 0], machine.registers[register + 1][0, 0]])
    return float(words.view(np.float64)[0])


def in_pair(value: float, register: int) -> dict[int, object]:
    low, high = np.array([value]).view(np.uint32).tolist()
    return {register: low, register + 1: high}


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        # R1 = 0x12345678, R2 = 0x9abcdef0, R3 = 5
        ("LOP3.LUT R0, R1, R2, RZ, 0xc0, !PT", 0x12345670),  # and
        ("LOP3.LUT R0, R1, 0xff, R2, 0xf8, !PT", 0x12345678 | (0xFF & 0x9ABCDEF0)),  # a | (b & c)
        ("LOP3.LUT R0, R1, R2, R3, 0x96, !PT", 0x12345678 ^ 0x9ABCDEF0 ^ 5),
        ("LOP3.LUT R0, R1, R2, R3, 0x2, !PT", ~0x12345678 & ~0x9ABCDEF0 & 5),
        ("SHF.L.U32 R0, R1, 0x4, RZ", 0x23456780),
        ("SHF.L.U32 R0, R1, 0x28, RZ", 0),  # more than the word has
        ("SHF.L.W.U32 R0, R1, 0x28, RZ", 0x34567800),  # modulo 32: by 8
        ("SHF.R.U32.HI R0, RZ, 0x4, R2", 0x09ABCDEF),
        ("SHF.R.S32.HI R0, RZ, 0x4, R2", 0xF9ABCDEF),
        ("SHF.R.S32.HI R0, RZ, 0x1f, R2", 0xFFFFFFFF),
        ("SHF.R.U64 R0, R1, 0x8, R2", 0xF0123456),  # the low word of 0x9abcdef0_12345678 >> 8
        ("SHF.L.U64.HI R0, R1, 0x8, R2", 0xBCDEF012),  # the high word of it << 8
        ("SHF.R.U64 R0, R1, R3, R2", (0x9ABCDEF012345678 >> 5) & 0xFFFFFFFF),
        ("IADD3 R0, R1, -R3, 0x1", 0x12345674),
        ("IADD3 R0, R2, R2, R3", (2 * 0x9ABCDEF0 + 5) & 0xFFFFFFFF),
        ("VIADD R0, R3, 0xfffffffe", 3),
        ("LEA R0, R3, R1, 0x4", 0x123456C8),  # 5 * 16 + R1
        ("LEA.HI R0, R1, R3, RZ, 0x4", 6),  # R1 >> 28, plus 5
        ("LEA.HI R0, R1, R3, R2, 0x4", (0xABCDEF01 + 5) & 0xFFFFFFFF),
        ("LEA.HI.SX32 R0, R2, R3, 0x8", 0xFFFFFF9F),  # sign extended: -0x66 (the top 8 bits, rounded down) + 5
        ("PRMT R0, R1, 0x3210, R2", 0x12345678),
        ("PRMT R0, R1, 0x7610, R2", 0x9ABC5678),
        ("PRMT R0, R1, 0x0123, RZ", 0x78563412),
        ("PRMT R0, R2, 0x8880, RZ", 0xFFFFFFF0),  # byte 0 is 0xf0: its sign above it
        ("PRMT R0, R1, 0x9910, RZ", 0x00005678),  # byte 1 is 0x56: positive
        ("PRMT R0, R2, R3, R1", 0xF0F0F056),  # selector 0x0005: byte 1 of R1 below three of byte 0 of R2
        ("IMAD R0, R3, 0x3, R3", 20),
        ("IMAD.SHL.U32 R0, R3, 0x10, RZ", 80),
        ("IMAD.MOV R0, RZ, RZ, -R3", 0xFFFFFFFB),
        ("IMAD.HI.U32 R0, R1, R2, RZ", 0x12345678 * 0x9ABCDEF0 >> 32),
        ("IMAD.HI R0, R1, R2, RZ", (0x12345678 * (0x9ABCDEF0 - 2**32) >> 32) & 0xFFFFFFFF),
        ("IABS R0, R2", 0x100000000 - 0x9ABCDEF0),
        ("VIMNMX R0, R1, R2, PT", 0x9ABCDEF0),  # signed: R2 is negative
        ("VIMNMX.U32 R0, R1, R2, PT", 0x12345678),
        ("VIMNMX R0, R1, R2, !PT", 0x12345678),
        ("VIADDMNMX R0, R3, 0x3, 0x7, PT", 7),
        ("SEL R0, R1, R2, !PT", 0x9ABCDEF0),
        ("POPC R0, R3", 2),
        ("BREV R0, R3", 0xA0000000),
        ("FLO.U32 R0, R3", 2),
        ("FLO.U32.SH R0, R3", 29),
        ("FLO.U32 R0, RZ", 0xFFFFFFFF),
        ("I2F.U8 R0, R1.B1", bits(0x56)[0]),
        ("I2FP.F32.S32 R0, R2", bits(float(0x9ABCDEF0 - 2**32))[0]),
        ("F2FP.BF16.F32.PACK_AB R0, RZ, 1", 0x00003F80),
        ("HADD2.F32 R0, -RZ, R4.H1_H1", bits(-1.5)[0]),  # R4 = 0xbe000000
        ("P2R R0, PR, R3, 0x3", 4),  # bit 2 of R3 stays, P0 and P1 are off
    ],
)
def test_does_with_integers_what_they_say(instruction: str, expected: int) -> None:
    machine = run(instruction, registers={1: 0x12345678, 2: 0x9ABCDEF0, 3: 5, 4: 0xBE000000})
    assert hex(machine.registers[0][0, 7]) == hex(expected & 0xFFFFFFFF)


def test_carries_go_from_word_to_word() -> None:
    # 0x1_ffffffff + 0x2_00000001 = 0x4_00000000; 0x4_00000000 - 0x1_ffffffff = 0x2_00000001
    machine = run(
        """
        IADD3 R4, P0, R0, R2, RZ
        IADD3.X R5, R1, R3, RZ, P0, !PT
        IADD3 R6, P1, R4, -R0, RZ
        IADD3.X R7, R5, ~R1, RZ, P1, !PT
        IMAD.X R8, RZ, RZ, RZ, P1
        """,
        registers={0: 0xFFFFFFFF, 1: 1, 2: 1, 3: 2},
    )
    assert [int(machine.registers[i][0, 0]) for i in range(4, 9)] == [0, 4, 1, 2, 0]


def test_addresses_of_64_bits_are_computed_in_two_steps() -> None:
    # 0x1_fffffff0 + 4 * 0x1_00000008 = 0x6_00000010
    machine = run(
        """
        LEA R4, P0, R0, R2, 0x2
        LEA.HI.X R5, R0, R3, R1, 0x2, P0
        IMAD.WIDE R6, R8, 0x4, R2
        """,
        registers={0: 8, 1: 1, 2: 0xFFFFFFF0, 3: 1, 8: -8},
    )
    assert [int(machine.registers[i][0, 0]) for i in (4, 5)] == [0x10, 6]
    assert [int(machine.registers[i][0, 0]) for i in (6, 7)] == [0xFFFFFFD0, 1]  # - 32, with a borrow


@pytest.mark.parametrize("left", [0, 1, -1, 2**32, -(2**32), 2**32 + 1, 2**63 - 1])
@pytest.mark.parametrize("right", [0, 1, -1, 2**32, -(2**32), 2**32 + 1])
def test_numbers_of_64_bits_are_compared_word_by_word(left: int, right: int) -> None:
    code = """
        ISETP.{kind}.U32.AND P0, PT, R0, R2, PT
        ISETP.{kind}.AND.EX P0, P1, R1, R3, PT, P0
        SEL R{to}, RZ, 0x1, !P0
    """
    kinds = {"LT": left < right, "LE": left <= right, "GT": left > right, "EQ": left == right, "NE": left != right}
    machine = run(
        "".join(code.format(kind=kind, to=4 + i) for i, kind in enumerate(kinds)),
        registers={0: left, 1: left >> 32, 2: right, 3: right >> 32},
    )
    assert [bool(machine.registers[4 + i][0, 0]) for i in range(len(kinds))] == list(kinds.values())


def test_the_product_of_imad_hi_is_added_to_a_pair() -> None:
    # As in a division: hi(R0 * R1 + {R1', R0'}), the pair being R2:R3 = 0x7_ffffffff
    machine = run("IMAD.HI.U32 R4, R0, R1, R2", registers={0: 0x10000, 1: 0x10000, 2: 0xFFFFFFFF, 3: 7})
    assert machine.registers[4][0, 0] == (2**32 + 0x7FFFFFFFF) >> 32 == 8


def test_fused_multiply_adds_round_once() -> None:
    # (1 + 2^-12)^2 + 2^-80 is just above the middle of two float32, 2^-80 being lost in float64.
    a = 1 + 2.0**-12
    machine = run("FFMA R4, R0, R0, R1", registers={0: bits(a)[0], 1: bits(2.0**-80)[0]})
    assert single(machine, 4) == 1 + 2.0**-11 + 2.0**-23
    # (1 + 2^-27)^2 - (1 + 2^-26) = 2^-54
    machine = run("DFMA R4, R0, R0, -R2", registers=in_pair(1 + 2.0**-27, 0) | in_pair(1 + 2.0**-26, 2))
    assert double(machine, 4) == 2.0**-54


def test_fused_multiply_adds_of_float64_are_exact_beside_rational_numbers() -> None:
    from fractions import Fraction

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 300))
    c = -a * b * (1 + rng.integers(-3, 4, 300) * 2.0**-52) + rng.integers(-1, 2, 300) * rng.random(300) * 2.0**-60
    got = floats.fused_double(a, b, c)
    expected = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("FFMA.RM R4, R0, 1, R1", 1.0),  # 1 + 2^-30, down
        ("FFMA.RP R4, R0, 1, R1", 1 + 2.0**-23),
        ("FFMA.SAT R4, R0, 3, R1", 1.0),
        ("FADD R4, R0, -3", -2.0),
        ("FADD.RM R4, R0, -R1", 1 - 2.0**-24),
        ("FMUL.RP R4, R6, R6", 1 + 2.0**-22 + 2.0**-23),  # (1 + 2^-23)^2, up
        ("FADD R4, |R2|, -R0", 1.5),
        ("FMNMX R4, R2, R0, PT", -2.5),
        ("FMNMX R4, R2, R0, !PT", 1.0),
        ("FMNMX R4, R3, R0, PT", 1.0),  # R3 is NaN
        ("FSEL R4, R2, R0, PT", -2.5),
        ("MUFU.EX2 R4, 3", 8.0),
        ("I2F.RP R4, R5", 16777218.0),  # 2^24 + 1
        ("I2FP.F32.S32 R4, R5", 16777216.0),
    ],
)
def test_does_with_floats_what_they_say(instruction: str, expected: float) -> None:
    one, tiny, negative, nan = bits(1.0, 2.0**-30, -2.5, np.nan)
    machine = run(instruction, registers={0: one, 1: tiny, 2: negative, 3: nan, 5: 2**24 + 1, 6: one + 1})
    assert single(machine, 4) == expected


def test_predicates_go_into_a_register_and_back() -> None:
    machine = run(
        """
        ISETP.NE.AND P0, PT, R0, RZ, PT
        ISETP.EQ.AND P2, PT, R0, RZ, PT
        P2R R4, PR, R1, 0x5
        ISETP.EQ.AND P0, PT, RZ, RZ, PT
        R2P PR, R4, 0x3
        """,
        registers={0: LANES, 1: 0xFF0F},
    )
    np.testing.assert_array_equal(machine.registers[4][0], np.where(LANES == 0, 0xFF0E, 0xFF0B))
    np.testing.assert_array_equal(machine.predicates[0][0], LANES != 0)
    assert machine.predicates[1].all()  # bit 1 of R1
    np.testing.assert_array_equal(machine.predicates[2][0], LANES == 0)  # not among those that R2P names


def test_comparisons_know_nan() -> None:
    machine = run(
        """
        FSETP.GT.AND P0, P1, R0, R3, PT
        FSETP.LEU.AND P2, PT, R0, R3, PT
        FSETP.NAN.OR P3, PT, R0, R0, !PT
        FSETP.NEU.AND P4, PT, R3, R3, PT
        DSETP.MAX.AND P5, P6, RZ, R6, PT
        """,
        registers={0: bits(1.0)[0], 3: bits(np.nan)[0]} | in_pair(np.nan, 6),
    )
    assert [bool(p[0, 0]) for p in machine.predicates] == [False, True, True, False, True, False, True]


def test_numbers_of_64_bits_become_doubles() -> None:
    """Rounded to the nearest, half to even: 2^53 + 1 lies in the middle."""
    for value in (0, -5, 2**53 + 1, -(2**63), 2**63 - 1):
        low, high = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
        machine = run("I2F.F64.S64 R4, R2\nI2F.F64.U64 R6, R2", registers={2: low, 3: high})
        assert float(double(machine, 4)) == float(value)
        assert float(double(machine, 6)) == float(value % 2**64)


def test_conversions_to_integers_saturate() -> None:
    code = "\n".join(f"F2I.TRUNC.NTZ R{10 + i}, R{i}\nF2I.FTZ.U32.TRUNC.NTZ R{20 + i}, R{i}" for i in range(5))
    machine = run(code, registers=dict(enumerate(bits(-2.7, 2.7, 3e9, 1e20, np.nan))))
    signed = [int(machine.registers[10 + i].view(np.int32)[0, 0]) for i in range(5)]
    assert signed == [-2, 2, 2**31 - 1, 2**31 - 1, 0]
    assert [int(machine.registers[20 + i][0, 0]) for i in range(5)] == [0, 2, 3_000_000_000, 2**32 - 1, 0]


def test_bfloat16_is_rounded_to_even() -> None:
    # 1 + 2^-8 lies between 1 and 1 + 2^-7, 1 + 3 * 2^-8 between 1 + 2^-7 and 1 + 2^-6: both go to the even one.
    machine = run("F2FP.BF16.F32.PACK_AB R4, R0, R1", registers=dict(enumerate(bits(1 + 3 * 2.0**-8, 1 + 2.0**-8))))
    assert hex(machine.registers[4][0, 0]) == "0x3f823f80"


def test_an_immediate_that_text_cannot_hold_is_read_from_the_encoding() -> None:
    (line,) = parse("/*0000*/ HFMA2.MMA R16, -RZ, RZ, 0, +QNAN ;  /* 0x00007fffff107435 */")
    assert line.immediate == 0x7FFF
    with pytest.raises(UnsupportedInstructionError, match=r"HFMA2.MMA R0, R1, R2, R3"):
        run("HFMA2.MMA R0, R1, R2, R3")


def issued(machine: Machine) -> dict[str, int]:
    return dict(machine.counts.instructions)


def test_lanes_that_part_meet_again() -> None:
    machine = run(
        """
        ISETP.GE.AND P0, PT, R0, 0x8, PT
        BSSY B0, after
        @P0 BRA other
        IMAD R1, R0, 0x2, RZ
        BRA together
        other:
        VIADD R1, R0, 0x64
        VIADD R1, R1, 0x1
        together:
        BSYNC B0
        after:
        LOP3.LUT R2, R1, 0x1, RZ, 0x3c, !PT
        """,
        registers={0: LANES},
    )
    expected = np.where(LANES >= 8, LANES + 101, 2 * LANES)
    np.testing.assert_array_equal(machine.registers[1][0], expected)
    # Both sides are issued, and BSYNC by either; what follows once.
    assert issued(machine)["IMAD"] == 1
    assert issued(machine)["VIADD"] == 2
    assert issued(machine)["BSYNC"] == 2
    assert issued(machine)["LOP3.LUT"] == 1


def test_a_loop_turns_as_often_as_its_last_lane_wants() -> None:
    machine = run(
        """
        MOV R1, RZ
        BSSY B0, after
        again:
        VIADD R1, R1, 0x1
        ISETP.LT.AND P0, PT, R1, R0, PT
        @P0 BRA again
        BSYNC B0
        after:
        IABS R2, R1
        """,
        registers={0: LANES},
    )
    np.testing.assert_array_equal(machine.registers[1][0], np.maximum(LANES, 1))
    assert (issued(machine)["VIADD"], issued(machine)["IABS"]) == (31, 1)


def test_lanes_that_break_out_or_leave_are_not_waited_for() -> None:
    machine = run(
        """
        BSSY B0, after
        ISETP.GE.AND P0, PT, R0, 0x10, PT
        @P0 BREAK B0
        @P0 BRA away
        ISETP.GE.AND P1, PT, R0, 0x8, PT
        @P1 EXIT
        MOV R1, 0x1
        BSYNC B0
        after:
        MOV R1, 0x2
        EXIT
        away:
        MOV R1, 0x3
        """,
        registers={0: LANES, 1: 0},
    )
    np.testing.assert_array_equal(machine.registers[1][0], np.repeat([2, 0, 3], [8, 8, 16]))


def test_warps_of_a_block_wait_for_each_other() -> None:
    machine = run(
        """
        S2R R0, SR_TID.X
        LEA R1, R0, 0x400, 0x2
        STS [R1], R0
        BAR.SYNC.DEFER_BLOCKING 0x0
        LOP3.LUT R1, R1, 0x80, RZ, 0x3c, !PT
        LDS R2, [R1]
        """,
        threads=64,
        blocks=2,
    )
    np.testing.assert_array_equal(machine.registers[2][1], LANES)
    np.testing.assert_array_equal(machine.registers[2][2], LANES + 32)


def test_lanes_that_wait_for_ever_are_an_error() -> None:
    with pytest.raises(DeadlockError, match="lanes wait for ever"):
        run(
            """
            BSSY B0, after
            @P0 BRA after
            ISETP.GE.AND P0, PT, R0, 0x8, PT
            @P0 BRA away
            BSYNC B0
            after:
            EXIT
            away:
            BAR.SYNC.DEFER_BLOCKING 0x0
            BSYNC B0
            """,
            registers={0: LANES},
        )


def test_a_call_comes_back() -> None:
    machine = run(
        """
        MOV R4, back
        CALL.REL.NOINC routine
        back:
        VIADD R0, R0, 0x1
        EXIT
        routine:
        IMAD R0, R0, 0xa, RZ
        RET.REL.NODEC R4 0x0
        """,
        registers={0: LANES},
    )
    np.testing.assert_array_equal(machine.registers[0][0], 10 * LANES + 1)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("SHFL.DOWN P0, R1, R0, 0x4, 0x1f", np.minimum(LANES + 4, np.where(LANES < 28, 31, LANES))),
        ("SHFL.UP P0, R1, R0, 0x1, RZ", np.maximum(LANES - 1, 0)),
        ("SHFL.BFLY P0, R1, R0, 0x10, 0x1f", LANES ^ 16),
        ("SHFL.IDX P0, R1, R0, 0x3, 0x1f", np.full(32, 3)),
        ("SHFL.BFLY P0, R1, R0, 0x1, 0x181f", LANES ^ 1),  # within groups of 8
        ("MATCH.ANY R1, R2", np.where(LANES < 8, 0xFF, 0xFFFFFF00)),
        ("VOTE.ANY R1, PT, P1", np.full(32, 0xFFFFFF00)),
    ],
)
def test_lanes_exchange_what_they_have(instruction: str, expected: np.ndarray) -> None:
    machine = run(f"ISETP.GE.AND P1, PT, R0, 0x8, PT\n{instruction}", registers={0: LANES, 2: LANES >= 8})
    np.testing.assert_array_equal(machine.registers[1][0], expected)


def test_a_warp_is_reduced_to_one_number() -> None:
    machine = run(
        "REDUX.SUM UR0, R0\nREDUX.MAX.S32 UR1, R1\nREDUX UR2, R2", registers={0: LANES, 1: -LANES, 2: LANES | 64}
    )
    assert [int(machine.uniform[i][0, 0]) for i in range(3)] == [496, 0, 64]


def test_the_last_block_is_known_by_a_ticket() -> None:
    memory = Memory()
    ticket = memory.add(np.zeros(1, np.uint32))
    machine = run(
        """
        MOV R4, c[0x0][0x210]
        MOV R5, c[0x0][0x214]
        S2R R6, SR_LANEID
        ISETP.NE.AND P0, PT, R6, RZ, PT
        @!P0 ATOMG.E.INC.STRONG.GPU PT, R7, desc[UR4][R4.64], 0x2
        """,
        parameters=np.array([ticket]).tobytes(),
        memory=memory,
        blocks=3,
    )
    assert sorted(machine.registers[7][:, 0].tolist()) == [0, 1, 2]
    assert memory.read(ticket, np.uint32, (1,)).tolist() == [0]  # ready for the next launch


def load_from(address: int, memory: Memory, instruction: str, offsets: np.ndarray) -> Machine:
    low, high = np.array([address]).view(np.uint32).tolist()
    code = f"IADD3 R4, P0, R0, {low:#x}, RZ\nIADD3.X R5, RZ, {high:#x}, RZ, P0, !PT\n{instruction}"
    return run(code, memory=memory, registers={0: offsets})


@pytest.mark.parametrize(
    ("stride", "sectors", "lines", "lookups"),
    [(4, 4, 1, 1), (0, 1, 1, 1), (20, 20, 5, 2), (32, 32, 8, 2), (128, 32, 32, 8)],
)
def test_counts_what_an_access_touches(stride: int, sectors: int, lines: int, lookups: int) -> None:
    memory = Memory()
    address = memory.add(np.arange(1024, dtype=np.uint32))
    machine = load_from(address, memory, "LDG.E R6, desc[UR4][R4.64]", stride * LANES)
    np.testing.assert_array_equal(machine.registers[6][0], stride // 4 * LANES)
    # Buffers begin at multiples of 256 bytes, as those of an allocator do.
    assert machine.counts.memory == {
        "global load sectors": sectors,
        "global load lines": lines,
        "global load lookups": lookups,
    }


@pytest.mark.parametrize(
    ("instruction", "offset"), [("LDG.E", 4096), ("LDG.E", -4), ("LDG.E.64", 4), ("LDG.E.128", 4088)]
)
def test_an_access_beside_a_buffer_is_an_error_that_names_the_instruction(instruction: str, offset: int) -> None:
    memory = Memory()
    address = memory.add(np.zeros(1024, np.uint32))
    with pytest.raises(MemoryFaultError, match=rf"{instruction} R8, desc"):
        load_from(address + offset, memory, f"{instruction} R8, desc[UR4][R4.64]", 0 * LANES)


@pytest.mark.parametrize(
    ("addresses", "size", "passes"),
    [
        (4 * LANES, 4, 1),
        (8 * LANES, 4, 2),
        (128 * LANES, 4, 32),
        (0 * LANES, 4, 1),  # all from one word
        (LANES, 1, 1),
        (16 * LANES, 16, 4),
        (8 * LANES, 8, 2),
    ],
)
def test_counts_passes_over_the_banks(addresses: np.ndarray, size: int, passes: int) -> None:
    assert wavefronts_per_warp(addresses[None], size, np.ones((1, 32), bool)).tolist() == [passes]


@pytest.mark.parametrize(
    "instruction",
    ["FROB R0, R1", "IADD3.WILD R0, R1, R2, RZ", "MOV R0, c[0x3][0x8]", "BAR.RED.POPC 0x0", "MOV R0, SR_FOO"],
)
def test_what_is_unknown_is_an_error(instruction: str) -> None:
    with pytest.raises(UnsupportedInstructionError, match=re.escape(instruction.split(",")[0])):
        run(instruction)


def test_parameters_of_another_size_are_an_error() -> None:
    kernel = Kernel("one", parse("/*0000*/ EXIT ;"), parameter_bytes=24)
    with pytest.raises(ValueError, match="one: expected 24 bytes of parameters, got 16"):
        Machine(kernel, Launch("one", 1, 32, 0, bytes(16)), [0], Memory())


# ---- counts and bounds -----------------------------------------------------------------------------------------------


def test_instructions_go_to_their_pipes() -> None:
    counts = Counts()
    counts.instructions.update(
        {"FFMA": 8, "IMAD.WIDE": 4, "LOP3.LUT": 6, "DADD": 2, "MUFU.EX2": 1, "EXIT": 1, "UMOV": 2}
    )
    counts.memory.update({"shared load wavefronts": 3, "shared store wavefronts": 4, "global load lines": 9})
    assert kernels.pipe_counts(counts) == {
        "issue": 24, "fma": 12, "imad": 4, "alu": 6, "fp64": 2, "xu": 1, "uniform": 2, "shared": 7
    }  # fmt: skip


def test_the_bound_is_that_of_the_busiest_pipe() -> None:
    row = {"pipes": {"issue": 100, "alu": 60, "fp64": 4}, "batch_units": 1000, "batch_blocks": 4}
    hopper, ada = (kernels.Gpu("", sms, 1e9, 1.0, rates) for sms, rates in ((10, kernels.HOPPER), (2, kernels.ADA)))
    assert kernels.busiest(row["pipes"], kernels.HOPPER) == ("alu", 30)
    assert kernels.bound(row, hopper) == pytest.approx(30 * 1000 / 4 / 1e9)  # four blocks keep but four SMs busy
    assert kernels.bound(row, ada) == pytest.approx(4 * 16 * 1000 / 2 / 1e9)  # float64 at a sixteenth


def test_a_count_may_change_by_a_twentieth() -> None:
    def row(issue: float, alu: float) -> dict[str, object]:
        return {"unit": "map", "pipes": {"issue": issue, "alu": alu}}

    stored = {"decode": row(1000, 100)}
    assert kernels.changed("decode", row(1050, 100), stored) is None
    assert kernels.changed("decode", row(950, 100), stored) is None
    for now, text in ((1051, "rose from 1,000.0 to 1,051.0"), (949, "fell from 1,000.0 to 949.0")):
        assert f"instructions per map {text}, more than 5%" in str(kernels.changed("decode", row(now, 100), stored))
    assert "clocks per map rose from 250.0 to 270.0" in str(kernels.changed("decode", row(1000, 540), stored))
    assert kernels.changed("render", row(1, 1), stored) == "render: no count is stored"


def test_the_page_has_the_table_of_the_stored_counts() -> None:
    rows = json.loads(kernels.STORED.read_text(encoding="utf-8"))
    page = kernels.PAGE.read_text(encoding="utf-8")
    assert list(rows) == list(kernels.hot_work())
    assert kernels.with_table(page, rows) == page
    with pytest.raises(ValueError, match="expected <!-- made by"):
        kernels.with_table("# a page", rows)


def test_launchers_say_what_they_launch(tmp_path: Path) -> None:
    launchers = launches.Launchers(tmp_path, ["heatmap_mse_loss"])
    work = kernels.hot_work()["heatmap_mse_loss total"]()
    tiles, total = launchers(work.launcher, work.parameters)
    assert (total.kernel[:18], total.blocks, total.threads) == ("total_loss_kernelI", 1, 256)
    assert tiles.kernel.startswith("loss_")
    assert bytes(work.parameters) == tiles.parameters[: len(bytes(work.parameters))]  # the op's own come first


def test_a_compiled_kernel_gives_what_the_reference_gives(tmp_path: Path) -> None:
    """`make kernel-counts` does this for all of them; the check sees a value that is not right."""
    library = next(iter(sorted((ROOT / "build/cuda/fastpose").glob("_C*.so"))), None)
    if library is None:
        pytest.skip("no library in build/cuda: make cuda-compile")
    try:
        found = read_kernels(library, kernels.COUNTED, re.compile("render"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    compiled = {launches.own_name(name): kernel for name, kernel in found.items()}
    launchers = launches.Launchers(tmp_path, ["render_heatmaps"])
    work = kernels.hot_work()["render_heatmaps, float32"]()
    row = kernels.count(compiled, launchers, work)
    assert row["pipes"]["issue"] >= 32  # 16 KiB of stores, 512 bytes by one
    work.memory.arena[work.parameters.heatmaps - Memory.BASE + 3] ^= 0x40
    with pytest.raises(ArithmeticError, match="heatmaps: expected at most"):
        work.check(launchers(work.launcher, work.parameters), 1)
