"""Failures in every form in which runtimes, compilers, collectives and the allocator put them, and near misses.

The messages are made here from parts (whose heading, which sentence or name, what follows), so that a form is
recognised for what it is and not because it was listed.
"""

from __future__ import annotations

import importlib
import itertools
import re

import pytest
import torch

from devicekit.contract import ErrorKind
from devicekit.torchlike import classify

OUT, LOST = ErrorKind.OUT_OF_MEMORY, ErrorKind.DEVICE_LOST
WRONG, BARE = ErrorKind.WRONG_DEVICE, ErrorKind.NOT_INITIALISED
LABELS = {"cuda": "CUDA", "rocm": "HIP", "musa": "MUSA"}
SENTENCES = {
    "out of memory": OUT,
    "an illegal memory access was encountered": LOST,
    "unspecified launch failure": LOST,
    "device-side assert triggered": LOST,
    "misaligned address": LOST,
    "uncorrectable ECC error encountered": LOST,
    "initialization error": BARE,
    "invalid device ordinal": WRONG,
    "invalid argument": None,
    "no kernel image is available for execution on the device": None,
    "operation not supported": None,
    "invalid resource handle": None,
}
HEADINGS = [
    "{L} error: {s}",
    "{L} runtime error: {s}",
    "{L} driver error: {s}",
    "{L} Error: {s}",
    "{L} error: {s}\n{L} kernel errors might be asynchronously reported at some other API call",
    "Triton Error [{L}]: {s}",
    "Triton Error [{L}]: Code: 2, Messsage: {s}",
    "Triton Error [{L}]: Code: 2, Message: {s}",
    "{c} runtime error (2) : {s} at /pytorch/aten/src/THC/THCStorage.cu:58",
    "Unexpected error from {c}GetDeviceCount(). Did you call others before it? Error 2: {s}",
    "{C} failure 2 '{s}'",
    "{C} failure '{s}'",
    "NCCL error in: NCCLUtils.hpp:268, unhandled {c} error, NCCL version 2.21.5\nLast error:\n{C} failure 2 '{s}'",
    "Failed: {C} error /src/csrc/custom_all_reduce.cuh:455 '{s}'",
    "Failed: {L} error csrc/kernels/buffer.cu:12 '{s}'",
    "{L} error (csrc/flash_fwd.h:188): {s}",
    "{L} runtime error in {c}Malloc(&ptr, n): {s} (memory.h:21)",
    "{L}RT error: {s}",
    "worker died: {L} error: {s}",
]
FAMILIES = {
    "{c}ErrorMemoryAllocation": OUT,
    "{L}_ERROR_OUT_OF_MEMORY": OUT,
    "{c}ErrorIllegalAddress": LOST,
    "{L}_ERROR_ILLEGAL_ADDRESS": LOST,
    "{c}ErrorLaunchFailure": LOST,
    "{L}_ERROR_LAUNCH_FAILED": LOST,
    "{c}ErrorAssert": LOST,
    "{c}ErrorInvalidDevice": WRONG,
    "{L}_ERROR_INVALID_DEVICE": WRONG,
    "{c}ErrorInitializationError": BARE,
    "{L}_ERROR_NOT_INITIALIZED": BARE,
    "{c}ErrorNoDevice": BARE,
    "{c}ErrorInvalidValue": None,
    "{L}_ERROR_INVALID_VALUE": None,
    "{c}ErrorNotSupported": None,
    "{L}_ERROR_UNKNOWN": None,
}
AROUND = [
    "{n}",
    "{n}: the API call failed",
    "[CUresult.{n}] Call to memAlloc results in {n}",
    "error code {n} at line 12",
    "driver call failed ({n})",
    "<{n}: 2>",
]
OTHERS = {
    "xpu": [
        *(
            f"{p}_ERROR_{n}"
            for p in ("UR_RESULT", "ZE_RESULT", "PI")
            for n in ("OUT_OF_RESOURCES", "OUT_OF_HOST_MEMORY")
        ),
        "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
        "CL_MEM_OBJECT_ALLOCATION_FAILURE",
        "CL_OUT_OF_RESOURCES",
    ],
    "npu": ["ACL_ERROR_RT_MEMORY_ALLOCATION", "HCCL_E_MEMORY", "ACL_ERROR_BAD_ALLOC"],
}
OTHERS_LOST = {
    "xpu": ["UR_RESULT_ERROR_DEVICE_LOST", "ZE_RESULT_ERROR_DEVICE_LOST", "PI_ERROR_DEVICE_LOST"],
    "npu": ["ACL_ERROR_RT_AICORE_EXCEPTION", "ACL_ERROR_RT_LOST_HEARTBEAT", "ACL_ERROR_RT_DEVICE_MEM_ERROR"],
}
CODES = {207001: OUT, 507035: LOST, 507011: LOST, 107002: BARE, 107001: WRONG, 161002: None, 561103: None}
CODE_FORMS = [
    "NPU function error: aclrtMalloc, error code is {code}",
    "call failed, errorCode: {code}, device 0",
    "aclrtSynchronizeStream failed, ret = {code}",
    "error code: {code}",
    "hcclAllReduce: retcode={code}",
]
STATUSES = {
    "cuda": ["CUDNN_STATUS_ALLOC_FAILED", "CUSPARSE_STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED"],
    "rocm": ["HIPBLAS_STATUS_ALLOC_FAILED", "miopenStatusAllocFailed", "HSA_STATUS_ERROR_OUT_OF_RESOURCES"],
    "musa": ["MUBLAS_STATUS_ALLOC_FAILED", "MUDNN_STATUS_ALLOC_FAILED"],
}


class DriverCallError(Exception):
    """As numba and others have: no RuntimeError."""


def judged(vendor: str, error: BaseException) -> ErrorKind | None:
    return classify(error, importlib.import_module(f"devicekit_{vendor}.backend").VENDOR.errors)


@pytest.mark.parametrize("heading", HEADINGS)
@pytest.mark.parametrize("vendor", LABELS)
def test_a_sentence_behind_any_heading_means_the_same_and_only_under_its_own_label(vendor, heading):
    for label, (sentence, kind) in itertools.product(LABELS.values(), SENTENCES.items()):
        text = heading.format(L=label, C=label.capitalize(), c=label.lower(), s=sentence)
        expected = kind if label == LABELS[vendor] or kind is WRONG else None
        assert judged(vendor, RuntimeError(text)) is expected, text
        assert judged(vendor, ValueError(text)) is None
        for spaced in (text.replace(": ", " : "), text.replace(": ", ":  "), text.replace(" ", "  ")):
            if kind is not WRONG and sentence in spaced:
                assert judged(vendor, RuntimeError(spaced)) is expected, spaced
        other_label = re.sub(label, f"X{label}Y", text, flags=re.IGNORECASE)
        for near in (text.replace(sentence, f"{sentence[:-1]}xyz"), other_label):
            if kind is not WRONG:
                assert judged(vendor, RuntimeError(near)) is None, near


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("vendor", LABELS)
def test_a_name_of_the_runtime_means_the_same_wherever_it_stands(vendor, around):
    for label, (name, kind) in itertools.product(LABELS.values(), FAMILIES.items()):
        written = name.format(L=label, c=label.lower())
        text = around.format(n=written)
        expected = kind if label == LABELS[vendor] else None
        for kind_of_error in (RuntimeError, DriverCallError):
            assert judged(vendor, kind_of_error(text)) is expected, text
        for quoted in (ValueError, KeyError, TypeError):
            assert judged(vendor, quoted(text)) is None
        assert judged(vendor, RuntimeError(text.replace(written, f"my_{written}_x"))) is None


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("vendor", ["xpu", "npu", *LABELS])
def test_names_of_other_runtimes_and_libraries(vendor, around):
    tables = [(OTHERS, OUT), (OTHERS_LOST, LOST), (STATUSES, OUT)]
    for table, kind in tables:
        for owner, names in table.items():
            for name in names:
                expected = kind if owner == vendor else None
                assert judged(vendor, RuntimeError(around.format(n=name))) is expected, name
                assert judged(vendor, RuntimeError(around.format(n=f"{name}ED"))) is None


@pytest.mark.parametrize("form", CODE_FORMS)
def test_a_code_of_the_ascend_runtime_in_any_form(form):
    for code, kind in CODES.items():
        assert judged("npu", RuntimeError(form.format(code=code))) is kind
        assert judged("npu", RuntimeError(form.format(code=f"9{code}"))) is None
        assert judged("npu", RuntimeError(form.format(code=f"{code}9"))) is None
        assert judged("npu", RuntimeError(f"wrote {code} bytes")) is None


ZE_CODES = {
    0x70000001: LOST,
    0x70000002: OUT,
    0x70000003: OUT,
    0x70000004: None,  # a module that cannot be built
    0x70000005: None,
    0x70000006: LOST,  # requires a reset
    0x78000001: BARE,
    0x78000011: None,
    0x78000018: None,
}


@pytest.mark.parametrize(
    "form", ["Triton Error [ZE]: {code}", "zeMemAllocDevice failed: {code}", "ze error = {code}"]
)
def test_a_code_of_level_zero_in_either_base(form):
    for code, kind in ZE_CODES.items():
        for written in (f"0x{code:08x}", f"0x{code:08X}", str(code)):
            assert judged("xpu", RuntimeError(form.format(code=written))) is kind, written
            assert judged("xpu", RuntimeError(form.format(code=f"{written}1"))) is None
            assert judged("xpu", RuntimeError(f"read {written} bytes")) is None


LIBRARIES = {
    "pynvml.NVMLError_GpuIsLost": {"cuda": LOST},
    "pymtml.MTMLError_GpuIsLost": {"musa": LOST},
    "cupy.cuda.memory.OutOfMemoryError": {"cuda": OUT, "rocm": OUT},
    "pycuda._driver.MemoryError": {"cuda": OUT},
    "pynvml.NVMLError_NotSupported": {},
    "acme.cache.OutOfMemoryError": {},
}


@pytest.mark.parametrize("vendor", [*LABELS, "xpu", "npu"])
def test_what_a_library_calls_its_own_exception_counts_as_its_words_do(vendor):
    for name, kinds in LIBRARIES.items():
        module, _, own = name.rpartition(".")
        for base in (Exception, MemoryError):
            error = type(own, (base,), {"__module__": module})("in whatever words")
            assert judged(vendor, error) is kinds.get(vendor), name


ASSERTION = (
    '{library}_SUCCESS == {call} INTERNAL ASSERT FAILED at "../c10/{folder}/{name}CachingAllocator.cpp":{line}, '
    "please report a bug to PyTorch. "
)


@pytest.mark.parametrize(("vendor", "library"), [("cuda", "NVML"), ("musa", "MTML")])
@pytest.mark.parametrize("call", ["r", "DriverAPI::get()->nvmlInit_v2_()", "DriverAPI::get()->x_(a, b)"])
@pytest.mark.parametrize("line", [838, 1016, 4])
def test_the_allocators_own_assertion_on_a_partition_is_out_of_memory(vendor, library, call, line):
    name = LABELS[vendor]
    text = ASSERTION.format(library=library, call=call, folder=vendor, name=name, line=line)
    assert judged(vendor, RuntimeError(text)) is OUT
    assert judged(vendor, RuntimeError(text.replace("CachingAllocator", "Functions"))) is None
    assert (
        judged(vendor, RuntimeError(text.replace(f"{library}_SUCCESS ==", "captures_underway.empty()")))
        is None
    )


@pytest.mark.parametrize("vendor", [*LABELS, "xpu", "npu"])
@pytest.mark.parametrize(
    "text",
    [
        "out of resource: shared memory, Required: 163840, Hardware limit: 101376. Reducing block sizes may help.",
        "the request ran out of memory pages",
        "out of memory",
        "MPS backend out of memory",
        "DefaultCPUAllocator: can't allocate memory",
        "NCCL error: unhandled system error",
        "CUDA_VISIBLE_DEVICES names no device",
        "Error: cudart out of date",
        "",
    ],
)
def test_what_only_looks_like_it(vendor, text):
    assert judged(vendor, RuntimeError(text)) is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("0x70000001", LOST),
        ("0x70000003", OUT),
        ("0x70000002", OUT),
        ("0x78000001", BARE),
        ("0x78000004", None),
    ],
)
def test_level_zero_codes(code, kind):
    for form in ("Triton Error [ZE]: {}", "ZE error: {}", "level zero error at queue.cpp:3 = {}"):
        assert judged("xpu", RuntimeError(form.format(code))) is kind
    assert judged("xpu", RuntimeError(f"wrote at {code}")) is None


def test_a_long_message_is_read_in_bounded_time():
    import time

    for text in ("CUDA error " * 100_000, "CUDA error (" + "a:" * 500_000, "Cuda failure " + "1" * 1_000_000):
        before = time.process_time()
        judged("cuda", RuntimeError(text))
        assert time.process_time() - before < 2


def test_a_typed_out_of_memory_needs_no_words():
    for vendor in (*LABELS, "xpu", "npu"):
        assert judged(vendor, torch.OutOfMemoryError("")) is OUT
