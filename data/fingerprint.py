"""What a stage's result depends on: canonical values, code digests and the key.

The key never depends on where a stage ran: no path, host, time or number of workers. A parameter that only says
where something lies, or how fast to go, is marked `NOT_IN_KEY`; what lies there enters by its digest.
"""

import ast
import enum
import importlib.metadata
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

NOT_IN_KEY = "not-in-key"
ROOMS = ("tasks", "data")

# Raise by hand when infra/ changes what a stage's result means (shard borders, conservation, table layout).
STORE_SEMANTICS = 1


def canonical(value: Any) -> Any:
    """Reduce a value to JSON with one form only; parameters marked NOT_IN_KEY are left out.

    Raises:
        TypeError: the value has no canonical form; the message names it.
    """
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name: canonical(getattr(value, name)) for name, field in fields if NOT_IN_KEY not in field.metadata}
    if isinstance(value, enum.Enum):
        return canonical(value.value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a mapping with keys other than text has no canonical form: {value!r}")
        return {key: canonical(each) for key, each in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [canonical(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{value!r} has no canonical form; use a finite number, or None for 'no limit'")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"{value!r} of type {type(value).__qualname__} has no canonical form; "
        "use text, numbers, lists, mappings or a pydantic model"
    )


def canonical_json(value: Any) -> bytes:
    """Write a value as canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def digest_of(value: Any) -> str:
    """Digest a value by its canonical JSON: 64 hex digits."""
    return sha256(canonical_json(value)).hexdigest()


def fingerprint_of(key: Mapping[str, Any]) -> str:
    """Shorten a key to the name of its folder: 32 hex digits (128 bits)."""
    return digest_of(key)[:32]


def seed_for(*purpose: str | int) -> int:
    """Derive a seed (0 to 2**63 - 1) from what a draw is for, never from where it runs."""
    return int.from_bytes(blake2b(canonical_json(list(purpose)), digest_size=8).digest(), "big") >> 1


def stage_key(
    stage: str,
    module: str,
    parameters: BaseModel,
    inputs: Mapping[str, str | list[str]],
    reads: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect everything that a stage's result depends on.

    Args:
        stage: the stage's name.
        module: dotted name of the method's module; the modules of tasks/ and data/ that it reaches count too.
        parameters: the method's parameters.
        inputs: logical digest of each input artifact, by argument name.
        reads: digests of what lies outside the store (files, a model folder, a chat template), by name.
    """
    code = code_digests(module)
    return {
        "stage": stage,
        "store_semantics": STORE_SEMANTICS,
        "code": code,
        "packages": package_versions(tuple(code)),
        "parameters": canonical(parameters),
        "reads": canonical(reads),
        "inputs": canonical(inputs),
    }


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Walk two keys and yield (dotted place, old value, new value) wherever they differ; None means absent."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from differences(old.get(name), new.get(name), f"{where}/{name}" if where else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from differences(left, right, f"{where}/{number}")
    elif old != new:
        yield where, old, new


# ---- code ------------------------------------------------------------------------------------------------


@cache
def code_digests(module: str) -> dict[str, dict[str, str]]:
    """Digest the code that a method reaches: {module: {definition: 16 hex}}.

    The method's own module, and every module of tasks/ and data/ that it imports, directly or not, at the top or
    inside a function. A definition is digested through `ast.unparse` without docstrings, so that comments,
    layout and documentation do not count. A text that names a file beside its module (a template) brings that
    file's digest.
    """
    reached: dict[str, dict[str, str]] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached[name], imports = _module(name)
        waiting += [each for each in imports if each.partition(".")[0] in ROOMS and _is_module(each)]
    return dict(sorted(reached.items()))


@cache
def package_versions(modules: tuple[str, ...]) -> dict[str, str]:
    """Find major.minor of each distribution that the modules import: {distribution: "1.2"}."""
    names = set()
    for module in modules:
        names |= {each.partition(".")[0] for each in _module(module)[1]}
    ours = {"flows", "tasks", "infra", "data", "__future__", *sys.stdlib_module_names}
    return {name: ".".join(package_version(name).split(".")[:2]) for name in sorted(names - ours)}


def package_version(package: str) -> str:
    """Find the version of the distribution that an import name belongs to; "0" if none is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        distributions = _distributions().get(package, [])
        return importlib.metadata.version(distributions[0]) if distributions else "0"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Find the distributions of each import name, once: this reads every installed package, 0.3 s."""
    return importlib.metadata.packages_distributions()


@cache
def _module(name: str) -> tuple[dict[str, str], set[str]]:
    """Read a module once, for every stage that reaches it: digests of what it defines, and what it imports."""
    path = _source(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = set(_imports(tree, name))
    return {**_definitions(tree), **_files_named(tree, path.parent)}, imports


@cache
def _source(module: str) -> Path:
    loaded = sys.modules.get(module)
    spec = loaded.__spec__ if loaded else importlib.util.find_spec(module)
    origin = (spec.origin if spec else None) or getattr(loaded, "__file__", None)
    if not origin:
        raise TypeError(f"the module {module} has no source file, so its code cannot be digested")
    return Path(origin)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _imports(tree: ast.AST, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, module.rpartition(".")[0])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _definitions(tree: ast.Module) -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            name = "imports"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        elif _is_docstring(node):
            continue
        else:
            name = "module"
        texts.setdefault(name, []).append(ast.unparse(_Undocumented().visit(node)))
    return {name: sha256("\n".join(parts).encode()).hexdigest()[:16] for name, parts in sorted(texts.items())}


class _Undocumented(ast.NodeTransformer):
    """Strip the docstrings, also of nested definitions."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and body and _is_docstring(body[0]):
            node.body = body[1:] or [ast.Pass()]
        return node


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _files_named(tree: ast.AST, folder: Path) -> dict[str, str]:
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = sorted(
        text for text in texts if 2 < len(text) < 100 and "." in text[1:] and "\n" not in text and "\0" not in text
    )
    return {name: file_digest(folder / name)[:16] for name in names if (folder / name).is_file()}


def file_digest(path: Path) -> str:
    """Digest a file's bytes with SHA-256, reading 1 MiB at a time: 64 hex digits."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_digest(digests: Mapping[str, str]) -> str:
    """Digest a folder by the names and digests of its files: 64 hex digits."""
    return digest_of(dict(digests))
