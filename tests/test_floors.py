"""A room imports only from rooms on lower floors."""

import ast
import pathlib

import pytest

LM = pathlib.Path(__file__).parent.parent / "lm"

FLOORS = [
    {
        "config",
        "resolve",
        "presets",
        "fields",
        "axes",
        "errors",
        "storage",
        "capabilities",
        "tree",
        "extensions",
        "hosts",
        "mesh_checks",
    },
    {"kernels", "tokenizer"},
    {"model", "lora", "objectives", "optim", "data"},
    {"parallel", "checkpoint", "quant", "corpus"},
    {"infer", "evaluate"},
    {"train"},
    {"plan", "sweep", "interop", "launch"},
    {"report"},
    {"commands"},
    {"__main__", "__init__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(LM.rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_rooms(path: pathlib.Path) -> set[str]:
    """Return the rooms of `lm` that a file imports, lazily or at the top."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"lm.{alias.name}" for alias in node.names] if node.module == "lm" else [node.module]
        else:
            continue
        rooms |= {room_of(name) for name in names if name.split(".")[0] == "lm"}
    return {room for room in rooms if room in FLOOR}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LM)))
def test_every_file_imports_only_from_lower_floors_or_its_own_room(path):
    room = path.relative_to(LM).parts[0].removesuffix(".py")
    assert room in FLOOR, f"{path} is in a room that has no floor"
    for imported in imported_rooms(path) - {room}:
        assert FLOOR[imported] < FLOOR[room] or FLOOR[imported] == FLOOR[room] == 0, f"{path} imports lm.{imported}"


@pytest.mark.parametrize("room", ["data", "tokenizer"])
def test_data_rooms_never_import_jax_not_even_lazily(room):
    for path in (LM / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] in ("jax", "flax", "optax", "orbax") for name in names), path


def test_nothing_but_the_tables_and_shard_map_regions_names_a_mesh_axis():
    allowed = {"axes.py", "config.py", "mesh_checks.py"}
    for path in FILES:
        if path.name in allowed:
            continue
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert "fsdp" not in strings or path.name == "inspect.py", path
