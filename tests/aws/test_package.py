"""The functions' zip. Libraries of its own stand in for those that pip fetches, but in the last class."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fleetfold.aws import package as packaging
from fleetfold.aws.package import NEEDED, OWN, PYTHON, package, unfit, usable_kernel
from fleetfold.errors import BadConfig


def elf(machine: int, *needed: str) -> bytes:
    """As much of a shared object as says what it was built for."""
    head = b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little")
    return head + bytes(44) + b"\0".join(name.encode() for name in needed) + b"\0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With libraries as if pip had brought them, for this Python and for Lambda's."""
    for python in (OWN, PYTHON):
        name = packaging._name(packaging._versions(), python)
        libraries = tmp_path / f"libraries-{name}"
        for path, text in {
            "numpy/__init__.py": "x = 1\n",
            "numpy/__init__.pyi": "x: int\n",
            "numpy/tests/test_x.py": "assert False\n",
            "numpy/_core/include/a.h": "int x;\n",
            "numpy/core.so": "library",
            "numpy-2.dist-info/METADATA": "Name: numpy\n",
            "numpy-2.dist-info/RECORD": "numpy/__init__.py\n",
            "numpy-2.dist-info/licenses/LICENSE.txt": "BSD\n",
            "bin/f2py": "#!\n",
        }.items():
            (libraries / path).parent.mkdir(parents=True, exist_ok=True)
            (libraries / path).write_text(text)
    return tmp_path


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as made:
        return set(made.namelist())


class TestWhatIsInIt:
    def test_it_is_libraries_and_fleetfold_without_what_no_function_reads(self, folder: Path) -> None:
        found = names(package(folder, python=PYTHON).path)
        assert {name for name in found if not name.startswith("fleetfold/")} == {
            "numpy/__init__.py", "numpy/core.so", "numpy-2.dist-info/METADATA",
            "numpy-2.dist-info/licenses/LICENSE.txt",
        }  # fmt: skip
        assert "fleetfold/aws/machine.py" in found
        assert "fleetfold/fold/fold.py" in found
        assert not [name for name in found if "__pycache__" in name or name.endswith(".c")]

    def test_a_module_of_the_users_own_can_be_imported(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "my_policy.py").write_text("def select(): ...\n")
        made = package(folder, python=PYTHON, modules=[tmp_path / "my_policy.py"])
        assert "my_policy.py" in names(made.path)
        assert made.digest != package(folder, python=PYTHON).digest

    @pytest.mark.parametrize("name", ["my-policy.py", "policy.txt", "absent.py"])
    def test_what_is_no_module_is_told(self, folder: Path, tmp_path: Path, name: str) -> None:
        if name != "absent.py":
            (tmp_path / name).write_text("")
        with pytest.raises(BadConfig, match="--with"):
            package(folder, python=PYTHON, modules=[tmp_path / name])

    def test_it_has_bytecode_where_this_python_is_lambdas(self, folder: Path) -> None:
        own = package(folder, python=OWN)
        assert own.compiled
        assert f"fleetfold/__pycache__/errors.{sys.implementation.cache_tag}.pyc" in names(own.path)
        assert not package(folder, python="3.13" if OWN != "3.13" else "3.12").compiled or OWN == PYTHON

    def test_a_python_that_lambda_does_not_have_is_refused(self, folder: Path) -> None:
        with pytest.raises(BadConfig, match=r"3\.8"):
            package(folder, python="3.8")

    def test_more_than_lambda_takes_is_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packaging, "ZIPPED", 1000)
        with pytest.raises(BadConfig, match="Lambda takes"):
            package(folder, python=PYTHON)


class TestTheSameTwice:
    def test_the_same_contents_are_the_same_bytes(self, folder: Path) -> None:
        first = package(folder, python=PYTHON)
        before = first.path.read_bytes()
        first.path.unlink()
        again = package(folder, python=PYTHON)
        assert again == first
        assert again.path.read_bytes() == before

    def test_what_was_made_is_not_made_again(self, folder: Path) -> None:
        made = package(folder, python=PYTHON)
        at = made.path.stat().st_mtime_ns
        assert package(folder, python=PYTHON).path.stat().st_mtime_ns == at

    def test_other_pythons_are_other_zips(self, folder: Path) -> None:
        other = OWN if OWN != PYTHON else "3.12"
        if other == "3.12":
            pytest.skip("there are stand-ins for two versions only")
        assert package(folder, python=PYTHON).key != package(folder, python=other).key


class TestTheKernel:
    def test_ours_can_be_loaded_by_lambda(self) -> None:
        path, why = usable_kernel()
        assert why == "" or path is None

    @pytest.mark.parametrize(
        ("built", "why"),
        [
            (elf(62, "GLIBC_2.2.5", "GLIBC_2.34"), ""),
            (elf(62, "GLIBC_2.2.5", "GLIBC_2.38"), "GLIBC 2.38"),
            (elf(183, "GLIBC_2.17"), "x86_64"),
            (b"\xcf\xfa\xed\xfe" + bytes(60), "x86_64"),
        ],
    )
    def test_what_it_needs_of_the_c_library_is_looked_at(self, built: bytes, why: str) -> None:
        said = unfit(built)
        assert (why in said) if why else said == ""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> packaging.Package:
    return package(tmp_path_factory.mktemp("package"), python=OWN)


@pytest.mark.aws
class TestTheRealOne:
    """With libraries of the package index."""

    def test_it_is_small_enough_with_room_to_spare(self, made: packaging.Package) -> None:
        print(f"zip {made.zipped / 1e6:.1f} MB, unzipped {made.unzipped / 1e6:.1f} MB")
        assert made.zipped < 40e6
        assert made.unzipped < 150e6

    def test_it_brings_all_that_its_functions_import_and_no_boto3(
        self, made: packaging.Package, tmp_path: Path
    ) -> None:
        with zipfile.ZipFile(made.path) as zipped:
            zipped.extractall(tmp_path / "task")
        assert not (tmp_path / "task" / "boto3").exists()
        assert {path.name for path in (tmp_path / "task").iterdir()} >= {
            name.removeprefix("aws-lambda-").replace("powertools", "aws_lambda_powertools") for name in NEEDED
        }
        # Lambda brings boto3; here the environment does, but behind what is in the zip.
        asked = (
            "import sys, json; sys.path.insert(0, sys.argv[1]); import fleetfold.aws.steps, "
            "fleetfold.adapters.dynamo, fleetfold.adapters.stores, aws_lambda_powertools; "
            "from fleetfold.fold import kernel; import numpy; "
            "print(json.dumps([fleetfold.__file__, numpy.__file__, aws_lambda_powertools.__file__]))"
        )
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", asked, str(tmp_path / "task")], env=environment, cwd=tmp_path,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert all(place.startswith(str(tmp_path / "task")) for place in json.loads(done.stdout))
