"""Everything that reads files which others may have written, and what it says of those that it cannot use."""

from __future__ import annotations

import datetime
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from safetensors.torch import save

from devicekit.commands.keys import key
from devicekit.commands.top_view import as_text
from devicekit.contract.errors import ConfigurationError, DeviceKitError, ManifestError
from devicekit.contract.manifest import Manifest
from devicekit.devtools.audit.accepted import Accepted
from devicekit.devtools.audit.cache import Cache
from devicekit.devtools.audit.files import Unreadable
from devicekit.devtools.audit.files import read as read_source
from devicekit.devtools.audit.findings import Finding
from devicekit.devtools.certify.checkout import search_path
from devicekit.devtools.doctor.diagnosis import read_tier
from devicekit.files import UnreadableFile, read_regular
from devicekit.fleet import FleetBusy, open_record
from devicekit.observe.allocation_log import read_log
from devicekit.observe.baseline import Baseline, compare
from devicekit.observe.run import Run
from devicekit.observe.timeline import Timeline
from devicekit.observe.tolerances import read_tolerances
from devicekit.registry.installed import entries
from devicekit.release.settings import read_settings
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.errors import InvalidModelDirectory
from devicekit.runners.weight_files import WeightFile
from devicekit.scheduling.errors import InvalidOperation
from devicekit.server.sampling_defaults import sampling_defaults
from devicekit.weights.pickled import read_message, read_pickled
from devicekit_conformance.report import SCHEMA
from devicekit_conformance.target import Target, UsageError
from devicekit_conformance.verify import problems_of
from devicekit_conformance.waivers import Waivers


@dataclass(frozen=True)
class Reader:
    """One of them.

    Attributes:
        read: reads a file, and does with what it found what a user would.
        refusals: what it may raise.
        name: of the file.
        sound: contents that it accepts, from which hostile ones are made.
    """

    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]
    name: str
    sound: tuple[bytes, ...]


def _json(*documents: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(one).encode() for one in documents)


_PROVENANCE = {"backend": "a", "device": None, "driver": "1", "versions": {"python": "3"}, "machine": "x"}
_METRICS = {
    "load:seconds": {"value": 1.5, "kind": "stage"},
    "load:peak_bytes": {"value": 7, "kind": "memory"},
}
_SAMPLE = b'{"at": 1.0, "allocated": 5, "reserved": null, "free": 9, "total": 10}\n'
_MARK = b'{"at": 2.0, "kind": "verb", "label": "flush", "released": -3, "seconds": 0.5}\n'
_LOG = {
    "seconds": 0.1,
    "action": "allocate",
    "number": 1,
    "bytes": 512,
    "operator": "aten::empty",
    "thread": 9,
}
_REPORT = {
    "schema": SCHEMA,
    "digest": "",
    "results": [],
    "profiles": ["core"],
    "backend": {"name": "a"},
    "tier": "experimental",
    "verdict": "pass",
    "suite": {"version": "1", "digest": ""},
    "finished": "2026-01-01",
}
_WAIVER = b"""[[waiver]]
requirement = "DK-STATE-012"
reason = "slow"
link = "https://tracker.example/1"
expires = 2026-06-01
strict = true
"""
_MANIFEST = b"""[backend]
name = "toy"
device_type = "cpu"
contract = ">=1.0,<2"
probe_order = 1000
noop = ["synchronize"]
indexed = false
"""
_PROJECT = b"""[project]
name = "toy"
version = "1"
dependencies = ["torch"]
[project.entry-points."devicekit.backends"]
toy = "toy:B"
"""
_CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}


def _record(path: Path) -> object:
    with open_record(path, ["http://a"]) as file:
        return file.record


def _run_and_baseline(path: Path) -> object:
    run = Run.read(path)
    return str(compare(Baseline.from_runs([run]), run)), compare(Baseline.from_runs([run]), run).as_json()


def _baseline(path: Path) -> object:
    baseline = Baseline.read(path)
    return str(compare(baseline, Run({}, baseline.provenance)))


def _accepted(path: Path) -> object:
    accepted = Accepted.read(path)
    finding = Finding("a.py", 1, 1, "DK001", "it is", "x = 1")
    accepted.write(path.with_name("again.json"))
    return accepted.split([finding])


def _cache(path: Path) -> object:
    cache = Cache(path)
    found = cache.get(path, "a.py")
    cache.write()
    return found


def _project(path: Path) -> object:
    return search_path([path.parent], path.parent / "metadata")


def _settings_of_a_plugin(path: Path) -> object:
    (path.parent / "toy.py").touch()
    return Target("toy.py:Backend", folder=str(path.parent)).with_own_probe()


def _recommended(path: Path) -> object:
    return sampling_defaults(cast("ModelDirectory", SimpleNamespace(path=path.parent)), "model")


def _model(path: Path) -> object:
    save_nothing = path.parent / "model.safetensors"
    save_nothing.write_bytes(save({"a": torch.zeros(1)}))
    directory = ModelDirectory.open(path.parent)
    return directory.limits, directory.stored_tensors()


def _index(path: Path) -> object:
    (path.parent / "config.json").write_text(json.dumps(_CONFIG))
    return ModelDirectory.open(path.parent).stored_tensors()


def _weights(path: Path) -> object:
    return WeightFile.open(path).read()


def _entry_points(path: Path) -> object:
    folder = path.parent / "toy-1.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    if not (folder / "entry_points.txt").is_symlink():
        (folder / "entry_points.txt").symlink_to(path)
    sys.path.insert(0, str(path.parent))
    try:
        return entries("devicekit.backends")
    finally:
        sys.path.remove(str(path.parent))


READERS = {
    "release policies": Reader(
        lambda path: read_settings({}, path),
        (ConfigurationError,),
        "release.toml",
        (b'[release]\nidle = "interval:30"\ncomponent = "when_reclaimable:1GiB, every:5"\ndry_run = true\n',),
    ),
    "tolerances": Reader(
        read_tolerances,
        (ConfigurationError,),
        "tolerances.toml",
        (b'[tolerances]\nDecodingStage = "0.9+250ms"\nmemory = "0.1+1GiB"\n"stage:de*" = "1"\n',),
    ),
    "runs": Reader(
        _run_and_baseline,
        (ConfigurationError,),
        "run.json",
        _json({"metrics": _METRICS, "provenance": _PROVENANCE}),
    ),
    "baselines": Reader(
        _baseline,
        (ConfigurationError,),
        "baseline.json",
        _json({"metrics": _METRICS, "provenance": _PROVENANCE, "runs": 3}),
    ),
    "timelines": Reader(
        lambda path: as_text(Timeline.read(path)),
        (ConfigurationError,),
        "timeline.jsonl",
        (b'{"timeline": "npu:1"}\n' + _SAMPLE + _MARK + _SAMPLE,),
    ),
    "allocation logs in CSV": Reader(
        lambda path: list(read_log(path)),
        (ConfigurationError,),
        "log.csv",
        ((",".join(_LOG) + "\n" + ",".join(map(str, _LOG.values())) + "\n").encode(),),
    ),
    "allocation logs in JSON lines": Reader(
        lambda path: list(read_log(path)), (ConfigurationError,), "log.jsonl", _json(_LOG)
    ),
    "fleet records": Reader(
        _record,
        (ConfigurationError, FleetBusy),
        "fleet.json",
        _json(
            {
                "members": ["http://a"],
                "served": {"version": "1", "path": None, "checksum": "c"},
                "update": {"id": "u", "path": "/p", "version": "2", "phase": "writing", "flush_cache": True},
                "held": ["http://a"],
            }
        ),
    ),
    "accepted findings": Reader(
        _accepted,
        (ConfigurationError,),
        "accepted.json",
        _json({"accepted": [{"path": "a.py", "rule": "DK001", "source": "x = 1", "count": 2}]}),
    ),
    "the audit's memory": Reader(
        _cache, (), "cache.json", _json({"stamp": "s", "files": {"a.py": [[1, 2], 3, [], {"1": ["a"]}, []]}})
    ),
    "audited sources": Reader(read_source, (Unreadable,), "a.py", (b"# -*- coding: utf-8 -*-\nx = 1\n",)),
    "conformance reports, for doctor": Reader(
        read_tier, (ConfigurationError,), "report.json", _json(_REPORT)
    ),
    "conformance reports": Reader(problems_of, (UsageError,), "report.json", _json(_REPORT)),
    "waivers": Reader(
        lambda path: Waivers.read(path, datetime.date(2026, 1, 1)), (UsageError,), "waivers.toml", (_WAIVER,)
    ),
    "settings of a plugin for the suite": Reader(
        _settings_of_a_plugin, (UsageError,), "conformance.toml", (b'probe = "toy.probe:Probe"\n',)
    ),
    "projects to certify": Reader(
        _project,
        (ConfigurationError,),
        "pyproject.toml",
        (_PROJECT,),
    ),
    "manifests": Reader(Manifest.read, (ManifestError,), "backend.toml", (_MANIFEST,)),
    "entry points": Reader(
        _entry_points, (), "points.txt", (b"[devicekit.backends]\ntoy = toy:backend.toml\n",)
    ),
    "recommended sampling": Reader(
        _recommended, (), "generation_config.json", _json({"temperature": 0.5, "top_k": 20, "top_p": 0.9})
    ),
    "configurations of models": Reader(_model, (DeviceKitError,), "config.json", _json(_CONFIG)),
    "indexes of weights": Reader(
        _index,
        (InvalidModelDirectory,),
        "model.safetensors.index.json",
        _json({"metadata": {"total_size": 4}, "weight_map": {"a": "part.safetensors"}}),
    ),
    "weights": Reader(
        _weights, (InvalidModelDirectory,), "model.safetensors", (save({"a": torch.zeros(2, 3)}),)
    ),
    "keys": Reader(
        lambda path: key("--api-key", None, path, {}), (ConfigurationError,), "key", (b"a secret\n",)
    ),
    "pickles of tensors": Reader(
        lambda path: read_pickled(read_regular(path, 1 << 20)),
        (InvalidOperation, UnreadableFile),
        "tensors.pkl",
        (pickle.dumps({"a": ["b", (1, 2)]}), pickle.dumps([("w", torch.float32)])),
    ),
    "streamed messages": Reader(
        lambda path: read_message(read_regular(path, 1 << 20)),
        (InvalidOperation, UnreadableFile),
        "message.pkl",
        (pickle.dumps({"a": ["b", (1, 2)]}), pickle.dumps(RuntimeError("x"))),
    ),
}
"""By what they read, in words."""
