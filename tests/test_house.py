"""The rules of the house that a machine can read: who imports whom, what must not be there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "bert", "pretrain", "finetune", "demo", "benchmarks", "tests")
MAY_IMPORT = {
    "kernels": set(),
    "bert": {"kernels"},
    "pretrain": {"kernels", "bert"},
    "finetune": {"kernels", "bert"},
}
# Where the packages are put together: the command line.
COMPOSITION_ROOTS = {"bert/cli.py"}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(path):
    """The top-level names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    for path in sources(package):
        name = path.relative_to(ROOT).as_posix()
        if name not in COMPOSITION_ROOTS:
            wrong = set(imported(path)) & set(PACKAGES) - MAY_IMPORT[package] - {package}
            assert not wrong, f"{name} imports {wrong}"


def test_kernel_files_do_not_import_the_reference():
    for path in sources("kernels"):
        if path.name not in ("reference.py", "__init__.py", "selection.py"):
            assert "kernels.reference" not in path.read_text(), path


def reached_from(name):
    """A module of `kernels`, and those that it imports, theirs, and so on."""
    path = ROOT / "kernels" / f"{name}.py"
    reached, tree = {path}, ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    for node in tree:
        if isinstance(node, ast.ImportFrom) and node.module == "kernels":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kernels."):
            names = [node.module.removeprefix("kernels.")]
        else:
            continue
        for name in names:
            reached |= reached_from(name)
    return reached


def test_triton_is_for_the_kernels_and_for_the_tool_that_compiles_them():
    needed = reached_from("triton_set") | reached_from("aot")
    for package in PACKAGES[:-1]:
        for path in sources(package):
            assert "triton" not in set(imported(path)) or path in needed, path


def test_a_cpu_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None;"
        "import torch;"
        "from bert import BertConfig, BertForPreTraining;"
        "from bert.training.config import TrainingConfig;"
        "from bert.training.optimizer import build_optimizer;"
        "model = BertForPreTraining(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,"
        "    num_attention_heads=1, intermediate_size=8));"
        "model(torch.ones(1, 3).long()).prediction_logits.sum().backward();"
        "build_optimizer(model, TrainingConfig(optimizer='lamb')).step();"
        "assert 'kernels.triton_set' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_every_package_is_one_and_no_room_lacks_a_name():
    for package in PACKAGES:
        for path in sources(package):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"
            assert path.stem not in ("utils", "helpers", "common", "misc"), path


def test_no_pickle_is_ever_executed():
    for package in PACKAGES[:-1]:
        for path in sources(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    safe = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert safe.get("weights_only") == "True", path
            assert "pickle" not in set(imported(path)), path


def test_annotated_files_do_not_postpone_annotations():
    for package in PACKAGES:
        for path in sources(package):
            text = path.read_text()
            if "jaxtyping" in set(imported(path)):
                assert "from __future__ import annotations" not in text, path


def test_the_name_kernels_does_not_mislead_transformers():
    """transformers looks for a library of the name `kernels`; ours must not be taken for it."""
    pytest.importorskip("transformers")
    code = (
        "import kernels, transformers;"
        "from transformers.utils import is_kernels_available;"
        "assert not is_kernels_available();"
        "assert not hasattr(kernels, '__version__');"
        "from transformers import BertConfig, BertModel;"
        "BertModel(BertConfig(hidden_size=12, num_hidden_layers=1, vocab_size=9));"
        "print(kernels.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == ROOT / "kernels" / "__init__.py"


def test_importing_kernels_and_configurations_imports_no_torch():
    code = (
        "import sys, kernels, bert, bert.config;"
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
