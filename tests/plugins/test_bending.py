"""A vendor's module without any of its functions costs the hooks that rest on them, and nothing else."""

from __future__ import annotations

import random

import pytest

from devicekit.contract import CONTRACT_VERSION, HOOKS, HookKind
from devicekit.contract.errors import InvalidHooks
from devicekit.device import Device
from devicekit.registry import Candidate, OpenedBackend
from devicekit.registry.validation import check_hooks
from tests.plugins.support import CASES, Bench, Make, manifest_of
from tests.seeds import drawn_seed

SEED = drawn_seed("BENDING_SEED")
REQUIRED = [name for name, spec in HOOKS.items() if spec.kind is HookKind.REQUIRED]
VITAL = {"device_count", "synchronize"}  # what the required hooks rest on
HARMLESS = [
    name
    for name, spec in HOOKS.items()
    if spec.parameters in ((), ("index",)) and name not in ("set_index", "memory_pool", "create_graph")
]


def opened(bench: Bench) -> OpenedBackend:
    candidate = Candidate(bench.name, "test", "1", "test:Backend", manifest_of(bench.name))
    assert candidate.manifest is not None
    check_hooks(bench.backend, candidate)
    return OpenedBackend(candidate, candidate.manifest, CONTRACT_VERSION, bench.backend)


def fault_of(make: Make, case: tuple[str, str], missing: set[str]) -> str | None:
    """What is wrong with how the vendor's plugin bears the loss, if anything is."""
    vendor, version = case
    try:
        bench = make(vendor, version, without=missing)
        backend = opened(bench)
    except InvalidHooks as refusal:
        lost = [f"the required hook {HOOKS[name].signature} is missing" for name in REQUIRED]
        founded = bool(missing & VITAL) and set(refusal.problems) <= set(lost)
        return None if founded else f"refused: {refusal}"
    except Exception as error:
        return f"not constructed: {type(error).__name__}: {error}"
    for initialised in (False, True):
        bench.driver.initialised = initialised
        for hook in HARMLESS:
            function = backend.function(hook)
            if function is None:
                continue
            try:
                function(*([0] if HOOKS[hook].parameters else []))
            except Exception as error:
                return f"{hook} raised {type(error).__name__}: {error}"
    if any(name in backend.capabilities for name in backend.withdrawn):
        return f"claims and withdraws {backend.withdrawn}"
    return None


def shrunk(make: Make, case: tuple[str, str], missing: list[str]) -> tuple[list[str], str]:
    """The smallest part of ``missing`` that is borne badly."""
    for name in list(missing):
        fewer = [one for one in missing if one != name]
        if fault_of(make, case, set(fewer)) is not None:
            missing = fewer
    return missing, str(fault_of(make, case, set(missing)))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_each_function_alone_and_many_at_once_may_be_missing(make: Make, case: tuple[str, str]) -> None:
    names = sorted(name for name in vars(make(*case).double.module) if not name.startswith("__"))
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    losses = [[name] for name in names]
    losses += [rng.sample(names, rng.randint(2, len(names))) for _ in range(25)]
    spared = [name for name in names if name not in VITAL]
    losses += [[name for name in spared if rng.random() < share] for share in (0.1, 0.5, 0.9, 1.0)]
    for missing in losses:
        if fault_of(make, case, set(missing)) is not None:
            pytest.fail(f"without {shrunk(make, case, missing)}")


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_lost_hook_takes_its_claims_along_and_says_so(make: Make, case: tuple[str, str]) -> None:
    backend = opened(make(*case, without={"empty_cache"}))
    assert "empty_cache" not in backend.implemented
    assert "caching_allocator" not in backend.capabilities
    assert backend.withdrawn["caching_allocator"] == ("empty_cache",)
    assert "memory_stats" in backend.implemented
    if backend.manifest.device_type in ("cuda", "xpu"):  # what this torch has a name for
        assert Device(backend, 0).release_cache() is False
