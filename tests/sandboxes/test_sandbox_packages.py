"""Packages beyond the standard library: imported by the worker, no folder opened to programs for it."""

import pytest

from kintsugi.errors import SandboxError
from kintsugi.sandboxes.sandbox import open_sandbox


def test_a_package_is_there_and_its_folder_is_not():
    packaging = pytest.importorskip("packaging", reason="the package `packaging` is not installed")
    with open_sandbox("local", workers=1, allow_unsafe=True, packages=("packaging.version",)) as sandbox:
        code = "from packaging.version import Version\nprint(Version('2.10') > Version('2.9'))"
        assert sandbox.run(code).stdout == "True\n"
        assert sandbox.run("import sys\nprint([p for p in sys.path if 'site-packages' in p])").stdout == "[]\n"
        assert sandbox.run("import pytest").stderr.strip().endswith("No module named 'pytest'")
        if "host_reads" in sandbox.guarantees:
            assert sandbox.run(f"open({packaging.__file__!r}).read()").status == "error"
    with open_sandbox("local", workers=1, allow_unsafe=True) as plain:
        assert plain.run("import packaging").status == "error"


def test_a_missing_package_is_named():
    with pytest.raises(SandboxError, match="expected the package no_such_package to be installed"):
        open_sandbox("local", allow_unsafe=True, packages=("no_such_package",))
