"""What a rewritten file looks like: its device, its types, its imports, its layout, and how it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.cli import main
from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.audit import mend
from tests.devtools.audit.fixing import HERE, fixed


def test_below_another_current_device_the_current_one_is_asked_for() -> None:
    code = "import torch\n\nA = torch\ndef f(device, i):\n    with torch.cuda.device(i):\n"
    code += "        torch.cuda.synchronize()\n"
    lines = fixed(f"{code}    torch.cuda.synchronize()\n", device_name="device").splitlines()
    assert lines[5:] == [
        "    with devicekit.device_for(i).current():",
        f"        {HERE}.synchronize()",
        "    device.synchronize()",
    ]


NAMED = {
    "def f(device): torch.cuda.synchronize()": True,
    "def f(device=None): torch.cuda.synchronize()": True,
    "def f(device: devicekit.Device): torch.cuda.synchronize()": True,
    "def f(device: str): torch.cuda.synchronize()": False,
    "def f(device: torch.device): torch.cuda.synchronize()": False,
    "def f(device='cuda'): torch.cuda.synchronize()": False,
    "def f():\n    device = 1\n    torch.cuda.synchronize()": False,
    "def f(device):\n    device = device or 1\n    torch.cuda.synchronize()": False,
    "def f(): torch.cuda.synchronize()": False,
    "from engine import device\ndef f(): torch.cuda.synchronize()": True,
    "class device: pass\nclass A:\n    device = 1\n    def f(self): torch.cuda.synchronize()": True,
}


@pytest.mark.parametrize(("code", "used"), NAMED.items())
def test_a_named_device_is_used_only_where_it_can_be_one(code: str, used: bool) -> None:
    text = fixed(f"import devicekit\nimport torch\n{code}\n", device_name="device")
    assert ("device.synchronize()" in text.replace(HERE, "")) is used
    assert (f"{HERE}.synchronize()" in text) is not used


def test_a_device_may_be_an_attribute_an_import_or_the_files_own() -> None:
    method = "import torch\nclass A:\n    def f(self): torch.cuda.synchronize()\n"
    assert "self.device.synchronize()" in fixed(method, device_name="self.device")
    imported = fixed(method, device_name="engine.parts:device")
    assert "from engine.parts import device\n" in imported
    assert "def f(self): device.synchronize()" in imported
    taken = "import torch\ndevice = 1\nclass A:\n    def f(self): torch.cuda.synchronize()\n"
    assert f"{HERE}.synchronize()" in fixed(taken, device_name="engine.parts:device")
    own = "import devicekit, torch\nGPU = devicekit.get_device()\ndef f(): torch.cuda.synchronize()\n"
    assert "GPU.synchronize()" in fixed(own)
    parameter = "import devicekit, torch\ndef f(d: devicekit.Device): torch.cuda.synchronize()\n"
    assert "d.synchronize()" in fixed(parameter)


def test_what_is_said_to_be_a_type_is_one_everywhere() -> None:
    code = (
        "import torch\nfrom typing import cast\n\ndef f(s) -> torch.cuda.Stream:\n"
        "    return cast(torch.cuda.Stream, s)\n"
    )
    assert fixed(code) == (
        "from typing import cast\nimport devicekit\n\ndef f(s) -> devicekit.Stream:\n"
        "    return cast(devicekit.Stream, s)\n"
    )


def test_annotations_and_exceptions_are_torch_and_devicekit_types() -> None:
    code = (
        "import torch as T\n\ndef f(s: T.cuda.Stream | None) -> list[T.cuda.Event]:\n    try: pass\n"
        "    except (T.cuda.OutOfMemoryError, ValueError): raise\n"
    )
    assert fixed(code) == (
        "import torch as T\nimport devicekit\n\ndef f(s: devicekit.Stream | None) -> list[devicekit.Event]:\n"
        "    try: pass\n    except (T.OutOfMemoryError, ValueError): raise\n"
    )


def test_imports_that_nothing_uses_any_more_go_and_others_stay() -> None:
    code = (
        '"""Doc."""\n\nfrom __future__ import annotations\n\nimport torch.cuda as tc\nimport torch.cuda\n'
        "from torch.cuda import Event, nvtx\nfrom torch import cuda\n\n\n"
        "def f():\n    tc.synchronize()\n    cuda.synchronize()\n    nvtx.mark('x')\n    return Event()\n"
    )
    text = fixed(code)
    assert text.startswith('"""Doc."""\n\nfrom __future__ import annotations\n')
    assert "import torch.cuda\n" in text
    assert "from torch.cuda import nvtx\n" in text
    assert "as tc" not in text
    assert "import cuda\n" not in text
    assert text.count("import devicekit") == 1


def test_an_import_inside_of_a_function_is_nobody_elses() -> None:
    code = "import torch\n\ndef g():\n    import devicekit\n\ndef f():\n    torch.cuda.synchronize()\n"
    assert fixed(code).startswith("import devicekit\n\ndef g():\n    import devicekit\n")
    bare = "def f():\n    import torch\n    torch.cuda.synchronize()\n"
    assert fixed(bare).startswith("import devicekit\n")


def test_formatting_is_kept_to_the_last_blank() -> None:
    code = (
        "import torch\r\n\r\nA=torch\r\n"
        "def f( x ):\r\n\tx = ( x . a ( )\r\n\t\t.cuda()  # moved\r\n\t\t. b( ) ) ; y=1\r\n"
        "\ttorch.cuda.synchronize() # done\r\n\r\n\r\n#end"
    )
    text = fixed(code)
    assert (
        text.replace(f".to({HERE}.torch_device)", ".cuda()")
        .replace(f"{HERE}.synchronize()", "torch.cuda.synchronize()")
        .replace("import devicekit\r\n", "")
        == code
    )


def test_files_are_written_in_their_encoding_with_their_mode_and_only_if_they_change(tmp_path: Path) -> None:
    latin = tmp_path / "latin.py"
    latin.write_bytes(
        "# coding: latin-1\nimport torch\ndef f():\n    torch.cuda.synchronize()  # \xe4\n".encode("latin-1")
    )
    latin.chmod(0o750)
    (tmp_path / "link.py").symlink_to(latin)
    bom = tmp_path / "bom.py"
    bom.write_bytes(b"\xef\xbb\xbfimport torch\ndef f():\n    torch.cuda.synchronize()\n")
    sound = tmp_path / "sound.py"
    sound.write_text("x = 1\n")
    before = sound.stat()
    done = mend([tmp_path])
    assert (done.files, done.edits, done.left) == (2, 2, [])
    assert b"synchronize()  # \xe4" in latin.read_bytes()
    assert latin.stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "link.py").is_symlink()
    assert bom.read_bytes().startswith(b"\xef\xbb\xbfimport devicekit\n")
    assert sound.stat().st_mtime_ns == before.st_mtime_ns
    assert mend([tmp_path]).files == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bom.py", "latin.py", "link.py", "sound.py"]


def test_waived_lines_are_left_alone(tmp_path: Path) -> None:
    code = "import torch\ndef f():\n    torch.cuda.synchronize()  # devicekit: allow[DK001] a profiler\n"
    (tmp_path / "a.py").write_text(code)
    done = mend([tmp_path])
    assert (done.edits, done.left, done.exit_status) == (0, [], 0)
    assert (tmp_path / "a.py").read_text() == code


def test_the_command_shows_rewrites_and_says_what_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.py"
    path.write_text("import torch\ndef f(x):\n    return torch.cuda.get_device_name()\n")
    assert main(["audit", "--diff", str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"-    return torch.cuda.get_device_name()\n+    return {HERE}.properties().name\n" in shown
    assert "torch.cuda.get_device_name" in path.read_text()
    assert main(["audit", "--fix", str(path)]) == 0
    told = capsys.readouterr().out
    assert "torch.cuda.get_device_name: None where the vendor does not say" in told
    assert told.endswith("1 place rewritten in 1 file; 0 left to do by hand\n")
    assert main(["audit", "--diff", str(path)]) == 0
    path.write_text("import torch\ntorch.cuda.synchronize()\n")
    assert main(["audit", "--fix", str(path)]) == 1
    assert main(["audit", "--unsafe-fixes", str(path)]) == 0


@pytest.mark.parametrize("name", ["", "a b", "self.", "1x", "x()", ":device", "a:b:c", "a-b:device", "class"])
def test_a_device_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="names no device"):
        mend([tmp_path], device_name=name)


def test_torch_is_imported_no_longer_than_it_is_used() -> None:
    assert fixed("import torch\n\ndef f(): torch.cuda.synchronize()\n").startswith(
        "import devicekit\n\ndef f"
    )
    assert "import torch as T" not in fixed("import torch as T\n\ndef f(): T.cuda.synchronize()\n")
    for kept in (
        "import torch\n\ndef f(): return torch.cuda.device_count(), torch.zeros(1)\n",
        "import torch\n\n__all__ = ['torch']\ndef f(): torch.cuda.synchronize()\n",
        "import torch  # for others\nfrom torch.cuda import synchronize\ndef f(): synchronize()\n",
        "import torch\nimport torch.nn\n\ndef f(): return torch.cuda.device_count(), torch.nn.Module\n",
    ):
        text = fixed(kept)
        assert "devicekit" in text
        assert "import torch" in text
