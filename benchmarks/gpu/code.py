"""`python -m benchmarks gpu-code`: compile the attention kernels with their settings for GPUs that are not here, and
print what their machine code needs. Nothing runs on a GPU. It needs the disassembler that Triton's package has."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.machine import Row

SHARED = {80: 164, 90: 228, 100: 228}
"""Architectures, and the kilobytes of shared memory of a processor: A100, H100 and H200, B200."""
RESERVED, GRANULE = 1024, 8
"""Bytes of shared memory that each program needs besides its own, and registers that a thread gets at a time."""
REGISTERS, WARPS, THREADS = 65536, 64, 128
"""Registers and warps of a processor, and threads of a program."""
TILE_SCORES = 64 * 64
"""Scores of a tile: the unit of these figures."""
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
LABEL = re.compile(r"\s*(\.L_\w+):")
MEMORY = ("LDG", "LDGSTS", "STG", "LDS", "LDSM", "STS", "STSM", "LDL", "STL", "ATOMS", "LDTM", "STTM")


class Code(NamedTuple):
    """A compiled kernel. `stack`: bytes of local memory of a thread, for registers that it lacks. `shared`: bytes.
    `columns`: of tensor memory, of 512 that a processor of a B200 has. `loop`: the names of instructions in its longest
    loop."""

    registers: int
    stack: int
    shared: int
    columns: int
    loop: list[str]


def gpu_code() -> list[Row]:
    """Return a row for each kernel, architecture, and for windows without and with a mask."""
    rows = []
    for architecture in SHARED:
        for masked in (False, True):
            for name in ("tokens", "groups"):
                row = {"sm": architecture, "masked": masked, "kernel": name}
                rows.append(row | figures(name, masked, architecture))
    return rows


def figures(name: str, masked: bool, architecture: int) -> Row:
    """Return the figures of a kernel for windows of 8x7x7 tokens and heads of 32 channels, in bf16.

    A tile is 64 queries by 64 keys. A gather is a load of at most four bytes a thread.
    """
    code = compile_kernel(name, masked, architecture)
    keys = 64 if name == "tokens" else 400  # of a turn of the loop, with 64 queries
    tile = TILE_SCORES / (64 * keys)
    kinds = [instruction.partition(".")[0] for instruction in code.loop]
    gathers = [each for each in code.loop if re.match(r"LDG(STS)?\b(?!.*\.(64|128))", each)]
    return {
        "registers": code.registers,
        "stack, B": code.stack,
        "shared, kB": code.shared / 1024,
        "programs": programs(code, architecture),
        "issue slots": len(code.loop) * tile,
        "memory": sum(kind in MEMORY for kind in kinds) * tile,
        "local": sum(kind in ("LDL", "STL") for kind in kinds) * tile,
        "gathers a score": len(gathers) * THREADS / (64 * keys),
    }


def programs(code: Code, architecture: int) -> int:
    """Return how many programs share a processor."""
    of_thread = -(-code.registers // GRANULE) * GRANULE
    limits = [
        REGISTERS // (of_thread * THREADS),
        1024 * SHARED[architecture] // (code.shared + RESERVED),
        WARPS * 32 // THREADS,
    ]
    return min([*limits, 512 // code.columns] if code.columns else limits)


def compile_kernel(name: str, masked: bool, architecture: int) -> Code:
    """Compile `tokens_kernel` or `groups_kernel` with the settings that it has on this architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vswin_extract.network.triton_attention import groups_kernel, launch_settings, tokens_kernel
    from vswin_extract.network.windows import TILE

    options: dict[str, Any] = {}
    if name == "tokens":
        kernel, table = tokens_kernel, "*fp32"
        fixed = {"TOKENS": 392, "DIM": 32, "MASKED": masked, "IEEE": False, "TILE": TILE}
    else:
        kernel, table = groups_kernel, "*fp16"
        settings = launch_settings((architecture // 10, architecture % 10))
        fixed = {"PLACES": 49, "DIM": 32, "MASKED": masked, "HOISTED": settings.hoisted}
        options = {"maxnreg": settings.registers} if settings.registers else {}
    tensors = {"qkv": "*bf16", "out": "*bf16", "table": table}
    tensors |= dict.fromkeys(("rows", "regions", "codes", "groups", "cut"), "*i32")
    types = {each: "constexpr" if each in fixed else tensors.get(each, "i32") for each in kernel.arg_names}
    aligned = {*tensors, "channels", "length"}  # these are multiples of 16 for every published network
    attributes = {
        (number,): [["tt.divisibility", 16]] for number, each in enumerate(kernel.arg_names) if each in aligned
    }
    source = ASTSource(kernel, types, fixed, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(made.asm["cubin"])
        used = output_of(tools / "cuobjdump", "-res-usage", binary)
        text = output_of(tools / "nvdisasm", "-c", binary)
    registers, stack = (int(re.search(rf"{what}:(\d+)", used)[1]) for what in ("REG", "STACK"))  # type: ignore[index]
    columns = getattr(made.metadata, "tmem_size", 0) or 0
    return Code(registers, stack, made.metadata.shared, columns, max(loops(text), key=len))


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def loops(text: str) -> Iterator[list[str]]:
    """Yield the instructions from each label to each jump back to it. `text`: of the disassembler."""
    names: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if found := LABEL.match(line):
            labels[found[1]] = len(names)
        elif found := INSTRUCTION.search(line):
            names.append(found[1])
            goal = re.search(r"\.L_\w+", found[2])
            if found[1].startswith("BRA") and goal and labels.get(goal[0], len(names)) < len(names) - 1:
                yield names[labels[goal[0]] :]
