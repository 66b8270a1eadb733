"""What the processor at hand can do."""

from pathlib import Path

import pytest

CPUINFO = Path("/proc/cpuinfo")

FAST_BFLOAT16 = CPUINFO.is_file() and bool({"avx512_bf16", "amx_bf16"} & set(CPUINFO.read_text().split()))

needs_bfloat16 = pytest.mark.skipif(
    not FAST_BFLOAT16, reason="bfloat16 is many times slower here than float32: no avx512_bf16, no amx_bf16"
)
"""For what is also tested with less of it: everywhere there is at least one test in bfloat16."""
