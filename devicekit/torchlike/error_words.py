"""How runtimes, and the libraries around torch, put a device's failures: CUDA's words, and those made after them.

A failure is said in three ways: by a sentence of the runtime behind somebody's heading ("CUDA error: out of
memory", "Triton Error [CUDA]: out of memory", "Cuda failure 2 'out of memory'"), by a name of the runtime's own
(``cudaErrorMemoryAllocation``, ``CUDA_ERROR_OUT_OF_MEMORY``), or by a status of one of the vendor's libraries.
"""

from __future__ import annotations

from collections.abc import Mapping

from devicekit.contract import ErrorKind
from devicekit.torchlike.errors import ErrorRules

# The driver codes that torch.AcceleratorError carries; CUDA's, which HIP and MUSA share.
CUDA_CODES: Mapping[int, ErrorKind] = {
    2: ErrorKind.OUT_OF_MEMORY,
    3: ErrorKind.NOT_INITIALISED,  # initialisation error: also what a forked child gets
    35: ErrorKind.NOT_INITIALISED,  # no driver, or one too old for the runtime
    100: ErrorKind.NOT_INITIALISED,  # no device
    101: ErrorKind.WRONG_DEVICE,  # invalid device ordinal
    # Sticky: every later call of the process fails with the same code.
    214: ErrorKind.DEVICE_LOST,  # uncorrectable ECC error
    700: ErrorKind.DEVICE_LOST,  # illegal memory access
    702: ErrorKind.DEVICE_LOST,  # launch timed out
    709: ErrorKind.DEVICE_LOST,  # context is destroyed
    710: ErrorKind.DEVICE_LOST,  # device-side assert
    714: ErrorKind.DEVICE_LOST,  # hardware stack error
    715: ErrorKind.DEVICE_LOST,  # illegal instruction
    716: ErrorKind.DEVICE_LOST,  # misaligned address
    717: ErrorKind.DEVICE_LOST,  # invalid address space
    718: ErrorKind.DEVICE_LOST,  # invalid program counter
    719: ErrorKind.DEVICE_LOST,  # unspecified launch failure
    802: ErrorKind.NOT_INITIALISED,  # the system's own services are not up yet
    803: ErrorKind.NOT_INITIALISED,  # the driver's parts are of different versions
    804: ErrorKind.NOT_INITIALISED,  # a runtime newer than the driver, where hardware does not allow that
}
"""What the error numbers mean that CUDA's runtime, and those in its manner, give."""

_SENTENCES: Mapping[ErrorKind, str] = {
    ErrorKind.OUT_OF_MEMORY: "out of memory",
    ErrorKind.DEVICE_LOST: (
        "an illegal memory access was encountered|unspecified launch failure|device-side assert triggered"
        "|the launch timed out and was terminated|misaligned address|an illegal instruction was encountered"
        "|uncorrectable ECC error encountered|hardware stack error|invalid program counter|context is destroyed"
        "|operation not supported on global/shared address space"
    ),
    ErrorKind.NOT_INITIALISED: (
        r"initialization error|\w+ driver version is insufficient for \w+ runtime version"
        r"|no [\w-]+-capable device is detected|system not yet initialized"
        r"|system has unsupported display driver / cuda driver combination"
        r"|forward compatibility was attempted on non supported HW"
    ),
    ErrorKind.WRONG_DEVICE: "invalid device ordinal",
}
# After "cudaError" or "hipError", and after "CUDA_ERROR_".
_RUNTIME_NAMES: Mapping[ErrorKind, str] = {
    ErrorKind.OUT_OF_MEMORY: "MemoryAllocation|OutOfMemory",
    ErrorKind.DEVICE_LOST: (
        "IllegalAddress|LaunchFailure|LaunchFailed|Assert|LaunchTimeout|LaunchTimeOut|ECCUncorrectable"
        "|ECCNotCorrectable|MisalignedAddress|IllegalInstruction|InvalidPc|InvalidAddressSpace"
        "|HardwareStackError|ContextIsDestroyed"
    ),
    ErrorKind.NOT_INITIALISED: (
        "InitializationError|NotInitialized|InsufficientDriver|NoDevice|SystemNotReady|SystemDriverMismatch"
        "|CompatNotSupportedOnDevice"
    ),
    ErrorKind.WRONG_DEVICE: "InvalidDevice",
}
_DRIVER_NAMES: Mapping[ErrorKind, str] = {
    ErrorKind.OUT_OF_MEMORY: "OUT_OF_MEMORY",
    ErrorKind.DEVICE_LOST: (
        "ILLEGAL_ADDRESS|LAUNCH_FAILED|ASSERT|LAUNCH_TIMEOUT|ECC_UNCORRECTABLE|MISALIGNED_ADDRESS"
        "|ILLEGAL_INSTRUCTION|INVALID_PC|INVALID_ADDRESS_SPACE|HARDWARE_STACK_ERROR|CONTEXT_IS_DESTROYED"
    ),
    ErrorKind.NOT_INITIALISED: (
        "NOT_INITIALIZED|NO_DEVICE|SYSTEM_NOT_READY|SYSTEM_DRIVER_MISMATCH|COMPAT_NOT_SUPPORTED_ON_DEVICE"
    ),
    ErrorKind.WRONG_DEVICE: "INVALID_DEVICE",
}


def cuda_like_rules(
    label: str,
    *,
    out_of_memory: str,
    not_initialised: str,
    device_lost: str | None = None,
    codes: Mapping[int, ErrorKind] = CUDA_CODES,
) -> ErrorRules:
    """Rules for a runtime that says what CUDA's says under its own ``label``.

    Args:
        label: as in ``"HIP error: ..."``; also the stem of the runtime's names, as in ``hipErrorOutOfMemory``.
        out_of_memory: the statuses of the vendor's libraries, as a regular expression.
        not_initialised: the vendor's own words for a missing driver, as a regular expression.
        device_lost: the vendor's further names for a device that is gone, as a regular expression.
        codes: what the error codes of the runtime mean.
    """
    more = {ErrorKind.OUT_OF_MEMORY: out_of_memory, ErrorKind.DEVICE_LOST: device_lost}
    names = {kind: _names(label, kind, more.get(kind)) for kind in _SENTENCES}
    said = {kind: f"{_heading(label)}(?:{sentence})\\b" for kind, sentence in _SENTENCES.items()}
    return ErrorRules(
        codes=codes,
        device_lost=said[ErrorKind.DEVICE_LOST],
        out_of_memory=(
            rf"\b{label} out of memory\.|{said[ErrorKind.OUT_OF_MEMORY]}"
            # On a partition of a device the management library may not answer, and the allocator, which asks it
            # for the text of an out-of-memory error, fails its own assertion instead.
            rf'|\b[A-Z]+ML_SUCCESS == [^\n]{{0,200}}INTERNAL ASSERT FAILED at "[^"]*CachingAllocator\.cpp"'
        ),
        not_initialised=(
            rf"Cannot re-initialize \w+ in forked subprocess|Torch not compiled with {label} enabled"
            rf"|\bNo {label} GPUs are available|{label} driver initialization failed"
            rf"|{label} driver version is insufficient"
            rf"|{label} unknown error - this may be due to an incorrectly set up environment"
            rf"|{said[ErrorKind.NOT_INITIALISED]}|{not_initialised}"
        ),
        wrong_device=said[ErrorKind.WRONG_DEVICE],
        names=names,
    )


def _heading(label: str) -> str:
    """What stands before a runtime's sentence, in torch's words and in those of the libraries around it."""
    own = rf"\b{label}(?:RT)?"
    code = r"(?:\(\d+\)\s*|\d+\s+)?"
    # A file and a line, or the call that failed.
    place = r"(?:\s+\(?(?:in\s+)?[^\s'\"]{1,200}[:(][^\n'\"]{0,200}?)?"
    return (
        rf"(?i:{own}\s+(?:runtime\s+|driver\s+)?(?:error|failure)(?:\s*\(\d+\))?{place}\s*(?::\s*{code}|{code}['\"])"
        rf"|\bTriton\s+Error\s+\[{label}\]\s*:\s*(?:Code\s*:\s*\d+,\s+Mess+age\s*:\s*)?"
        rf"|\b{label}GetDeviceCount\(\)[^\n]{{0,200}}\bError\s+\d+\s*:\s*)"
    )


def _names(label: str, kind: ErrorKind, more: str | None) -> str:
    return (
        rf"\b{label.lower()}Error(?:{_RUNTIME_NAMES[kind]})\b"
        rf"|\b{label.upper()}_ERROR_(?:{_DRIVER_NAMES[kind]})\b" + (rf"|\b(?:{more})\b" if more else "")
    )
