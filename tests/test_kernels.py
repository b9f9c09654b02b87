"""What is equal to the bit is so on every processor: the tests that say so, with the kernels of others."""

import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

OTHERS = {
    "no vectors": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
}


@pytest.mark.parametrize("kernels", OTHERS)
def test_equal_to_the_bit_with_other_kernels(kernels):
    tests = sorted((PROJECT / "tests").glob("test_*.py"))
    files = [path for path in tests if "\n@pytest.mark.bits" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "bits", *files]
    environment = os.environ | OTHERS[kernels] | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout
